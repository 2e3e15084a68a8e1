"""OpenKBP head-and-neck planning CTs with up to seven organs at risk.

One row a scan. An organ without voxels was not contoured, which does not mean absent: its `contoured_<organ>` is 0 and
its centre is empty, so that it is left out of losses and scores. Spinal cord and oesophagus end where the clinician
stopped contouring, so their centres say less than those of the other organs.
"""

from pathlib import Path
from typing import Any

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.geometry import mask_centroids
from voxelfm_hf.eval.datasets.tables import required
from voxelfm_hf.eval.labels import LabelTable, read_labels
from voxelfm_hf.eval.tasks.segmentation import read_mask
from voxelfm_hf.features import Task
from voxelfm_hf.scan_list import Scan

ABOUT = About(
    title="OpenKBP CTs and organs at risk",
    where="https://github.com/ababier/open-kbp",
    licence="MIT; the images come from TCIA head-and-neck collections, some of which TCIA restricted later",
    citation="Babier A et al., OpenKBP: The open-access knowledge-based planning grand challenge and dataset, "
    "Med Phys 48:5549-5561, 2021, doi:10.1002/mp.14845",
    layout="openkbp/labels.csv, openkbp/images/*.nii.gz and openkbp/labels/*.nii.gz",
)

# The values 1, 2, ... of the label maps.
ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible")
CLASSES = ("background", *ORGANS)
# The table counts the axes of the files, which run to posterior, left and inferior.
_SPACING = {"spacing_0": "spacing_y", "spacing_1": "spacing_x", "spacing_2": "spacing_z"}


def read(folder: str | Path) -> BenchmarkData:
    """Whole scans with label maps and organ centres.

    Args:
        folder: Folder that holds openkbp/; paths in its table are relative to it.

    Returns:
        One row a scan. Columns beside those of the table, whose spacings are called `spacing_z`, `spacing_y` and
        `spacing_x` (mm): `centre_<organ>_x`, `_y`, `_z`, the centroid of the organ's voxels in LPS mm, empty where it
        was not contoured.
    """
    folder = Path(folder)
    table = read_labels(required(folder / "openkbp" / "labels.csv", ABOUT), id_column="file")
    names = [Path(file).name.split(".")[0] for file in table.ids]
    named = {_SPACING.get(name, name): values for name, values in table.columns.items()}
    columns: dict[str, list[Any]] = {"id": names, **named, "file": table.ids}
    columns |= {f"centre_{organ}_{axis}": [] for organ in ORGANS for axis in "xyz"}
    tasks = []
    for name, file, label_file in zip(names, table.ids, table.column("label_file"), strict=True):
        tasks.append(Task(Scan(name, required(folder / file, ABOUT), named=True)))
        centres = mask_centroids(read_mask(required(folder / label_file, ABOUT), num_classes=len(CLASSES)))
        for value, organ in enumerate(ORGANS, start=1):
            for axis, millimetres in zip("xyz", centres.get(value, (None, None, None)), strict=True):
                columns[f"centre_{organ}_{axis}"].append(millimetres)
    return BenchmarkData(
        tasks=tasks,
        labels=LabelTable("openkbp/labels.csv", names, columns),
        folder=folder,
        baselines={"spacing": ("spacing_x", "spacing_z")},
        acquisition=("spacing_x", "spacing_z"),
        notes=["organs that were not contoured are left out of losses and scores"],
        classes=CLASSES,
    )
