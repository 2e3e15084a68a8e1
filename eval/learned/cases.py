"""Regions whose nature is known, of patients that pre-training has not seen: organs, synthetic lesions, nodules.

A region is a cube of fixed edge in mm, so neither the size of a crop nor the grid of a scan tells the label. Every task
asks for something inside one kind of scan; telling one collection of scans from another proves nothing.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.phantom.facts import LESION_TYPES
from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.eval.datasets.geometry import mask_centre
from voxelfm_hf.eval.datasets.lidc import EDGE_MM as NODULE_EDGE_MM
from voxelfm_hf.eval.datasets.lidc import INDETERMINATE
from voxelfm_hf.eval.datasets.openkbp import ORGANS
from voxelfm_hf.eval.labels import LabelTable, read_labels
from voxelfm_hf.eval.tasks.segmentation import read_mask
from voxelfm_hf.features import Task
from voxelfm_hf.scan_list import Region, Scan
from voxelfm_hf.volumes import Volume
from voxelfm_hf.volumes.errors import LabelError

logger = logging.getLogger(__name__)

# Fewer patients than folds leave folds without the class.
MIN_PATIENTS = 5
# Chosen with untrained models and histograms alone. From 96 mm on, the outline of the head tells an untrained model the
# organ (0.91 of the regions, 0.93 at 128 mm); at 32 to 64 mm it gets 0.82 and the histogram 0.79, so both leave room.
# 64 mm holds the most of the organ and its surroundings.
ORGAN_EDGE_MM = 64.0
# Holds the largest lesions, 30 mm with spikes beyond, at 1 mm a voxel in the small model's 40-voxel cube.
LESION_EDGE_MM = 40.0
LESION_VOXEL_MM = 1.0
# Pre-training uses seeds below 100,000.
FIRST_LESION_SEED = 1_000_000


@dataclass(frozen=True, eq=False)
class CaseSet:
    """Labelled regions of one task.

    Attributes:
        name: Short name of the task.
        target: What is to be told, in words.
        classes: Names of the classes 0, 1, ...
        labels: (n,) class of each region.
        patients: (n,) patient number of each region; all of a patient's regions share one.
        tasks: What `embed_scans` takes: scans with their regions.
        identifiers: (n,) ids of the regions, made of row numbers, in the order of the labels.
        edge_mm: Edge of the cubes.
        origin: Fingerprint of the regions, to name what is computed from them.
        baselines: Name -> (n, k) numbers that any encoder has to beat.
    """

    name: str
    target: str
    classes: tuple[str, ...]
    labels: np.ndarray
    patients: np.ndarray
    tasks: list[Task]
    identifiers: list[str]
    edge_mm: float
    origin: str
    baselines: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """What the task is scored by."""
        return "auroc" if len(self.classes) == 2 else "balanced_accuracy"


def organ_cases(ct: Path, *, splits: Sequence[str], edge_mm: float = ORGAN_EDGE_MM) -> CaseSet:
    """The head-and-neck organ at the centre of a region; only organs that were contoured in a scan.

    Args:
        ct: Folder with openkbp/labels.csv; paths in the table are relative to `ct`.
        splits: Splits of the patients to use.
        edge_mm: Edge of the cubes.

    Returns:
        One region an organ and scan, centred on the voxel of its mask that is nearest to the mask's centroid. Organs
        contoured in fewer than `MIN_PATIENTS` patients are left out.
    """
    table, fingerprint = _table(ct, "openkbp", splits)
    contoured = {name: [value == 1 for value in table.column(f"contoured_{name}")] for name in ORGANS}
    classes = tuple(name for name in ORGANS if sum(contoured[name]) >= MIN_PATIENTS)
    left_out = [f"{name} ({sum(contoured[name])})" for name in ORGANS if name not in classes]
    if left_out:
        logger.warning("organs contoured in fewer than %d scans are left out: %s", MIN_PATIENTS, ", ".join(left_out))
    tasks, labels, scans = [], [], []
    columns = [table.column(name) for name in ("row", "file", "label_file")]
    for index, (row, file, label_file) in enumerate(zip(*columns, strict=True)):
        mask = read_mask(ct / label_file, num_classes=len(ORGANS) + 1)
        regions = []
        for label, name in enumerate(classes):
            if contoured[name][index] and (mask.hu == ORGANS.index(name) + 1).any():
                centre = mask_centre(mask, ORGANS.index(name) + 1)
                regions.append(Region(f"organ-{row:05d}-{name}", centre, edge_mm))
                labels.append(label)
                scans.append(index)
        if regions:
            tasks.append(Task(Scan(f"organ-{row:05d}", ct / file, named=True), tuple(regions)))
    patients = np.unique(table.column("patient_id"), return_inverse=True)[1][scans]
    return _case_set("organ", "organ at the region's centre", classes, labels, patients, tasks, edge_mm, fingerprint)


def lesion_cases(folder: Path, *, count: int, edge_mm: float = LESION_EDGE_MM) -> CaseSet:
    """The type of a synthetic lung lesion at the centre of a region; the types take turns.

    Args:
        folder: Where the phantoms are written; those there already are used.
        count: Phantoms, each a patient of its own with a seed that pre-training does not use.
        edge_mm: Edge of the cubes, in voxels of 1 mm.
    """
    size = round(edge_mm / LESION_VOXEL_MM)
    tasks, labels = [], []
    for index in range(count):
        seed, label = FIRST_LESION_SEED + index, index % len(LESION_TYPES)
        path = folder / f"{size}-{seed}.nii.gz"
        if not path.exists():
            spacing = (LESION_VOXEL_MM,) * 3
            phantom = make_phantom(
                seed, shape=(size,) * 3, spacing=spacing, center_on="lesion", lesion=LESION_TYPES[label]
            )
            # The place in the scanner tells nothing, so the cube's centre is the origin.
            volume = Volume.from_array(phantom.volume.hu, spacing=spacing, source=path.name)
            write_nifti(volume, path)
        middle = ((size - 1) / 2 * LESION_VOXEL_MM,) * 3
        region = Region(f"lesion-{seed}", middle, edge_mm)
        tasks.append(Task(Scan(f"lesion-{seed}-scan", path, named=True), (region,)))
        labels.append(label)
    target = "type of a synthetic lung lesion"
    return _case_set("lesion", target, LESION_TYPES, labels, np.arange(count), tasks, edge_mm, str(LESION_VOXEL_MM))


def nodule_cases(ct: Path, *, splits: Sequence[str], edge_mm: float = NODULE_EDGE_MM) -> CaseSet:
    """Whether radiologists on average called a lung nodule rather malignant (mean above 3) or benign (below 3).

    This is an opinion on the same images, not pathology, and size explains most of it: `baselines` holds the diameter.
    Crops are a few slices thick, and thicker for larger nodules. Beyond them a cube repeats the edge, which shows where
    the crop ended: `baselines` holds the thickness of the crop too, cut off at the cube's edge.
    Nodules rated 3 on average (indeterminate) and those without matched readings are left out.

    Args:
        ct: Folder with lidc/labels.csv; paths in the table are relative to `ct`.
        splits: Splits of the patients to use.
        edge_mm: Edge of the cubes round the centre of the mask.
    """
    table, fingerprint = _table(ct, "lidc", splits)
    ratings = table.column("malignancy_mean")
    table = table.take([i for i, rating in enumerate(ratings) if rating is not None and rating != INDETERMINATE])
    tasks = []
    columns = [table.column(name) for name in ("row", "file", "mask_file")]
    crop_mm = []
    for row, file, mask_file in zip(*columns, strict=True):
        mask = read_mask(ct / mask_file, num_classes=2)
        # The table's own centres disagree with the masks in places, by up to 25 mm.
        region = Region(f"nodule-{row:05d}", mask_centre(mask, 1), edge_mm)
        crop_mm.append(mask.hu.shape[0] * mask.spacing[0])
        tasks.append(Task(Scan(f"nodule-{row:05d}-scan", ct / file, named=True), (region,)))
    labels = [int(rating > INDETERMINATE) for rating in table.column("malignancy_mean")]
    patients = np.unique(table.column("patient_id"), return_inverse=True)[1]
    diameter = np.log(np.array(table.column("diameter_mm"), dtype=float))[:, None]
    return _case_set(
        "nodule",
        "nodule read as rather malignant (mean rating above 3) or benign (below 3)",
        ("benign", "malignant"),
        labels,
        patients,
        tasks,
        edge_mm,
        fingerprint,
        {"diameter": diameter, "crop thickness": np.minimum(crop_mm, edge_mm)[:, None]},
    )


def _table(ct: Path, name: str, splits: Sequence[str]) -> tuple[LabelTable, str]:
    """The rows of some splits with their numbers as column `row`, and a fingerprint of the file."""
    path = ct / name / "labels.csv"
    if not path.is_file():
        raise LabelError(f"{path} does not exist: --ct names a folder with lidc/ and openkbp/, each with a labels.csv")
    table = read_labels(path, id_column="file")
    table = LabelTable(table.source, table.ids, {**table.columns, "file": table.ids, "row": [*range(len(table))]})
    chosen = [i for i, split in enumerate(table.column("split")) if split in splits]
    if not chosen:
        raise LabelError(f"{path} has no row in the split {' or '.join(splits)}")
    return table.take(chosen), hashlib.sha256(path.read_bytes()).hexdigest()


def _case_set(
    name: str,
    target: str,
    classes: tuple[str, ...],
    labels: Sequence[int],
    patients: np.ndarray,
    tasks: list[Task],
    edge_mm: float,
    origin: str,
    baselines: dict[str, np.ndarray] | None = None,
) -> CaseSet:
    return CaseSet(
        name=name,
        target=target,
        classes=classes,
        labels=np.array(labels),
        patients=patients,
        tasks=tasks,
        identifiers=[region.identifier for task in tasks for region in task.regions],
        edge_mm=edge_mm,
        origin=hashlib.sha256(f"{name} {edge_mm:g} {origin}".encode()).hexdigest()[:8],
        baselines=baselines or {},
    )
