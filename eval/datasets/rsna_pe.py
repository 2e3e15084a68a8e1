"""RSNA-STR pulmonary embolism: chest CT angiograms with labels of the whole study.

The table has a row an image; labels of a study repeat in all its rows. An indeterminate study has no value of `pe`, and
what describes an embolism (side, centre, chronic, ventricles) is empty where there is none, as the annotators left it
at 0 there. Only the published training studies have labels; they are split by study, since the files name no patients.
"""

from pathlib import Path
from typing import Any

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.tables import label_table, number, on_disk, required_rows, whole_scans

ABOUT = About(
    title="RSNA-STR Pulmonary Embolism CT (RSPECT)",
    where="https://www.kaggle.com/c/rsna-str-pulmonary-embolism-detection/data",
    licence="RSNA terms: not for commercial use, with citation",
    citation="Colak E et al., The RSNA Pulmonary Embolism CT Dataset, Radiology: Artificial Intelligence 3(2):e200254, "
    "2021, doi:10.1148/ryai.2021200254",
    layout="train.csv and train/STUDY/SERIES/*.dcm",
    sources=(
        "https://github.com/RSNA/AI-Challenge-Data/wiki/RSNA%E2%80%90STR-Pulmonary-Embolism-Detection",
        "https://github.com/rmaguado/VoxelFM/tree/main/evaluation/RSNA_PE",
    ),
)
OF_AN_EMBOLISM = (
    "rv_lv_ratio_gte_1",
    "leftsided_pe",
    "rightsided_pe",
    "central_pe",
    "chronic_pe",
    "acute_and_chronic_pe",
)
OF_THE_SCAN = ("qa_motion", "qa_contrast", "flow_artifact", "true_filling_defect_not_pe")
_STUDY, _SERIES, _NEGATIVE, _UNSURE = "StudyInstanceUID", "SeriesInstanceUID", "negative_exam_for_pe", "indeterminate"


def read(folder: str | Path) -> BenchmarkData:
    """The training series that are there.

    Args:
        folder: Of the unpacked archive.

    Returns:
        One row a series: `pe` and the columns of `OF_AN_EMBOLISM` and `OF_THE_SCAN` (0, 1, or empty).
    """
    folder = Path(folder)
    path = folder / "train.csv"
    columns = (_STUDY, _SERIES, _NEGATIVE, _UNSURE, *OF_AN_EMBOLISM, *OF_THE_SCAN)
    rows: dict[str, dict[str, Any]] = {}
    for row in required_rows(path, ABOUT, columns):
        study, series = row[_STUDY], row[_SERIES]
        if series in rows:
            continue
        value = {name: number(row[name], column=name, path=path) for name in columns[2:]}
        pe = None if value[_UNSURE] == 1 else 1 - int(value[_NEGATIVE] or 0)
        rows[series] = {
            "id": series,
            "file": f"train/{study}/{series}",
            "study_id": study,
            "pe": pe,
            **{name: value[name] if pe == 1 else None for name in OF_AN_EMBOLISM},
            **{name: value[name] for name in OF_THE_SCAN},
        }
    found, notes = on_disk(list(rows.values()), folder, ABOUT)
    return BenchmarkData(
        tasks=whole_scans(found, folder),
        labels=label_table("RSNA PE", found),
        folder=folder,
        notes=[*notes, "indeterminate studies are left out of pe", "split by study: the files name no patients"],
    )
