"""Tuberculosis or non-tuberculous mycobacteria: chest CTs of 1,301 patients of a hospital in Tianjin.

The DICOM edition is read; the NIfTI edition of the same authors is windowed and scaled to 0 to 1, so its HU are lost.
Age and sex differ between the two groups, and scanners and kernels may: with the two sheets of PatientIndex.xlsx saved
as TB.csv and NTM.csv, age and sex stand beside as baselines. No split is published; patients are drawn.
"""

from pathlib import Path
from typing import Any

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.tables import age_years, label_table, required, required_rows, varying, whole_scans
from voxelfm_hf.volumes.errors import DatasetError

ABOUT = About(
    title="Mycobacterial CT imaging dataset (Tianjin)",
    where="https://www.kaggle.com/datasets/damianhan/dicom-dataset",
    licence="CC BY 4.0",
    citation="An Integrated Mycobacterial CT Imaging Dataset with Multispecies Information, Scientific Data, 2025",
    layout="TB/TB_001/*.dcm and NTM/Case_001/*.dcm; optional TB.csv and NTM.csv, the sheets of PatientIndex.xlsx",
    sources=(
        "https://www.kaggle.com/datasets/damianhan/dicom-dataset",
        "https://github.com/rmaguado/VoxelFM/tree/main/evaluation/Mycobacterial",
    ),
)
_SEX = {"1": "male", "2": "female"}


def read(folder: str | Path) -> BenchmarkData:
    """The patients that are there.

    Args:
        folder: Holds TB/ and NTM/.

    Returns:
        One row a patient: `tuberculosis` (0 or 1), and `age`, `sex`, `male`, `strain` where the sheets are there.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    for group in ("TB", "NTM"):
        facts = _sheet(folder / f"{group}.csv")
        for scan in sorted(path for path in required(folder / group, ABOUT).iterdir() if path.is_dir()):
            rows.append(
                {
                    "id": scan.name,
                    "file": f"{group}/{scan.name}",
                    "patient_id": scan.name,
                    "tuberculosis": int(group == "TB"),
                    **facts.get(scan.name, {}),
                }
            )
    if not rows:
        raise DatasetError(f"{folder} holds no patient: get {ABOUT.title} from {ABOUT.where} as {ABOUT.layout}")
    known = len(varying(rows, ("age", "male"))) == 2
    return BenchmarkData(
        tasks=whole_scans(rows, folder),
        labels=label_table("mycobacterial", rows),
        folder=folder,
        baselines={"age and sex": ("age", "male")} if known else {},
        subgroups=("sex", "age") if known else (),
        notes=["age and sex differ between the groups, scanner and kernel may: a score is not yet a diagnosis"],
    )


def _sheet(path: Path) -> dict[str, dict[str, Any]]:
    """Facts by patient; empty without the sheet. The legend below the table names no patient."""
    if not path.exists():
        return {}
    found = {}
    for row in required_rows(path, ABOUT, ("Number", "Gender", "Age")):
        sex = _SEX.get(row["Gender"].strip().removesuffix(".0"))
        found[row["Number"].strip()] = {
            "age": age_years(row["Age"]),
            "sex": sex,
            "male": None if sex is None else int(sex == "male"),
            "strain": row.get("Strain Type") or None,
        }
    return found
