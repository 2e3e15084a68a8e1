"""iCTCF: chest CTs of patients with COVID-19 or other pneumonia, with severity and blood values.

The site shows the clinical table page by page and offers a ZIP of images a patient; what is read here is the layout of
VoxelFM's published evaluation: that table as one CSV and the DICOM files in one folder a patient. The names of the
columns were looked up there and could not be checked against the site.

`severe` compares severe and critical with mild and regular COVID-19; controls and suspected cases have no value. (The
published evaluation counted everybody else as not severe, which makes it partly a test for COVID-19.)
"""

from pathlib import Path
from typing import Any

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.tables import label_table, number, on_disk, required_rows, whole_scans

ABOUT = About(
    title="iCTCF (HUST-19)",
    where="https://ngdc.cncb.ac.cn/ictcf/HUST-19.php",
    licence="terms on the site, for research",
    citation="Ning W et al., Open resource of clinical data from patients with pneumonia for the prediction of "
    "COVID-19 outcomes via deep learning, Nat Biomed Eng 4:1197-1207, 2020, doi:10.1038/s41551-020-00633-5",
    layout="clinical.csv (columns ID, SARS-CoV-2 nucleic acids, Morbidity outcome, blood values) and "
    "ct/Patient_1/*.dcm with the ID's space as an underscore",
    sources=(
        "https://github.com/rmaguado/VoxelFM/tree/main/evaluation/iCTCF",
        "https://www.nature.com/articles/s41551-020-00633-5",
    ),
)
BLOOD_VALUES = ("HGB", "WBC", "CRP", "PCT", "CK")
_SEVERE = {"mild": 0, "regular": 0, "severe": 1, "critically ill": 1}
_COVID = {"positive": 1, "negative": 0}
_TEST, _OUTCOME = "SARS-CoV-2 nucleic acids", "Morbidity outcome"
# The site marks values outside the normal range, and limits of detection.
_MARKS = str.maketrans("", "", "<>↑↓ ")


def read(folder: str | Path) -> BenchmarkData:
    """The patients whose scan is there.

    Args:
        folder: Holds clinical.csv and ct/.

    Returns:
        One row a patient: `covid`, `severe` (0, 1, or empty), `outcome` in words and the columns of `BLOOD_VALUES`.
    """
    folder = Path(folder)
    path = folder / "clinical.csv"
    rows: list[dict[str, Any]] = []
    for row in required_rows(path, ABOUT, ("ID", _TEST, _OUTCOME, *BLOOD_VALUES)):
        name = row["ID"].strip().replace(" ", "_")
        outcome = row[_OUTCOME].strip()
        rows.append(
            {
                "id": name,
                "file": f"ct/{name}",
                "patient_id": name,
                "covid": _COVID.get(row[_TEST].strip().lower()),
                "severe": _SEVERE.get(outcome.lower()),
                "outcome": outcome or None,
                **{value: number(row[value].translate(_MARKS), column=value, path=path) for value in BLOOD_VALUES},
            }
        )
    rows, notes = on_disk(rows, folder, ABOUT)
    return BenchmarkData(
        tasks=whole_scans(rows, folder),
        labels=label_table("iCTCF", rows),
        folder=folder,
        notes=[*notes, "severe compares patients with confirmed COVID-19 only"],
    )
