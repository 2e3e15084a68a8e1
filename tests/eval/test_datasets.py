"""Readers of benchmark data sets, on small made folders of the published shape, and on real nodules and organs."""

import csv
import gzip
import inspect
import os
from importlib import resources
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti
from voxelfm_hf.eval.benchmark.recipe import read_recipe
from voxelfm_hf.eval.datasets import About, BenchmarkData, dataset_names, load_dataset
from voxelfm_hf.eval.datasets.geometry import mask_centre, mask_centroids
from voxelfm_hf.eval.datasets.phantoms import LESION_POSITION
from voxelfm_hf.eval.datasets.tables import age_years, held_out
from voxelfm_hf.eval.datasets.totalsegmentator import STRUCTURES
from voxelfm_hf.eval.labeller import FINDINGS
from voxelfm_hf.eval.labels import binary_target, number_target, point_target, survival_target
from voxelfm_hf.eval.splits import patient_groups, split_rows
from voxelfm_hf.eval.tasks.segmentation import read_mask
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import DatasetError, RecipeError

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


def test_every_data_set_says_what_it_is(tmp_path):
    names = dataset_names()
    assert {"lidc", "openkbp", "phantoms", "ct_rate", "merlin", "totalsegmentator"} <= set(names)
    for name in names:
        module = load_dataset(name)
        about = module.ABOUT
        assert isinstance(about, About) and all((about.title, about.where, about.licence, about.citation, about.layout))
        assert name == "phantoms" or "://" in about.where
        assert module.__doc__ and callable(module.read)
    with pytest.raises(RecipeError, match="there is no data set tables: choose one of"):
        load_dataset("tables")


@pytest.mark.parametrize("name", [n for n in dataset_names() if n != "phantoms"])
def test_a_missing_data_set_says_where_to_get_it(name, tmp_path):
    module = load_dataset(name)
    with pytest.raises(DatasetError) as error:
        module.read(tmp_path)
    text = str(error.value)
    assert str(tmp_path) in text and module.ABOUT.where in text and module.ABOUT.layout in text


def test_geometry_of_masks():
    hu = np.zeros((5, 6, 7), np.int16)
    hu[1, 2, 3:6], hu[4, 0, 0] = 1, 3
    mask = volume(shape=hu.shape, hu=hu)
    centroids = mask_centroids(mask)
    assert set(centroids) == {1, 3}
    assert centroids[1] == pytest.approx((-20 + 4, 30 + 2 * 1.5, 5 + 2))
    assert centroids[3] == pytest.approx((-20, 30, 5 + 4 * 2))
    assert mask_centre(mask, 1) == pytest.approx(centroids[1])
    assert mask_centroids(volume(hu=np.zeros((2, 2, 2), np.int16))) == {}


def test_ages_and_held_out_patients():
    assert [age_years(text) for text in ("058Y", "58", "7.0", "", "006M", "n/a", None)] == [58, 58, 7] + [None] * 4
    chosen = [held_out(f"train_{i}", share=0.1) for i in range(5000)]
    assert np.mean(chosen) == pytest.approx(0.1, abs=0.015)
    assert chosen[:50] == [held_out(f"train_{i}", share=0.1) for i in range(50)]


# LIDC and OpenKBP -----------------------------------------------------------------------------------------------------


@pytest.fixture
def nodules(tmp_path):
    """Three nodules; the second has no matched readings."""
    rows = []
    for number, malignancy in enumerate((4.5, None, 3.0), start=1):
        name = f"LIDC-IDRI-0001_N{number}"
        hu = np.zeros((4, 20, 20), np.int16)
        hu[1:3, 5:9, 6:10] = 1
        write_nifti(volume(shape=hu.shape), tmp_path / "lidc" / "images" / f"{name}.nii.gz")
        write_nifti(volume(hu=hu), tmp_path / "lidc" / "masks" / f"{name}.nii.gz")
        readings = {name: malignancy for name in ("malignancy", "lobulation", "margin", "sphericity", "spiculation")}
        readings |= {"subtlety": 5, "texture": 2}
        rows.append(
            {
                "patient_id": "LIDC-IDRI-0001",
                "file": f"lidc/images/{name}.nii.gz",
                "mask_file": f"lidc/masks/{name}.nii.gz",
                "split": "train",
                "diameter_mm": 4.0 * number,
                "spacing_x": 1.0,
                "spacing_z": 2.0,
                "slice_thickness": 2.0,
                "calcification": 6 if number > 1 else 3,
                **{f"{reading}_mean": "" if value is None else value for reading, value in readings.items()},
            }
        )
    write_csv(tmp_path / "lidc" / "labels.csv", rows)
    return tmp_path


def test_nodules_are_regions_at_their_masks(nodules):
    lidc = load_dataset("lidc")
    data = lidc.read(nodules, edge_mm=10.0)
    assert ids_of(data) == data.labels.ids == [f"LIDC-IDRI-0001_N{n}" for n in (1, 2, 3)]
    region = data.tasks[0].regions[0]
    mask = read_mask(nodules / data.labels.column("mask_file")[0], num_classes=len(data.classes))
    assert region.edge_mm == 10 and region.centre_lps == pytest.approx(mask_centre(mask, 1))
    # On the cut, or not read: no label.
    assert data.labels.column("malignant") == [1, None, None]
    assert data.labels.column("round") == [1, None, 0] and data.labels.column("ill_defined") == [0, None, 1]
    assert data.labels.column("subtle") == [0, 0, 0] and data.labels.column("subsolid") == [1, 1, 1]
    assert data.labels.column("calcified") == [1, 0, 0]
    assert data.labels.column("crop_z_mm") == [8.0] * 3 and lidc.read(nodules).labels.column("crop_z_mm") == [8.0] * 3
    assert data.labels.column("diameter_band") == ["under 8 mm", "8 to 15 mm", "8 to 15 mm"]


def test_a_nodule_without_its_file(nodules):
    (nodules / "lidc" / "images" / "LIDC-IDRI-0001_N2.nii.gz").unlink()
    with pytest.raises(DatasetError, match="LIDC-IDRI-0001_N2.nii.gz does not exist"):
        load_dataset("lidc").read(nodules)


@real
def test_real_nodules():
    data = load_dataset("lidc").read(REAL)
    check(data)
    target = binary_target(data.labels, "malignant")
    assert np.isnan(target).sum() > 50 and 0.4 < np.nanmean(target) < 0.6
    diameter = number_target(data.labels, "diameter_mm")
    # Larger nodules are read as malignant: the baseline that everything has to beat.
    assert np.nanmean(diameter[target == 1]) > 1.5 * np.nanmean(diameter[target == 0])
    splits = split_rows(data.labels, patient_groups(data.labels))
    assert {name: int((splits == name).sum()) for name in ("train", "val", "test")} == {
        "train": 481,
        "val": 108,
        "test": 104,
    }


@real
def test_real_organs():
    data = load_dataset("openkbp").read(REAL)
    check(data)
    for organ in data.classes[1:]:
        points = point_target(data.labels, [f"centre_{organ}_{axis}" for axis in "xyz"])[:, 0]
        contoured = np.array(data.labels.column(f"contoured_{organ}")) == 1
        assert (np.isfinite(points).all(1) == contoured).all()
    left, right = (
        point_target(data.labels, [f"centre_{side}Parotid_{axis}" for axis in "xyz"])[:, 0, 0]
        for side in ("Left", "Right")
    )
    known = np.isfinite(left) & np.isfinite(right)
    assert (left[known] > right[known]).all()  # x grows to the patient's left


# Published data sets --------------------------------------------------------------------------------------------------


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
    assert data.labels.column("age") == [58] * 5 and data.labels.column("spacing_xy") == [0.75, 1.0, 1.25, 0.75, 1.0]
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
    write_csv(tmp_path / "train.csv", rows)
    data = rsna.read(tmp_path)
    check(data)
    assert data.labels.column("pe") == [1, 0, None] and data.labels.column("central_pe") == [1, None, None]
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


def test_nsclc_radiomics(tmp_path):
    nsclc_folder(tmp_path)
    data = load_dataset("nsclc_radiomics").read(tmp_path)
    check(data)
    assert data.labels.column("stage") == [4, 1] and data.labels.column("age") == [78.7, None]
    np.testing.assert_array_equal(survival_target(data.labels), [[100, 1], [200, 0]])
    assert all(task.scan.path.name == "0.000000-NA-82046" for task in data.tasks)
    assert "1 of 3 listed scans are not in the folder" in data.notes[0]


@pytest.mark.parametrize("flipped", [False, True])
def test_luna16_points_lie_on_their_nodules(tmp_path, flipped):
    """World coordinates as SimpleITK computes them, for both orientations that the set has."""
    image = SimpleITK.Image(80, 70, 60, SimpleITK.sitkInt16)
    image.SetSpacing((1.5, 1.5, 2.0))
    image.SetOrigin((60.0, 50.0, -200.0) if flipped else (-60.0, -50.0, -200.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1) if flipped else (1, 0, 0, 0, 1, 0, 0, 0, 1))
    image = SimpleITK.Cast(SimpleITK.AdditiveGaussianNoise(image - 800, 20), SimpleITK.sitkInt16)
    voxels = [(12, 40, 30), (70, 40, 30), (40, 10, 50)]
    rows = []
    for voxel in voxels:
        image[voxel] = 300
        x, y, z = image.TransformIndexToPhysicalPoint(voxel)
        rows.append({"seriesuid": "1.3.6.1", "coordX": x, "coordY": y, "coordZ": z, "diameter_mm": 6.0})
    rows.append({**rows[0], "seriesuid": "1.3.6.2"})
    (tmp_path / "subset8").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "subset8" / "1.3.6.1.mhd"))
    write_csv(tmp_path / "annotations.csv", rows)
    data = load_dataset("luna16").read(tmp_path, edge_mm=60.0)
    check(data)
    assert "1 of 2 scans with nodules are not in the folder" in data.notes[0]
    scan = read_volume(data.tasks[0].scan.path)
    points = point_target(data.labels, ["nodule_x", "nodule_y", "nodule_z"])[:, 0]
    low = scan.affine[:3, 3] - np.array(scan.spacing[::-1]) / 2
    high = low + np.array(scan.hu.shape[::-1]) * scan.spacing[::-1]
    off_centre = []
    for point, region in zip(points, data.tasks[0].regions, strict=True):
        z, y, x = np.rint(np.linalg.solve(scan.affine, [*point, 1])[:3]).astype(int)
        assert scan.hu[z, y, x] == 300
        centre = np.array(region.centre_lps)
        assert (np.abs(point - centre) <= 60 / 2 - 8 - 3 + 1e-9).all()
        assert (centre - 30 >= low - 1e-6).all() and (centre + 30 <= high + 1e-6).all()
        off_centre.append(np.abs(point - centre).max())
    assert max(off_centre) > 3
    assert data.labels.column("split") == ["test"] * len(points)


def test_luna16_leaves_out_crowded_cubes(tmp_path):
    image = SimpleITK.Image(60, 60, 60, SimpleITK.sitkInt16)
    (tmp_path / "subset0").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "subset0" / "a.mhd"))
    place = {"seriesuid": "a", "coordY": 30, "coordZ": 30, "diameter_mm": 5}
    write_csv(tmp_path / "annotations.csv", [{**place, "coordX": 28}, {**place, "coordX": 32}])
    with pytest.raises(DatasetError, match="holds no scan with a nodule"):
        load_dataset("luna16").read(tmp_path, edge_mm=40.0)


def test_airrc(tmp_path):
    image = SimpleITK.Image(6, 6, 4, SimpleITK.sitkInt16)
    for subset, series in (("subset0", "1.2.3"), ("subset7", "1.2.4")):
        (tmp_path / "LUNA16" / subset).mkdir(parents=True)
        SimpleITK.WriteImage(image, str(tmp_path / "LUNA16" / subset / f"{series}.mhd"))
    labels = tmp_path / "AirRC" / "labelsTr"
    for series in ("1.2.3", "1.2.4", "1.2.5"):
        write_nifti(volume(hu=np.zeros((4, 6, 6), np.int16)), labels / f"{series}.nii.gz")
    data = load_dataset("airrc").read(tmp_path)
    check(data)
    assert data.labels.column("split") == ["train", "val"] and len(data.classes) == 5
    assert "1 of 3 label maps have no scan" in data.notes[0]
    assert (tmp_path / data.labels.column("label_file")[1]).exists()


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


def test_totalsegmentator_masks_become_one_label_map(tmp_path):
    total = load_dataset("totalsegmentator")
    total_folder(tmp_path)
    chosen = ("spleen", "liver", "heart", "brain")
    data = total.read(tmp_path, structures=chosen, workers=0)
    check(data)
    assert data.classes == ("background", *chosen) and data.labels.column("split") == ["train", "test"]
    assert data.labels.column("age") == [60, None]
    written = tmp_path / data.labels.column("label_file")[0]
    array = np.asarray(nib.load(written).dataobj)
    found = nib.as_closest_canonical(nib.load(written)).get_fdata()
    assert found[6, 2, 3] == 1 and found[1, 2, 3] == 2 and found[4, 4, 4] == 3 and (found > 0).sum() == 3
    assert array.dtype == np.int16
    centres = mask_centroids(read_mask(written, num_classes=len(data.classes)))
    assert centres[1] == pytest.approx((-9.0, -3.0, 4.5))  # RAS (9, 3, 4.5) in LPS
    # A second call makes nothing again; other structures have other maps.
    stamp = written.stat().st_mtime_ns
    total.read(tmp_path, structures=chosen, workers=0)
    assert written.stat().st_mtime_ns == stamp
    assert (
        total.read(tmp_path, structures=("liver",), workers=0).labels.column("label_file")[0]
        != data.labels.column("label_file")[0]
    )


def test_totalsegmentator_names_and_faults(tmp_path):
    total = load_dataset("totalsegmentator")
    assert len(STRUCTURES) == len(set(STRUCTURES)) == 117
    assert (STRUCTURES[0], STRUCTURES[26], STRUCTURES[50], STRUCTURES[116]) == (
        "spleen",
        "vertebrae_L5",
        "heart",
        "costal_cartilages",
    )
    total_folder(tmp_path)
    with pytest.raises(DatasetError, match="has no structure kidney"):
        total.read(tmp_path, structures=("kidney",))
    # A mask on another grid is never laid over the scan.
    other = nib.Nifti1Image(np.zeros((8, 7, 6), np.uint8), np.diag([3.0, 3, 3, 1]))
    nib.save(other, tmp_path / "s0000" / "segmentations" / "liver.nii.gz")
    data = total.read(tmp_path, structures=("liver", "heart"), workers=0)
    assert data.labels.ids == ["s0001"] and "the mask of liver has another grid" in data.notes[0]
    (tmp_path / "s0001" / "ct.nii.gz").write_bytes(gzip.compress(b"broken"))
    (tmp_path / data.labels.column("label_file")[0]).unlink()
    with pytest.raises(DatasetError, match="no label map can be made"):
        total.read(tmp_path, structures=("liver", "heart"), workers=0)


def dicom_seg(path, mask, affine, spacing):
    """A binary multi-frame DICOM segmentation that leaves empty planes out, as the published ones do."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.pixels.utils import pack_bits
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    planes = [z for z in range(len(mask)) if mask[z].any()]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality, dataset.SegmentationType = "SEG", "BINARY"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = *mask.shape[1:], len(planes)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
    dataset.PixelData = pack_bits(mask[planes].astype(np.uint8).reshape(-1), pad=True)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[2]], spacing[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for z in planes:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = (affine @ [z, 0, 0, 1])[:3].tolist()
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    path.parent.mkdir(parents=True)
    dataset.save_as(path, enforce_file_format=True)


def test_mediastinal_nodes(tmp_path):
    scan = volume(shape=(5, 8, 9), spacing=(3.0, 1.5, 1.0))
    mask = np.zeros(scan.hu.shape, bool)
    mask[1, 2, 3], mask[3, 5:7, 6] = True, True
    rows = []
    for patient, parts in {"case_0001": ("CT", "SEG"), "case_0002": ("CT",)}.items():
        for part in parts:
            place = f"Mediastinal-Lymph-Node-SEG/{patient}/study/{part}"
            if part == "CT":
                write_dicom_series(scan, tmp_path / place)
            else:
                dicom_seg(tmp_path / place / "1-1.dcm", mask, scan.affine, scan.spacing)
            separator = "\\" if part == "SEG" else "/"
            location = f".{separator}{place.replace('/', separator)}"
            rows.append(
                {"Series UID": f"{patient}.{part}", "Subject ID": patient, "Modality": part}
                | {"File Location": location}
            )
    write_csv(tmp_path / "metadata.csv", rows)
    data = load_dataset("mediastinal_nodes").read(tmp_path, workers=0)
    check(data)
    assert data.labels.ids == ["case_0001"]
    read = read_volume(data.tasks[0].scan.path)
    found = read_mask(tmp_path / data.labels.column("label_file")[0], num_classes=2)
    np.testing.assert_allclose(found.affine, read.affine, atol=1e-4)
    np.testing.assert_array_equal(found.hu, mask)


def test_phantom_lesions_lie_somewhere_in_their_cubes(tmp_path):
    options = {"count": 16, "scans_each": 1, "shape": (48, 56, 56), "workers": 0}
    whole = load_dataset("phantoms").read(tmp_path, **options)
    check(whole)
    data = load_dataset("phantoms").read(tmp_path, **options, lesion_cube_mm=96.0, lesion_cubes=2)
    check(data)
    with_lesion = [name for name, value in zip(whole.labels.ids, whole.labels.column("lesion"), strict=True) if value]
    assert data.labels.ids == [f"{name}-cube{number}" for name in with_lesion for number in range(2)]
    assert data.tasks[0].regions[0].centre_lps != data.tasks[0].regions[1].centre_lps
    points = point_target(data.labels, LESION_POSITION)[:, 0]
    apart = []
    regions = [region for task in data.tasks for region in task.regions]
    for region, point, size in zip(regions, points, data.labels.column("lesion_diameter_mm"), strict=True):
        assert region.edge_mm == 96.0
        apart.append(np.abs(point - region.centre_lps).max())
        assert apart[-1] <= 96 / 2 - 8 - size / 2 + 1e-6
    assert np.median(apart) > 10
    # The cube is round the lesion of the image: what differs from the same person without one lies at the point.
    scan = read_volume(data.tasks[0].scan.path)
    seed = data.labels.column("seed")[0]
    differs = np.argwhere(scan.hu != make_phantom(seed, shape=options["shape"], lesion="none").volume.hu)
    centre = scan.affine[:3, :3] @ differs.mean(0) + scan.affine[:3, 3]
    assert np.linalg.norm(centre - points[0]) < 10
    # The same cubes on every machine and in every set that holds the person.
    again = load_dataset("phantoms").read(tmp_path, **{**options, "count": 8}, lesion_cube_mm=96.0, lesion_cubes=2)
    assert [task.regions for task in again.tasks] == [task.regions for task in data.tasks[: len(again.tasks)]]


# Recipes --------------------------------------------------------------------------------------------------------------


def packaged_recipes():
    folder = resources.files("voxelfm_hf.eval").joinpath("recipes")
    # Report generation has recipes of another shape.
    return sorted(
        path.name.removesuffix(".yaml")
        for path in folder.iterdir()
        if path.name.endswith(".yaml") and "\nreports:" not in path.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_fit_their_data_sets(name, quick):
    recipe = read_recipe(name, quick=quick)
    module = load_dataset(recipe.data)
    assert set(recipe.data_options) <= set(inspect.signature(module.read).parameters) - {"folder"}
    assert recipe.title and recipe.tasks


def test_every_data_set_has_a_recipe():
    # The phantoms are made, not published.
    assert {read_recipe(name).data for name in packaged_recipes()} >= set(dataset_names()) - {"phantoms"}


@pytest.mark.parametrize("name", ["ct_rate", "nsclc_radiomics", "totalsegmentator"])
def test_targets_of_recipes_are_columns(name, tmp_path):
    """Of those whose small folder is made here: every column that the recipe names exists."""
    module, recipe = load_dataset(name), read_recipe(name)
    if name == "ct_rate":
        ct_rate_folder(tmp_path)
        data = module.read(tmp_path)
    elif name == "totalsegmentator":
        total_folder(tmp_path)
        data = module.read(tmp_path, structures=("liver",), workers=0)
    else:
        nsclc_folder(tmp_path)
        data = module.read(tmp_path)
    for task in recipe.tasks:
        columns = [*task.targets, *task.read.get("alike", {})]
        columns += ["time", "event"] if task.task == "survival" else []
        columns += ["label_file"] if task.task == "segmentation" else []
        assert columns and all(column in data.labels.columns for column in columns)
