"""What a phantom is made of: the label of each structure and the HU of tissues under contrast."""

from voxelfm_hf.data.phantom.facts import Acquisition, Body

LABELS = {
    "background": 0,
    "fat": 1,
    "muscle": 2,
    "spine": 3,
    "ribs": 4,
    "lung_right": 5,
    "lung_left": 6,
    "airways": 7,
    "lung_vessels": 8,
    "heart": 9,
    "aorta": 10,
    "liver": 11,
    "spleen": 12,
    "stomach": 13,
    "kidneys": 14,
    "lesion": 15,
    "effusion": 16,
    "consolidation": 17,
    "pericardial_effusion": 18,
    "lymph_nodes": 19,
    "hiatal_hernia": 20,
    "device": 21,
    "table": 22,
    "great_vessels": 23,
    "esophagus": 24,
    "colon": 25,
}
# Arterial blood, pulmonary and venous blood, heart muscle, gain of the liver, spleen, kidney.
CONTRAST_HU = {
    "none": (40, 40, 44, 0, 48, 32),
    "arterial": (310, 240, 95, 12, 105, 160),
    "venous": (145, 150, 95, 52, 118, 185),
}


class Tissue:
    """The HU of the tissues that depend on the person and the contrast phase."""

    def __init__(self, body: Body, acquisition: Acquisition):
        arterial, venous, muscle, liver_gain, spleen, kidney = CONTRAST_HU[acquisition.contrast]
        self.aorta, self.blood, self.heart = float(arterial), float(venous), float(muscle)
        self.liver, self.spleen, self.kidney = body.liver_hu + liver_gain, float(spleen), float(kidney)
