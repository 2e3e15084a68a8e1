"""OSIC pulmonary fibrosis: a baseline chest CT and lung function over one to two years.

The layout is that of the Kaggle competition, which is open to everybody; the published evaluation of VoxelFM used the
OSIC data repository (FVC in percent of predicted), so numbers do not compare.

Visits are weeks from the CT. `fvc_ml` and `fvc_percent` are those of the visit nearest to it, `fvc_slope` the slope in
ml a week of a straight line through all visits (three or more), `visit_week` how far the nearest visit is.
"""

from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.tables import label_table, number, on_disk, required_rows, whole_scans

ABOUT = About(
    title="OSIC Pulmonary Fibrosis Progression",
    where="https://www.kaggle.com/c/osic-pulmonary-fibrosis-progression/data",
    licence="rules of the competition",
    citation="Open Source Imaging Consortium, OSIC Pulmonary Fibrosis Progression, Kaggle, 2020",
    layout="train.csv and train/PATIENT/*.dcm",
    sources=("https://www.kaggle.com/c/osic-pulmonary-fibrosis-progression/data",),
)
_NUMBERS = ("Weeks", "FVC", "Percent", "Age")


def read(folder: str | Path) -> BenchmarkData:
    """The training patients whose scan is there.

    Args:
        folder: Of the unpacked archive.

    Returns:
        One row a patient: `fvc_ml`, `fvc_percent`, `fvc_slope`, `visit_week`, `age`, `sex`, `smoking`.
    """
    folder = Path(folder)
    path = folder / "train.csv"
    visits: dict[str, list[dict[str, Any]]] = {}
    for row in required_rows(path, ABOUT, ("Patient", *_NUMBERS, "Sex", "SmokingStatus")):
        values = {name: number(row[name], column=name, path=path) for name in _NUMBERS}
        if values["Weeks"] is not None and values["FVC"] is not None:
            visits.setdefault(row["Patient"], []).append({**row, **values})
    rows, notes = on_disk([_patient(name, found) for name, found in visits.items()], folder, ABOUT)
    return BenchmarkData(
        tasks=whole_scans(rows, folder),
        labels=label_table("OSIC", rows),
        folder=folder,
        baselines={"age": ("age",)},
        subgroups=("sex", "smoking"),
        notes=notes,
    )


def _patient(name: str, visits: list[dict[str, Any]]) -> dict[str, Any]:
    nearest = min(visits, key=lambda visit: (abs(visit["Weeks"]), visit["Weeks"]))
    weeks = np.array([visit["Weeks"] for visit in visits])
    volumes = np.array([visit["FVC"] for visit in visits])
    enough = len(set(weeks.tolist())) >= 3
    return {
        "id": name,
        "file": f"train/{name}",
        "patient_id": name,
        "fvc_ml": nearest["FVC"],
        "fvc_percent": nearest["Percent"],
        "fvc_slope": float(np.polyfit(weeks, volumes, 1)[0]) if enough else None,
        "visit_week": nearest["Weeks"],
        "age": nearest["Age"],
        "sex": nearest["Sex"] or None,
        "smoking": nearest["SmokingStatus"] or None,
    }
