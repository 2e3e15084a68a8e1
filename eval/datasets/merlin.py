"""Merlin: abdominal CTs with reports and 30 findings taken from them; -1 (not mentioned clearly) is left empty here.

The published evaluation of VoxelFM counted -1 as absent. The files name studies, not patients, so rows of one patient
cannot be recognised; the published splits are used as they are.
"""

from pathlib import Path
from typing import Any

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.tables import label_table, number, on_disk, required_rows, whole_scans
from voxelfm_hf.volumes.errors import DatasetError

ABOUT = About(
    title="Merlin abdominal CT",
    where="https://stanfordaimi.azurewebsites.net/datasets/60b9c7ff-877b-48ce-96c3-0194c8205c40 (agreement)",
    licence="Stanford AIMI data set agreement, not for commercial use",
    citation="Blankemeier L et al., Merlin: A Vision Language Foundation Model for 3D Computed Tomography, 2024, "
    "arXiv:2406.06512",
    layout="merlin_data/STUDY.nii.gz, zero_shot_findings_disease_cls.csv and reports_final.csv (reports_final.xlsx "
    "saved as CSV in UTF-8)",
    sources=(
        "https://github.com/rmaguado/VoxelFM/tree/main/evaluation/Merlin",
        "https://github.com/alibaba-damo-academy/damo-radar",
    ),
)
_ID = "study id"


def read(folder: str | Path) -> BenchmarkData:
    """The volumes that are there, with findings and reports.

    Args:
        folder: Of the data set, unpacked.

    Returns:
        One row a study: the findings under their published names (0, 1, or empty), `report`, `split`.
    """
    folder = Path(folder)
    path = folder / "zero_shot_findings_disease_cls.csv"
    findings: dict[str, dict[str, float | None]] = {}
    for row in required_rows(path, ABOUT, (_ID,)):
        values = {name: number(cell, column=name, path=path) for name, cell in row.items() if name != _ID}
        odd = {name: value for name, value in values.items() if value not in (0, 1, -1, None)}
        if odd:
            name, value = next(iter(odd.items()))
            raise DatasetError(f"{path}: column {name} holds {value:g}: findings are 1, 0 or -1 (unknown)")
        findings[row[_ID]] = {name: None if value == -1 else value for name, value in values.items()}
    rows: list[dict[str, Any]] = []
    for row in required_rows(_reports(folder), ABOUT, (_ID, "Findings", "Split")):
        study = row[_ID]
        rows.append(
            {
                "id": study,
                "file": f"merlin_data/{study}.nii.gz",
                "study_id": study,
                "split": row["Split"] or None,
                "report": row["Findings"] or None,
                **findings.get(study, {}),
            }
        )
    rows, notes = on_disk(rows, folder, ABOUT)
    return BenchmarkData(
        tasks=whole_scans(rows, folder),
        labels=label_table("Merlin", rows),
        folder=folder,
        notes=[
            *notes,
            "findings were taken from the reports by a program; -1 counts as unknown",
            "the files do not say which studies are of one patient",
        ],
    )


def _reports(folder: Path) -> Path:
    """The reports as CSV; the published spreadsheet has to be saved as such."""
    path, spreadsheet = folder / "reports_final.csv", folder / "reports_final.xlsx"
    if not path.exists() and spreadsheet.exists():
        raise DatasetError(f"{spreadsheet} is a spreadsheet: save it as reports_final.csv (UTF-8) beside it")
    return path
