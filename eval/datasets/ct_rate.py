"""CT-RATE: chest CTs with reports and 18 findings taken from the reports by a text classifier.

A volume is named SPLIT_PATIENT_STUDY_RECONSTRUCTION, as in train_1_a_2.nii.gz: reconstructions of one study share
report and labels, so they share a split and are never each other's negatives. The published validation patients are the
test split here, and a tenth of the published training patients, drawn by a hash of their name, is the validation split.

The volumes of train_fixed and valid_fixed are read, whose headers are right; those of train and valid need rescaling by
the metadata. Volumes that the set itself lists as no chests are left out.
"""

import ast
from pathlib import Path
from typing import Any

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.tables import (
    age_years,
    held_out,
    label_table,
    number,
    on_disk,
    required_rows,
    varying,
    whole_scans,
)
from voxelfm_hf.eval.labeller import FINDINGS
from voxelfm_hf.volumes.errors import DatasetError

ABOUT = About(
    title="CT-RATE",
    where="https://huggingface.co/datasets/ibrahimhamamci/CT-RATE (gated)",
    licence="CC BY-NC-SA 4.0, with terms of use",
    citation="Hamamci IE et al., Developing Generalist Foundation Models from a Multimodal Dataset for 3D Computed "
    "Tomography, 2024, arXiv:2403.17834",
    layout="dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz, the same under dataset/valid_fixed, and "
    "dataset/multi_abnormality_labels/*.csv; optional dataset/radiology_text_reports and dataset/metadata",
    sources=(
        "https://huggingface.co/datasets/ibrahimhamamci/CT-RATE",
        "https://github.com/ibrahimethemhamamci/CT-CLIP",
        "https://github.com/rmaguado/VoxelFM/tree/main/evaluation/CT_RATE",
    ),
)
# Published split -> first part of the names of the label, report and metadata files, and of the list of other scans.
_FILES = {
    "train": ("train_predicted_labels", "train_reports", "train_metadata", "no_chest_train"),
    "valid": ("valid_predicted_labels", "validation_reports", "validation_metadata", "no_chest_valid"),
}
VALIDATION_SHARE = 0.1


def read(folder: str | Path, *, one_a_study: bool = False) -> BenchmarkData:
    """The volumes that are there, with findings, reports and scanner facts.

    Args:
        folder: Folder that holds dataset/.
        one_a_study: Only the first reconstruction of each study.

    Returns:
        One row a volume: the 18 findings (0/1) under their names, `report`, and of the metadata `spacing_z`,
        `spacing_y`, `spacing_x` (mm), `manufacturer`, `sex`, `age` where the file has them.
    """
    folder = Path(folder)
    rows = [row for split in _FILES for row in _rows(folder, split)]
    rows, notes = on_disk(rows, folder, ABOUT)
    if one_a_study:
        first: dict[str, dict[str, Any]] = {}
        for row in sorted(rows, key=lambda row: row["reconstruction"]):
            first.setdefault(row["study_id"], row)
        rows = sorted(first.values(), key=lambda row: row["id"])
    acquisition = varying(rows, ("spacing_z", "spacing_x"))
    return BenchmarkData(
        tasks=whole_scans(rows, folder),
        labels=label_table("CT-RATE", rows),
        folder=folder,
        baselines={"acquisition": acquisition} if acquisition else {},
        acquisition=acquisition,
        subgroups=varying(rows, ("sex", "age", "manufacturer")),
        notes=[*notes, "findings were taken from the reports by a text classifier, not read again"],
    )


def _rows(folder: Path, split: str) -> list[dict[str, Any]]:
    labels, reports, metadata, others = _FILES[split]
    data = folder / "dataset"
    path = data / "multi_abnormality_labels" / f"{labels}.csv"
    listed = data / "metadata" / f"{others}.txt"
    names = listed.read_text(encoding="utf-8").split() if listed.exists() else []
    no_chest = {name.rsplit("/", 1)[-1] for name in names}
    texts = _optional(data / "radiology_text_reports" / f"{reports}.csv", ("Findings_EN", "Impressions_EN"))
    facts = _optional(data / "metadata" / f"{metadata}.csv", ())
    rows = []
    for row in required_rows(path, ABOUT, ("VolumeName", *FINDINGS)):
        name = row["VolumeName"]
        if name in no_chest:
            continue
        parts = name.removesuffix(".nii.gz").split("_")
        if len(parts) != 4 or not parts[3].isdigit():
            raise DatasetError(f"{path} names a volume {name}: names look like train_1_a_1.nii.gz")
        patient, study = "_".join(parts[:2]), "_".join(parts[:3])
        text = texts.get(name, {})
        rows.append(
            {
                "id": name.removesuffix(".nii.gz"),
                "file": f"dataset/{split}_fixed/{patient}/{study}/{name}",
                "patient_id": patient,
                "study_id": study,
                "reconstruction": int(parts[3]),
                "split": "test" if split == "valid" else _train_or_val(patient),
                **{finding: number(row[finding], column=finding, path=path) for finding in FINDINGS},
                "report": "\n".join(filter(None, (text.get("Findings_EN"), text.get("Impressions_EN")))) or None,
                **_scanner(facts.get(name, {})),
            }
        )
    return rows


def _train_or_val(patient: str) -> str:
    return "val" if held_out(patient, share=VALIDATION_SHARE) else "train"


def _optional(path: Path, columns: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Rows by volume name, empty where the file was not downloaded."""
    if not path.exists():
        return {}
    return {row["VolumeName"]: row for row in required_rows(path, ABOUT, ("VolumeName", *columns))}


def _scanner(row: dict[str, str]) -> dict[str, Any]:
    try:
        in_plane = float(ast.literal_eval(row.get("XYSpacing", ""))[0])  # "[0.75, 0.75]": square pixels
    except (ValueError, SyntaxError, TypeError, IndexError):
        in_plane = None
    return {
        "spacing_z": number(row.get("ZSpacing"), column="ZSpacing", path=Path("the metadata")),
        "spacing_y": in_plane,
        "spacing_x": in_plane,
        "manufacturer": row.get("Manufacturer") or None,
        "sex": row.get("PatientSex") or None,
        "age": age_years(row.get("PatientAge")),
    }
