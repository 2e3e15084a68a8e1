"""Readers of data sets that are scans with a table of findings or measurements."""

import numpy as np
import pytest

from tests.eval.small_datasets import check, check_no_patients, ct_rate_folder, nsclc_folder, volume, write_csv
from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti
from voxelfm_hf.eval.datasets import load_dataset
from voxelfm_hf.eval.labeller import FINDINGS
from voxelfm_hf.eval.labels import survival_target
from voxelfm_hf.eval.splits import patient_groups
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import DatasetError


def test_ct_rate(tmp_path):
    ct_rate_folder(tmp_path)
    data = load_dataset("ct_rate").read(tmp_path)
    check(data)
    assert data.labels.ids == ["train_1_a_1", "train_1_a_2", "train_1_b_1", "valid_1_a_1", "valid_1_a_2"]
    # Reconstructions and studies of a patient are one group; the published validation patients are the test split.
    groups = patient_groups(data.labels)
    assert len(set(groups[:3])) == 1 and len(set(groups)) == 2
    assert set(data.labels.column("split")[:3]) <= {"train", "val"} and len(set(data.labels.column("split")[:3])) == 1
    assert data.labels.column("split")[3:] == ["test", "test"]
    assert data.labels.column("Emphysema") == [1] * 5 and data.labels.column("Atelectasis") == [0] * 5
    assert data.labels.column("report")[0] == "Emphysema, mild.\nEmphysema."
    assert data.labels.column("age") == [58] * 5 and data.labels.column("spacing_x") == [0.75, 1.0, 1.25, 0.75, 1.0]
    assert data.labels.column("spacing_y") == data.labels.column("spacing_x")
    assert data.labels.column("spacing_z") == [1.5, 2.5, 3.5, 1.5, 2.5]
    assert "1 of 6 listed scans are not in the folder" in data.notes[0]
    one = load_dataset("ct_rate").read(tmp_path, one_a_study=True)
    assert one.labels.ids == ["train_1_a_1", "train_1_b_1", "valid_1_a_1"]


def test_ct_rate_refuses_other_tables(tmp_path):
    ct_rate_folder(tmp_path)
    path = tmp_path / "dataset" / "multi_abnormality_labels" / "train_predicted_labels.csv"
    write_csv(path, [{"VolumeName": "train_1_a_1.nii.gz", "Emphysema": 1}])
    with pytest.raises(DatasetError, match="has no column Medical material"):
        load_dataset("ct_rate").read(tmp_path)
    write_csv(path, [{"VolumeName": "chest.nii.gz", **dict.fromkeys(FINDINGS, 1)}])
    with pytest.raises(DatasetError, match=r"names a volume chest.nii.gz: names look like train_1_a_1"):
        load_dataset("ct_rate").read(tmp_path)


def test_merlin(tmp_path):
    merlin = load_dataset("merlin")
    for study in ("AC1", "AC2"):
        write_nifti(volume(), tmp_path / "merlin_data" / f"{study}.nii.gz")
    findings = [
        {"study id": "AC1", "splenomegaly": 1, "ascites": -1},
        {"study id": "AC2", "splenomegaly": 0, "ascites": 0},
    ]
    write_csv(tmp_path / "zero_shot_findings_disease_cls.csv", findings)
    (tmp_path / "reports_final.xlsx").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"is a spreadsheet: save it as reports_final.csv \(UTF-8\) beside it"):
        merlin.read(tmp_path)
    reports = [
        {"study id": study, "Findings": "SPLEEN:\nEnlarged, 15 cm.", "Split": split, "Few Shot": ""}
        for study, split in (("AC1", "train"), ("AC2", "test"), ("AC3", "val"))
    ]
    write_csv(tmp_path / "reports_final.csv", reports)
    data = merlin.read(tmp_path)
    check(data)
    check_no_patients(data, studies=2)
    assert data.labels.column("ascites") == [None, 0] and data.labels.column("splenomegaly") == [1, 0]
    assert data.labels.column("split") == ["train", "test"] and "15 cm" in data.labels.column("report")[0]
    findings[0]["ascites"] = 7
    write_csv(tmp_path / "zero_shot_findings_disease_cls.csv", findings)
    with pytest.raises(DatasetError, match=r"column ascites holds 7: findings are 1, 0 or -1"):
        merlin.read(tmp_path)


def test_rsna_pe(tmp_path):
    rsna = load_dataset("rsna_pe")
    rows = []
    for study, negative, unsure in (("s1", 0, 0), ("s2", 1, 0), ("s3", 0, 1)):
        for image in range(2):
            rows.append(
                {
                    "StudyInstanceUID": study,
                    "SeriesInstanceUID": f"{study}.1",
                    "SOPInstanceUID": f"{study}.1.{image}",
                    "pe_present_on_image": 0,
                    "negative_exam_for_pe": negative,
                    "indeterminate": unsure,
                    **dict.fromkeys(rsna.OF_THE_SCAN, 0),
                    **dict.fromkeys(rsna.OF_AN_EMBOLISM, int(study == "s1")),
                }
            )
        write_dicom_series(volume(), tmp_path / "train" / study / f"{study}.1", seed=int(study[1]))
    rows.append({**rows[0], "SeriesInstanceUID": "s1.2"})
    write_dicom_series(volume(), tmp_path / "train" / "s1" / "s1.2", seed=9)
    write_csv(tmp_path / "train.csv", rows)
    data = rsna.read(tmp_path)
    check(data)
    check_no_patients(data, studies=3)
    assert data.labels.column("pe") == [1, 0, None, 1] and data.labels.column("central_pe") == [1, None, None, 1]
    assert read_volume(data.tasks[0].scan.path).hu.shape == (4, 6, 6)


def test_ictcf(tmp_path):
    outcomes = ("Mild", "Critically ill", "Control (Community-acquired pneumonia)", "Suspected")
    tests = ("Positive", "Positive", "Negative", "")
    rows = [
        {
            "ID": f"Patient {i}",
            "SARS-CoV-2 nucleic acids": test,
            "Morbidity outcome": outcome,
            **{"HGB": "132.0", "WBC": "↑12.4", "CRP": "<0.5", "PCT": "", "CK": "67"},
        }
        for i, (outcome, test) in enumerate(zip(outcomes, tests, strict=True), start=1)
    ]
    write_csv(tmp_path / "clinical.csv", rows)
    for i in (1, 2, 3):
        write_dicom_series(volume(), tmp_path / "ct" / f"Patient_{i}", seed=i)
    data = load_dataset("ictcf").read(tmp_path)
    check(data)
    assert data.labels.ids == ["Patient_1", "Patient_2", "Patient_3"]
    assert data.labels.column("covid") == [1, 1, 0] and data.labels.column("severe") == [0, 1, None]
    assert data.labels.column("WBC") == [12.4] * 3 and data.labels.column("CRP") == [0.5] * 3
    assert data.labels.column("PCT") == [None] * 3
    rows[0]["CK"] = "high"
    write_csv(tmp_path / "clinical.csv", rows)
    with pytest.raises(DatasetError, match="column CK holds high, which is no number"):
        load_dataset("ictcf").read(tmp_path)


def test_osic(tmp_path):
    weeks = {"ID1": (-4, 2, 10, 20), "ID2": (8, 8)}
    rows = [
        {
            "Patient": patient,
            "Weeks": week,
            "FVC": 3000 - 5 * week,
            "Percent": 80,
            "Age": 70,
            "Sex": "Male",
            "SmokingStatus": "Ex-smoker",
        }
        for patient, visits in weeks.items()
        for week in visits
    ]
    write_csv(tmp_path / "train.csv", rows)
    for seed, patient in enumerate(weeks):
        write_dicom_series(volume(), tmp_path / "train" / patient, seed=seed)
    data = load_dataset("osic").read(tmp_path)
    check(data)
    assert data.labels.column("fvc_ml") == [2990, 2960] and data.labels.column("visit_week") == [2, 8]
    assert data.labels.column("fvc_slope")[0] == pytest.approx(-5) and data.labels.column("fvc_slope")[1] is None


def test_nsclc_radiomics(tmp_path):
    nsclc_folder(tmp_path)
    data = load_dataset("nsclc_radiomics").read(tmp_path)
    check(data)
    assert data.labels.column("stage") == [4, 1] and data.labels.column("age") == [78.7, None]
    np.testing.assert_array_equal(survival_target(data.labels), [[100, 1], [200, 0]])
    assert all(task.scan.path.name == "0.000000-NA-82046" for task in data.tasks)
    assert "1 of 3 listed scans are not in the folder" in data.notes[0]


def test_mycobacterial(tmp_path):
    for group, names in {"TB": ("TB_001", "TB_002"), "NTM": ("Case_001",)}.items():
        for seed, name in enumerate(names):
            write_dicom_series(volume(), tmp_path / group / name, seed=seed)
    data = load_dataset("mycobacterial").read(tmp_path)
    check(data)
    assert data.labels.column("tuberculosis") == [1, 1, 0] and data.baselines == {}
    sheet = [
        {"Number": "TB_001", "Gender": "1", "Age": "49"},
        {"Number": "TB_002", "Gender": "2", "Age": "61"},
        {"Number": "Gender: 1 male, 2 female", "Gender": "", "Age": ""},
    ]
    write_csv(tmp_path / "TB.csv", sheet)
    data = load_dataset("mycobacterial").read(tmp_path)
    check(data)
    assert data.labels.column("age") == [49, 61, None] and data.labels.column("male") == [1, 0, None]
    assert data.baselines == {"age and sex": ("age", "male")}
