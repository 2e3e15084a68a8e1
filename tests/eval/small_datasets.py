"""Small made folders of the shape in which data sets are published."""

import csv
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti
from voxelfm_hf.eval.datasets import BenchmarkData, load_dataset
from voxelfm_hf.eval.labeller import FINDINGS
from voxelfm_hf.eval.labels import number_target
from voxelfm_hf.eval.splits import patient_column_of, patient_groups
from voxelfm_hf.volumes import Volume

REAL = Path(os.environ.get("VOXELFM_TEST_DATA", "/nonexistent")) / "ct"
real = pytest.mark.skipif(not REAL.is_dir(), reason="VOXELFM_TEST_DATA names no folder with ct/")


def volume(*, shape=(4, 6, 6), spacing=(2.0, 1.5, 1.0), origin=(-20.0, 30.0, 5.0), hu=None):
    """A volume in LPS+ whose first voxel lies at `origin` (x, y, z)."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing
    affine[:3, 3], affine[3, 3] = origin, 1
    hu = np.random.default_rng(0).integers(-900, 300, shape).astype(np.int16) if hu is None else hu
    return Volume.from_array(hu, spacing=spacing, affine=affine, source="made")


def write_csv(path, rows, *, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def ids_of(data: BenchmarkData) -> list[str]:
    return [identifier for task in data.tasks for identifier in task.identifiers]


def check(data: BenchmarkData) -> None:
    """What every reader promises."""
    assert ids_of(data) == data.labels.ids and len(set(data.labels.ids)) == len(data.labels.ids)
    assert all(task.scan.path.exists() and task.scan.named for task in data.tasks)
    for column in [*data.acquisition, *data.subgroups, *(c for columns in data.baselines.values() for c in columns)]:
        data.labels.column(column)
    for column in data.acquisition:
        assert np.isfinite(number_target(data.labels, column)).any()
    patient_groups(data.labels)


def check_no_patients(data: BenchmarkData, studies: int) -> None:
    """Nobody counts patients in data that name studies only; their rows stay together all the same."""
    assert patient_column_of(data.labels) is None
    assert any("of one patient" in note or "no patients" in note for note in data.notes)
    assert len(set(patient_groups(data.labels))) == studies


def ct_rate_folder(folder):
    """Two training patients, the first with two studies and two reconstructions; one test patient; one brain."""
    names = {
        "train": ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_1", "train_3_a_1"],
        "valid": ["valid_1_a_1", "valid_1_a_2"],
    }
    for split, (labels, other) in {"train": ("train", "train"), "valid": ("valid", "validation")}.items():
        volumes = [f"{name}.nii.gz" for name in names[split]]
        data = folder / "dataset"
        write_csv(
            data / "multi_abnormality_labels" / f"{labels}_predicted_labels.csv",
            [{"VolumeName": v, **{f: int(f in ("Emphysema", v)) for f in FINDINGS}} for v in volumes],
        )
        write_csv(
            data / "radiology_text_reports" / f"{other}_reports.csv",
            [{"VolumeName": v, "Findings_EN": "Emphysema, mild.", "Impressions_EN": "Emphysema."} for v in volumes],
        )
        write_csv(
            data / "metadata" / f"{other}_metadata.csv",
            [
                {
                    "VolumeName": v,
                    "Manufacturer": "Philips",
                    "PatientSex": "F",
                    "PatientAge": "058Y",
                    "XYSpacing": f"[{0.75 + i / 4}, {0.75 + i / 4}]",
                    "ZSpacing": 1.5 + i,
                }
                for i, v in enumerate(volumes)
            ],
        )
        for name in names[split][: 4 if split == "train" else 2]:
            patient, study = "_".join(name.split("_")[:2]), "_".join(name.split("_")[:3])
            write_nifti(volume(), data / f"{split}_fixed" / patient / study / f"{name}.nii.gz")
    (folder / "dataset" / "metadata" / "no_chest_train.txt").write_text("dataset/train/train_2/x/train_2_a_1.nii.gz\n")


def nsclc_folder(folder):
    """Three patients in the table, two with scans, and segmentations beside them."""
    rows = [
        {
            "PatientID": f"LUNG1-00{i}",
            "age": age,
            "clinical.T.Stage": 2,
            "Overall.Stage": stage,
            "Histology": "large cell",
            "gender": "male",
            "Survival.time": 100 * i,
            "deadstatus.event": i % 2,
        }
        for i, (age, stage) in enumerate([("78.7", "IIIb"), ("NA", "I"), ("50", "II")], start=1)
    ]
    write_csv(folder / load_dataset("nsclc_radiomics").TABLE, rows)
    for i in (1, 2):
        study = folder / "NSCLC-Radiomics" / f"LUNG1-00{i}" / "study"
        write_dicom_series(volume(), study / "0.000000-NA-82046", seed=i)
        (study / "3.000000-Segmentation").mkdir()
        (study / "3.000000-Segmentation" / "1-1.dcm").write_bytes(b"another object")


def total_folder(folder):
    """Two scans in RAS, as published, with masks of three structures."""
    header = (
        "image_id;age;gender;institute;study_type;split;manufacturer;scanner_model;kvp;pathology;pathology_location"
    )
    lines = [header, "s0000;60;m;A;ct thorax;train;siemens;x;120;no;", "s0001;;f;A;ct head;test;philips;x;120;no;"]
    (folder / "meta.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    for name in ("s0000", "s0001"):
        (folder / name / "segmentations").mkdir(parents=True)
        hu = np.random.default_rng(0).integers(-900, 300, (8, 7, 6)).astype(np.int16)
        nib.save(nib.Nifti1Image(hu, affine), folder / name / "ct.nii.gz")
        for structure, place in {"liver": (1, 2, 3), "spleen": (6, 2, 3), "heart": (4, 4, 4)}.items():
            mask = np.zeros((8, 7, 6), np.uint8)
            if (name, structure) != ("s0001", "heart"):
                mask[place] = 1
            nib.save(nib.Nifti1Image(mask, affine), folder / name / "segmentations" / f"{structure}.nii.gz")
