"""Mediastinal lymph nodes (LNQ 2023): chest CTs with a DICOM segmentation of nodes.

The segmentations are turned into label maps on the grid of the scan, once, under `labels/` of the folder. Most scans
of the collection are annotated only in part (often one node), so an unmarked voxel may be a node: scores are lower
bounds. The table does not say which scans are annotated in full. No split is used here; patients are drawn.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.label_maps import dicom_segmentation, with_label_maps
from voxelfm_hf.eval.datasets.tables import label_table, on_disk, required_rows, whole_scans

ABOUT = About(
    title="Mediastinal-Lymph-Node-SEG (LNQ)",
    where="https://www.cancerimagingarchive.net/collection/mediastinal-lymph-node-seg/",
    licence="CC BY 4.0",
    citation="Idris T et al., Mediastinal Lymph Node Quantification (LNQ): Segmentation of Heterogeneous CT Data, The "
    "Cancer Imaging Archive, 2024, doi:10.7937/QVAZ-JA09",
    layout="the download of the NBIA Data Retriever: metadata.csv and the folders it names",
    sources=(
        "https://www.cancerimagingarchive.net/collection/mediastinal-lymph-node-seg/",
        "https://github.com/rmaguado/VoxelFM/tree/main/evaluation/Mediastinal",
    ),
)
CLASSES = ("background", "lymph node")


def read(folder: str | Path, *, workers: int | None = None) -> BenchmarkData:
    """The patients with a scan and a segmentation.

    Args:
        folder: Holds metadata.csv.
        workers: Processes that make label maps; by default one a core.

    Returns:
        One row a patient with `label_file`.
    """
    folder = Path(folder)
    series: dict[str, dict[str, str]] = {}
    for row in required_rows(folder / "metadata.csv", ABOUT, ("Subject ID", "Modality", "File Location")):
        # "./Collection/Patient/...", with backslashes where it was downloaded under Windows.
        place = str(PurePosixPath(row["File Location"].replace("\\", "/")))
        series.setdefault(row["Subject ID"], {}).setdefault(row["Modality"], place)
    rows: list[dict[str, Any]] = [
        {
            "id": patient,
            "file": found["CT"],
            "segmentation": found["SEG"],
            "label_file": f"labels/{patient}.nii.gz",
            "patient_id": patient,
        }
        for patient, found in series.items()
        if {"CT", "SEG"} <= found.keys()
    ]
    rows, notes = on_disk(rows, folder, ABOUT)
    jobs = [_job(folder, row) for row in rows]
    rows, left_out = with_label_maps(rows, dicom_segmentation, jobs, folder, workers=workers)
    return BenchmarkData(
        tasks=whole_scans(rows, folder),
        labels=label_table("Mediastinal-Lymph-Node-SEG", rows),
        folder=folder,
        notes=[*notes, *left_out, "most scans are annotated only in part"],
        classes=CLASSES,
    )


def _job(folder: Path, row: dict[str, Any]) -> tuple[str, str, str]:
    files = sorted((folder / row["segmentation"]).glob("*.dcm"))
    segmentation = files[0] if files else folder / row["segmentation"]
    return str(segmentation), str(folder / row["file"]), str(folder / row["label_file"])
