"""What a phantom is made of: every number that is drawn, so that each can serve as a known truth.

Four independent random streams per seed (body, findings, lesion, acquisition). All draws are independent of each
other, with the exceptions that the dataclasses state, so that a probe can be judged on one fact without the others
giving it away.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

LESION_TYPES = ("none", "solid", "ground_glass", "calcified", "spiculated", "cavity")
KERNELS = ("smooth", "sharp")
CONTRAST_PHASES = ("none", "arterial", "venous")
FINDING_PREVALENCE = 0.25
_BODY, _FINDINGS, _LESION, _ACQUISITION = range(4)


@dataclass(frozen=True)
class Body:
    """The person: sizes, tissue and sex.

    Uniform draws: sex (half and half), width/depth/height scale 0.92-1.08 of the reference thorax, subcutaneous fat
    6-32 mm, chest wall muscle 9-16 mm, trabecular bone 70-230 HU, lung -880 to -820 HU, liver 48-66 HU (unenhanced),
    aorta 24-38 mm. The cardiothoracic ratio is 0.40-0.48, or 0.55-0.65 with cardiomegaly.
    """

    sex: str
    width_scale: float
    depth_scale: float
    height_scale: float
    fat_mm: float
    muscle_mm: float
    trabecular_hu: float
    lung_hu: float
    liver_hu: float
    aorta_diameter_mm: float
    cardiothoracic_ratio: float

    @property
    def scale(self) -> np.ndarray:
        """Size relative to the reference thorax along (z, y, x)."""
        return np.array([self.height_scale, self.depth_scale, self.width_scale])


@dataclass(frozen=True)
class Findings:
    """Severities; 0 means absent. Each finding is present with probability 0.25, independently of all others.

    pleural_effusion_*_mm: depth of the fluid at the back, 12-45 (right, left or both sides, equally likely);
    emphysema_fraction: share of the lung destroyed, 0.08-0.40; consolidation_mm: radius, 16-36;
    pericardial_effusion_mm: thickness 8-18; coronary_calcification, aortic_calcification: number of plaques, 3-12;
    lymphadenopathy_mm: largest node, 14-26; hiatal_hernia_mm: width 30-60; cardiomegaly and
    medical_material (a pacemaker with its lead): 0 or 1.
    """

    pleural_effusion_right_mm: float
    pleural_effusion_left_mm: float
    emphysema_fraction: float
    consolidation_mm: float
    consolidation_side: str
    cardiomegaly: int
    pericardial_effusion_mm: float
    coronary_calcification: int
    aortic_calcification: int
    lymphadenopathy_mm: float
    hiatal_hernia_mm: float
    medical_material: int

    def labels(self) -> dict[str, int]:
        """Presence (0 or 1) of each finding by name."""
        return {
            "pleural_effusion": int(max(self.pleural_effusion_right_mm, self.pleural_effusion_left_mm) > 0),
            "emphysema": int(self.emphysema_fraction > 0),
            "consolidation": int(self.consolidation_mm > 0),
            "cardiomegaly": int(self.cardiomegaly > 0),
            "pericardial_effusion": int(self.pericardial_effusion_mm > 0),
            "coronary_calcification": int(self.coronary_calcification > 0),
            "aortic_calcification": int(self.aortic_calcification > 0),
            "lymphadenopathy": int(self.lymphadenopathy_mm > 0),
            "hiatal_hernia": int(self.hiatal_hernia_mm > 0),
            "medical_material": int(self.medical_material > 0),
        }


@dataclass(frozen=True)
class Lesion:
    """One lung lesion, or none.

    type: one of LESION_TYPES, equally likely; diameter_mm: log-uniform 8-30, whatever the type, so that size does not
    give the type away; side: right or left, equally likely; position_lps_mm: centre as (x, y, z) in scanner LPS mm,
    None without a lesion; density: where in its type's HU range the lesion lies, 0-1.
    """

    type: str
    diameter_mm: float
    side: str
    density: float
    position_lps_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Acquisition:
    """How the scan was made, independent of the person.

    kernel: smooth or sharp, equally likely; noise_hu: standard deviation, 8-18 (smooth) or 20-45 (sharp);
    contrast: equally likely phases; slice_thickness_mm: the slice spacing times 1, 1.25 or 1.5 (slices overlap);
    spacing_mm and field_of_view_mm: (z, y, x); offset_lps_mm: where the thorax's reference point lies in scanner LPS.
    """

    kernel: str
    noise_hu: float
    contrast: str
    slice_thickness_mm: float
    spacing_mm: tuple[float, float, float]
    field_of_view_mm: tuple[float, float, float]
    offset_lps_mm: tuple[float, float, float]


# Fields whose column in a table of facts has another name.
_COLUMNS = {"spacing_mm": "spacing", "slice_thickness_mm": "slice_thickness"}


@dataclass(frozen=True)
class PhantomFacts:
    """Everything that is known about a phantom."""

    seed: int
    acquisition_seed: int
    body: Body
    findings: Findings
    lesion: Lesion
    acquisition: Acquisition

    def row(self) -> dict[str, float | int | str | None]:
        """One flat table row: every drawn number, tuples spread over _z/_y/_x (or _x/_y/_z for LPS positions).

        Spacing and slice thickness are called as in the tables of other data sets.
        """
        row: dict[str, float | int | str | None] = {"seed": self.seed, "acquisition_seed": self.acquisition_seed}
        for name in ("body", "findings", "lesion", "acquisition"):
            part = getattr(self, name)
            for field in fields(part):
                value = getattr(part, field.name)
                key = f"{name}_{field.name}" if name == "lesion" else _COLUMNS.get(field.name, field.name)
                if "_lps_" in field.name:
                    row |= dict(zip((f"{key}_{axis}" for axis in "xyz"), value or (None,) * 3, strict=True))
                elif isinstance(value, tuple):
                    row |= dict(zip((f"{key}_{axis}" for axis in "zyx"), value, strict=True))
                else:
                    row[key] = value
        return row | self.findings.labels()

    def as_dict(self) -> dict:
        """The same facts nested, ready for JSON."""
        return asdict(self)


def draw_body(seed: int, *, cardiomegaly: bool) -> Body:
    """Draw a person."""
    rng = np.random.default_rng([seed, _BODY])
    draw = rng.uniform
    return Body(
        sex=str(rng.choice(("female", "male"))),
        width_scale=draw(0.92, 1.08),
        depth_scale=draw(0.92, 1.08),
        height_scale=draw(0.92, 1.08),
        fat_mm=draw(6, 32),
        muscle_mm=draw(9, 16),
        trabecular_hu=draw(70, 230),
        lung_hu=draw(-880, -820),
        liver_hu=draw(48, 66),
        aorta_diameter_mm=draw(24, 38),
        cardiothoracic_ratio=draw(0.55, 0.65) if cardiomegaly else draw(0.40, 0.48),
    )


def draw_findings(seed: int) -> Findings:
    """Draw which findings are present and how severe they are."""
    rng = np.random.default_rng([seed, _FINDINGS])

    def severity(low: float, high: float) -> float:
        present, value = rng.random() < FINDING_PREVALENCE, rng.uniform(low, high)
        return value if present else 0.0

    effusion, side, other = severity(12, 45), rng.integers(3), rng.uniform(12, 45)
    return Findings(
        pleural_effusion_right_mm=effusion if side != 1 else 0.0,
        pleural_effusion_left_mm=(effusion if side == 1 else other * (side == 2)) if effusion else 0.0,
        emphysema_fraction=severity(0.08, 0.40),
        consolidation_mm=severity(16, 36),
        consolidation_side=str(rng.choice(("right", "left"))),
        cardiomegaly=int(severity(1, 2) > 0),
        pericardial_effusion_mm=severity(8, 18),
        coronary_calcification=int(severity(3, 13)),
        aortic_calcification=int(severity(3, 13)),
        lymphadenopathy_mm=severity(14, 26),
        hiatal_hernia_mm=severity(30, 60),
        medical_material=int(severity(1, 2) > 0),
    )


def draw_lesion(seed: int) -> tuple[Lesion, np.random.Generator]:
    """Draw a lesion without its place; the generator goes on to draw the place."""
    rng = np.random.default_rng([seed, _LESION])
    lesion = Lesion(
        type=str(rng.choice(LESION_TYPES)),
        diameter_mm=float(np.exp(rng.uniform(np.log(8), np.log(30)))),
        side=str(rng.choice(("right", "left"))),
        density=rng.random(),
    )
    return lesion, rng


def draw_acquisition(
    acquisition_seed: int,
    *,
    body: Body,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float] | None,
) -> Acquisition:
    """Draw a scanner setting; without spacing, the field of view is drawn round the chest and shared by the voxels."""
    rng = np.random.default_rng([acquisition_seed, _ACQUISITION])
    kernel = str(rng.choice(KERNELS))
    noise_hu = rng.uniform(8, 18) if kernel == "smooth" else rng.uniform(20, 45)
    contrast = str(rng.choice(CONTRAST_PHASES))
    thickness_factor = float(rng.choice((1.0, 1.25, 1.5)))
    offset = (rng.uniform(-15, 15), rng.uniform(-190, -140), rng.uniform(-400, 200))
    length_mm = rng.uniform(300, 330) * body.height_scale
    width_mm = 2 * (132 * body.width_scale + body.muscle_mm + body.fat_mm) * rng.uniform(1.08, 1.25)
    if spacing is None:
        in_plane = width_mm / min(shape[1:])
        spacing = (length_mm / shape[0], in_plane, in_plane)
    spacing_mm = _rounded(spacing, 4)
    return Acquisition(
        kernel=kernel,
        noise_hu=noise_hu,
        contrast=contrast,
        slice_thickness_mm=round(spacing_mm[0] * thickness_factor, 4),
        spacing_mm=spacing_mm,
        field_of_view_mm=_rounded([n * s for n, s in zip(shape, spacing_mm, strict=True)], 4),
        offset_lps_mm=_rounded(offset, 3),
    )


def _rounded(values: Sequence[float], digits: int) -> tuple[float, float, float]:
    a, b, c = (round(float(v), digits) for v in values)
    return a, b, c
