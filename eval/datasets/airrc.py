"""AirRC: airway lumen and wall, pulmonary veins and arteries, drawn on chest CTs of LUNA16.

The label maps carry the names of the LUNA16 series that they were drawn on. Where the label maps are published could
not be established: layout and values are those of VoxelFM's evaluation code, and the address is that of the authors'
tools. Splits are the subsets of LUNA16, as in `luna16`.
"""

from pathlib import Path
from typing import Any

from voxelfm_hf.eval.datasets import About, BenchmarkData, luna16
from voxelfm_hf.eval.datasets.tables import label_table, required, whole_scans
from voxelfm_hf.volumes.errors import DatasetError

ABOUT = About(
    title="AirRC",
    where="https://github.com/b-niu/AirRC (label maps) and https://zenodo.org/records/3723295 (scans, LUNA16)",
    licence="not established for the label maps; CC BY 4.0 for the scans",
    citation="AirRC: https://github.com/b-niu/AirRC; Setio AAA et al., Med Image Anal 42:1-13, 2017, "
    "doi:10.1016/j.media.2017.06.015",
    layout="AirRC/labelsTr/SERIES.nii.gz and LUNA16/subset0/SERIES.mhd to subset9",
    sources=("https://github.com/rmaguado/VoxelFM/tree/main/evaluation/AirRC", "https://github.com/b-niu/AirRC"),
)
CLASSES = ("background", "airway lumen", "airway wall", "pulmonary veins", "pulmonary arteries")


def read(folder: str | Path) -> BenchmarkData:
    """The series with a label map whose scan is there.

    Args:
        folder: Holds AirRC/ and LUNA16/.

    Returns:
        One row a series with `label_file` and `split`.
    """
    folder = Path(folder)
    labels = sorted(required(folder / "AirRC" / "labelsTr", ABOUT).glob("*.nii.gz"))
    scans = luna16.series_files(required(folder / "LUNA16", ABOUT))
    rows: list[dict[str, Any]] = []
    for label in labels:
        series = label.name.removesuffix(".nii.gz")
        if series in scans:
            rows.append(
                {
                    "id": series,
                    "file": str(scans[series].relative_to(folder)),
                    "label_file": str(label.relative_to(folder)),
                    "study_id": series,
                    "split": luna16.split_of(scans[series]),
                }
            )
    if not rows:
        raise DatasetError(f"{folder} holds no label map with its LUNA16 scan: lay {ABOUT.title} out as {ABOUT.layout}")
    lost = len(labels) - len(rows)
    notes = [f"{lost} of {len(labels)} label maps have no scan in the folder"] if lost else []
    return BenchmarkData(
        tasks=whole_scans(rows, folder),
        labels=label_table("AirRC", rows),
        folder=folder,
        notes=[*notes, luna16.NO_PATIENTS],
        classes=CLASSES,
    )
