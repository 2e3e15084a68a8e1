"""NSCLC-Radiomics (Lung1): radiotherapy planning CTs of 422 patients with lung cancer, and how long they lived.

`time` is in days from the start of treatment and `event` is death. Age and stage stand beside as baselines: a model
that reads less than them from a scan adds nothing.
"""

from pathlib import Path
from typing import Any

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.tables import label_table, number, on_disk, required, required_rows, whole_scans

ABOUT = About(
    title="NSCLC-Radiomics (Lung1)",
    where="https://www.cancerimagingarchive.net/collection/nsclc-radiomics/",
    licence="CC BY-NC 3.0",
    citation="Aerts HJWL et al., Data From NSCLC-Radiomics, The Cancer Imaging Archive, 2019, "
    "doi:10.7937/K9/TCIA.2015.PF0M9REI; Aerts HJWL et al., Nat Commun 5:4006, 2014, doi:10.1038/ncomms5006",
    layout="NSCLC-Radiomics-Lung1.clinical-version3-Oct-2019.csv and NSCLC-Radiomics/LUNG1-001/STUDY/SERIES/*.dcm",
    sources=(
        "https://www.cancerimagingarchive.net/collection/nsclc-radiomics/",
        "https://github.com/rmaguado/VoxelFM/tree/main/evaluation/NSCLC_Radiomics",
    ),
)
TABLE = "NSCLC-Radiomics-Lung1.clinical-version3-Oct-2019.csv"
STAGES = {"i": 1, "ii": 2, "iiia": 3, "iiib": 4}
_TIME, _EVENT = "Survival.time", "deadstatus.event"


def read(folder: str | Path) -> BenchmarkData:
    """The patients whose scan is there.

    Args:
        folder: Holds the clinical table and NSCLC-Radiomics/.

    Returns:
        One row a patient: `time`, `event`, `age`, `sex`, `stage` (1 to 4 for I, II, IIIa, IIIb), `histology`.
    """
    folder = Path(folder)
    path = folder / TABLE
    images = required(folder / "NSCLC-Radiomics", ABOUT)
    columns = ("PatientID", "age", "Overall.Stage", "Histology", "gender", _TIME, _EVENT)
    rows: list[dict[str, Any]] = []
    for row in required_rows(path, ABOUT, columns):
        patient = row["PatientID"]
        series = _ct_series(images / patient)
        rows.append(
            {
                "id": patient,
                "file": str(series.relative_to(folder)),
                "patient_id": patient,
                "time": number(row[_TIME], column=_TIME, path=path),
                "event": number(row[_EVENT], column=_EVENT, path=path),
                "age": number(row["age"], column="age", path=path),
                "sex": row["gender"] or None,
                "stage": STAGES.get(row["Overall.Stage"].strip().lower()),
                "histology": row["Histology"] or None,
            }
        )
    rows, notes = on_disk(rows, folder, ABOUT)
    return BenchmarkData(
        tasks=whole_scans(rows, folder),
        labels=label_table("NSCLC-Radiomics", rows),
        folder=folder,
        baselines={"age": ("age",), "stage": ("stage",), "age and stage": ("age", "stage")},
        subgroups=("sex", "histology"),
        notes=notes,
    )


def _ct_series(patient: Path) -> Path:
    """The folder with the most DICOM files: structure sets and segmentations are single files."""
    counts: dict[Path, int] = {}
    for file in patient.rglob("*.dcm"):
        counts[file.parent] = counts.get(file.parent, 0) + 1
    return max(counts, key=lambda series: (counts[series], str(series)), default=patient)
