"""Synthetic chests, of which everything is known: findings, sizes, densities, a lesion, follow-up, scanner settings.

The set is made in the folder when it is not there. Scores on it are scores on drawings: they show whether a probe or an
encoder works at all, never how well it reads patients.

Targets: the ten findings, `lesion` and `lesion_<type>` as 0/1; any number that was drawn (`fat_mm`, `trabecular_hu`,
`lung_hu`, `effusion_mm`, ...); `time` and `event` with the true `log_risk`; `lesion_position_lps_mm_x`, `_y`, `_z`.
A lesion is smaller than a patch of a whole chest within the usual budgets: with `lesion_cube_mm` the rows are the
lesions, each in a cube that holds it somewhere, as in the published localisation.
The field of view is drawn round the body, as at a scanner, so spacing tells something of `fat_mm` and `width_scale`.
"""

from pathlib import Path

import numpy as np

from voxelfm_hf.data.phantom import LABELS
from voxelfm_hf.data.phantom.scan_set import FIRST_SEED, SHAPE, write_phantom_set
from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.geometry import cube_round, extent_lps
from voxelfm_hf.eval.labels import LabelTable, read_labels
from voxelfm_hf.features import Task
from voxelfm_hf.scan_list import Region, Scan

ABOUT = About(
    title="synthetic chests (voxelfm_hf phantoms)",
    where="python -m voxelfm_hf.data.phantom OUT",
    licence="Apache-2.0",
    citation="none: synthetic, made by voxelfm_hf",
    layout="labels.csv, images/*.nii.gz and, with masks, masks/*.nii.gz",
)

FINDINGS = (
    "pleural_effusion",
    "emphysema",
    "consolidation",
    "cardiomegaly",
    "pericardial_effusion",
    "coronary_calcification",
    "aortic_calcification",
    "lymphadenopathy",
    "hiatal_hernia",
    "medical_material",
)
ACQUISITION = (
    "spacing_z",
    "spacing_y",
    "field_of_view_mm_z",
    "field_of_view_mm_y",
    "slice_thickness",
    "noise_hu",
    "kernel_sharp",
    "contrast_arterial",
    "contrast_venous",
)
LESION_POSITION = ("lesion_position_lps_mm_x", "lesion_position_lps_mm_y", "lesion_position_lps_mm_z")
# Stream of random numbers of the cubes.
_CUBES = 17


def read(
    folder: str | Path,
    *,
    count: int = 300,
    scans_each: int = 2,
    shape: tuple[int, int, int] = SHAPE,
    masks: bool = False,
    lesion_cube_mm: float | None = None,
    lesion_cubes: int = 1,
    first_seed: int = FIRST_SEED,
    workers: int | None = None,
) -> BenchmarkData:
    """The scans of `count` people; those that are not in the folder are made.

    Args:
        folder: Of the set.
        count: People.
        scans_each: Scans of each person, with different scanner settings.
        shape: Voxels along (z, y, x).
        masks: Label maps of the organs too, in the column `label_file`.
        lesion_cube_mm: Edge of a cube round each lesion, shifted at random; whole scans by default.
        lesion_cubes: Cubes of each lesion, with other shifts.
        first_seed: Seed of the first person.
        workers: Processes that make scans; by default one a core.

    Raises:
        DatasetError: the folder holds a set with other settings.
    """
    folder = Path(folder)
    z, y, x = shape
    path = write_phantom_set(
        folder,
        count=count,
        first_seed=first_seed,
        shape=(z, y, x),
        scans_each=scans_each,
        masks=masks,
        workers=workers,
    )
    labels = read_labels(path, id_column="id")
    # The set may hold more people than are asked for.
    labels = labels.take([row for row, seed in enumerate(labels.column("seed")) if seed < first_seed + count])
    files = zip(labels.ids, labels.column("file"), strict=True)
    tasks = [Task(Scan(name, folder / file, named=True)) for name, file in files]
    if lesion_cube_mm is not None:
        labels, tasks = _lesions(labels, tasks, lesion_cube_mm, lesion_cubes)
    return BenchmarkData(
        tasks=tasks,
        labels=labels,
        folder=folder,
        baselines={"acquisition": ACQUISITION},
        acquisition=ACQUISITION,
        subgroups=("sex", "kernel", "contrast", "slice_thickness"),
        notes=["synthetic scans with known truth: no statement about patients"],
        classes=tuple(LABELS) if masks else (),
    )


def _lesions(labels: LabelTable, tasks: list[Task], edge_mm: float, each: int) -> tuple[LabelTable, list[Task]]:
    """The rows with a lesion, once a cube, and the cubes, which hold it somewhere."""
    rows = [row for row, lesion in enumerate(labels.column("lesion")) if lesion]
    labels = labels.take(rows)
    places = np.array([labels.column(name) for name in LESION_POSITION]).T
    found = []
    for row, place, diameter in zip(rows, places, labels.column("lesion_diameter_mm"), strict=True):
        scan = tasks[row].scan
        rng = np.random.default_rng([_CUBES, *scan.identifier.encode()])
        low, high = extent_lps(scan.path)
        regions = []
        for number in range(each):
            x, y, z = cube_round(place, diameter, edge_mm, low, high, rng).tolist()
            regions.append(Region(f"{scan.identifier}-cube{number}", (x, y, z), edge_mm))
        found.append(Task(scan, tuple(regions)))
    repeated = labels.take(np.repeat(np.arange(len(labels)), each))
    ids = [identifier for task in found for identifier in task.identifiers]
    return LabelTable(labels.source, ids, repeated.columns), found
