import csv
import json
import shutil
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.phantom.facts import LESION_TYPES
from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.eval.encoders.intensity import histogram
from voxelfm_hf.eval.encoders.untrained import untrained_model
from voxelfm_hf.eval.learned import comparison as learned
from voxelfm_hf.eval.learned.cases import CaseSet, lesion_cases, mask_centre, nodule_cases, organ_cases
from voxelfm_hf.eval.learned.features import (
    centre_slices,
    histogram_features,
    model_features,
)
from voxelfm_hf.eval.learned.linear_probe import out_of_fold
from voxelfm_hf.eval.learned.results import write_curve, write_results
from voxelfm_hf.features import Task
from voxelfm_hf.hub import load, weight_hash
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.scan_list import Region, Scan
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import LabelError, ModelError

SETTINGS = learned.Settings(seeds=2, replicates=50)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model folder."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("model") / "small"
    config = VoxelFMConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, patch_size=8, image_size=16, layerscale_value=1.0
    )
    VoxelFMModel(config).save_pretrained(folder)
    VoxelFMImageProcessor(patch_size=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Two regions each of 15 patients: noise round a HU that the class fixes, three classes."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    tasks, labels = [], []
    for patient in range(15):
        hu = np.full((16, 24, 32), -1000, np.int16)  # air behind, as in a scan
        hu[:, :16] = rng.normal(0, 5, (16, 16, 32)) + (-200, 40, 300)[patient % 3]
        path = write_nifti(Volume.from_array(hu, spacing=(1, 1, 1)), folder / f"{patient}.nii.gz")
        regions = tuple(Region(f"r{patient}-{i}", (7.5 + 16 * i, 7.5, 7.5), 16.0) for i in range(2))
        tasks.append(Task(Scan(f"s{patient}", path, named=True), regions))
        labels += [patient % 3] * 2
    return CaseSet(
        name="made",
        target="HU",
        classes=("a", "b", "c"),
        labels=np.array(labels),
        patients=np.arange(15).repeat(2),
        tasks=tasks,
        identifiers=[region.identifier for task in tasks for region in task.regions],
        edge_mm=16.0,
        origin="0",
    )


def test_histogram_of_a_constant_cube():
    features = histogram(np.full((4, 4, 4), 40.0))
    assert features.shape == (34,)
    assert np.flatnonzero(features[:32]).tolist() == [16]  # 40 HU lies in the bin from 0 to 62.5
    assert features[16] == 1 and features[32] == 40 and features[33] == 0
    assert histogram(np.full((2, 2, 2), 1900.0))[31] == 1  # beyond the last edge counts in the last bin


def test_histograms_are_in_hu_and_tell_classes_of_hu(cases):
    found = histogram_features(cases, VoxelFMImageProcessor(patch_size=8), region_size=16)
    features, beside = found["histogram"], found["histogram + centre"]
    np.testing.assert_array_equal(beside[:, :34], features)
    np.testing.assert_array_equal(beside[:, 34:], features)  # 2 patches an axis: the central 8 are the cube
    expected = np.array([-200, 40, 300])[cases.labels]
    assert np.abs(features[:, 32] - expected).max() < 1
    found = out_of_fold([features], cases.labels, cases.patients)
    assert (found[0].argmax(1) == cases.labels).all()


def test_probe_keeps_patients_together():
    # Features tell patients apart and nothing else; labels are drawn by patient.
    rng = np.random.default_rng(1)
    patients = np.arange(40).repeat(5)
    features = rng.normal(size=(40, 60))[patients] + 0.01 * rng.normal(size=(200, 60))
    labels = rng.permutation(np.arange(40) % 2)[patients]
    grouped = out_of_fold([features], labels, patients)[0, :, 1]
    leaking = out_of_fold([features], labels, np.arange(200))[0, :, 1]
    assert roc_auc_score(labels, leaking) > 0.99
    assert 0.25 < roc_auc_score(labels, grouped) < 0.75


def test_probabilities_come_from_held_out_rows_for_every_row_and_seed():
    rng = np.random.default_rng(2)
    labels, patients = np.arange(60) % 3, np.arange(60)
    features = np.eye(3)[labels] + 0.1 * rng.normal(size=(60, 3))
    found = out_of_fold([features, features], labels, patients)
    assert found.shape == (2, 60, 3)
    np.testing.assert_allclose(found.sum(2), 1)
    assert (found.argmax(2) == labels).all()
    assert not np.array_equal(found[0], found[1])  # other folds
    np.testing.assert_array_equal(found[:1], out_of_fold([features], labels, patients))


def test_fewer_patients_than_folds_are_refused():
    labels, patients = np.array([0] * 30 + [1] * 12), np.r_[np.arange(30), np.arange(30, 34).repeat(3)]
    features = np.random.default_rng(0).normal(size=(42, 3))
    with pytest.raises(LabelError, match="the rarest in 4 patients: a cross-validation of 5 folds needs"):
        out_of_fold([features], labels, patients)
    with pytest.raises(LabelError, match="1 classes, the rarest in 34 patients"):
        out_of_fold([features], np.zeros(42, int), patients)
    assert out_of_fold([features], labels, patients, folds=4).shape == (1, 42, 2)


def test_covariates_decide_where_features_are_noise():
    rng = np.random.default_rng(3)
    labels, patients = np.arange(80) % 2, np.arange(80)
    noise, size = rng.normal(size=(80, 20)), labels[:, None] + 0.3 * rng.normal(size=(80, 1))
    alone = out_of_fold([noise], labels, patients)[0, :, 1]
    beside = out_of_fold([noise], labels, patients, covariates=size)[0, :, 1]
    assert roc_auc_score(labels, alone) < 0.75 < 0.95 < roc_auc_score(labels, beside)


@pytest.mark.parametrize("classes", [2, 4])
def test_score_is_the_mean_over_seeds(classes):
    rng = np.random.default_rng(classes)
    labels = np.arange(50) % classes
    found = rng.dirichlet(np.ones(classes), (50, 3))
    if classes == 2:
        expected = np.mean([roc_auc_score(labels, found[:, s, 1]) for s in range(3)])
    else:
        expected = np.mean([balanced_accuracy_score(labels, found[:, s].argmax(1)) for s in range(3)])
    assert learned.mean_over_seeds(labels, found, weights=np.ones(50)) == pytest.approx(expected)


def test_untrained_twin_has_the_same_shape_other_weights_and_a_seed(model, tmp_path):
    twins = [untrained_model(model, tmp_path / where, seed=seed) for where, seed in (("a", 0), ("b", 0), ("a", 1))]
    hashes = [weight_hash(folder) for folder in (model, *twins)]
    assert hashes[1] == hashes[2] and len(set(hashes)) == 3
    ours, theirs = (load(folder)[0].config for folder in (model, twins[0]))
    assert ours.hidden_size == theirs.hidden_size and ours.layerscale_value == theirs.layerscale_value


def test_features_follow_the_order_of_the_cases_and_differ_between_twins(model, cases, tmp_path):
    twin = untrained_model(model, tmp_path, seed=0)
    ours, theirs = (model_features(folder, cases, tmp_path / "stores", region_size=16) for folder in (model, twin))
    assert ours["CLS"].shape == ours["patch mean"].shape == (30, 24)
    np.testing.assert_array_equal(ours["CLS + patch mean"], np.hstack((ours["CLS"], ours["patch mean"])))
    np.testing.assert_allclose(ours["patch mean + centre"], np.tile(ours["patch mean"], 2), atol=1e-6)
    assert not np.allclose(ours["CLS"], theirs["CLS"], atol=1e-2)
    backwards = CaseSet(**{**vars(cases), "identifiers": cases.identifiers[::-1]})
    again = model_features(model, backwards, tmp_path / "stores", region_size=16)
    np.testing.assert_array_equal(again["CLS"], ours["CLS"][::-1])


def test_the_centre_of_a_cube_is_its_middle_patch_or_the_middle_eight(tmp_path):
    hu = np.full((24, 24, 24), -1000, np.int16)
    hu[8:16, 8:16, 8:16] = 700
    path = write_nifti(Volume.from_array(hu, spacing=(1, 1, 1)), tmp_path / "cube.nii.gz")
    region = Region("r", (11.5, 11.5, 11.5), 24.0)
    case = CaseSet(
        "one", "HU", ("a",), np.zeros(1, int), np.zeros(1, int), [Task(Scan("s", path, named=True), (region,))], ["r"],
        24.0, "0",
    )  # fmt: skip
    beside = histogram_features(case, VoxelFMImageProcessor(patch_size=8), region_size=24)["histogram + centre"]
    assert beside[0, 34 + 32] == pytest.approx(700, abs=1) and beside[0, 34 + 33] == pytest.approx(0, abs=1)
    assert centre_slices((5, 4, 1)) == (slice(2, 3), slice(1, 3), slice(0, 1))


def test_mask_centre_lies_in_the_mask_and_in_lps(tmp_path):
    mask = np.zeros((9, 9, 3), np.uint8)  # (x, y, z), a ring open at one side: its centroid is outside
    mask[1:8, 1:8, 1] = 1
    mask[2:7, 2:7, 1] = 0
    mask[1:8, 1, 1] = 0
    ras = np.diag([-2.0, -2, 5, 1])
    ras[:3, 3] = [10, 20, 30]
    nib.save(nib.Nifti1Image(mask, ras), tmp_path / "mask.nii.gz")
    centre = mask_centre(read_volume(tmp_path / "mask.nii.gz", assume_hu=True), 1)
    i, j, k = np.linalg.solve(ras, [-centre[0], -centre[1], centre[2], 1])[:3].round(6)
    assert mask[int(i), int(j), int(k)] == 1
    voxels = np.argwhere(mask)
    distances = np.linalg.norm((voxels - voxels.mean(0)) * [2, 2, 5], axis=1)
    chosen = np.linalg.norm(([i, j, k] - voxels.mean(0)) * [2, 2, 5])
    assert chosen == pytest.approx(distances.min())


def write_ct(folder: Path) -> None:
    """A folder like the real one: 6 head scans with two organs, 4 nodules."""
    rows = []
    for i in range(8):
        name = f"pt_{i}.nii.gz"
        labels = np.zeros((8, 8, 8), np.uint8)
        labels[1:3, 1:3, 1:3], labels[5:7, 5:7, 5:7] = 1, 2
        for sub, array in (("images", np.zeros((8, 8, 8), np.int16)), ("labels", labels)):
            (folder / "openkbp" / sub).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-4.0, -4, 4, 1])), folder / "openkbp" / sub / name)
        contoured = {f"contoured_{organ}": 0 for organ in learned_organs()}
        contoured |= {"contoured_Brainstem": 1, "contoured_SpinalCord": int(i < 5)}
        split = "train" if i == 7 else ("val", "test")[i % 2]
        paths = {"file": f"openkbp/images/{name}", "label_file": f"openkbp/labels/{name}"}
        rows.append({"patient_id": f"pt_{i}", **paths, "split": split, **contoured})
    write_csv(folder / "openkbp" / "labels.csv", rows)
    rows = []
    for i, rating in enumerate(["4.5", "3.0", "", "1.25", "2.75"]):
        mask = np.zeros((8, 8, 4), np.uint8)
        mask[3:5, 4:6, 1:3] = 1
        for sub, array in (("images", np.zeros((8, 8, 4), np.int16)), ("masks", mask)):
            (folder / "lidc" / sub).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 2.5, 1])), folder / "lidc" / sub / f"{i}.nii.gz")
        paths = {"file": f"lidc/images/{i}.nii.gz", "mask_file": f"lidc/masks/{i}.nii.gz"}
        facts = {"diameter_mm": 5.0 + i, "malignancy_mean": rating, "split": "val"}
        rows.append({"patient_id": f"SECRET-{i // 4}", **paths, **facts})
    write_csv(folder / "lidc" / "labels.csv", rows)


def learned_organs():
    return ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible")


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_organs_only_where_contoured_and_unseen(tmp_path):
    write_ct(tmp_path)
    found = organ_cases(tmp_path, splits=("val", "test"))
    assert found.classes == ("Brainstem", "SpinalCord")
    assert np.bincount(found.labels).tolist() == [7, 5]  # not the train patient, not the cords without contour
    assert len(set(found.patients)) == 7 and len(found.identifiers) == 12
    region = found.tasks[0].regions[1]
    # Voxels 5 and 6 at 4 mm are equally near to the centroid.
    assert region.identifier == "organ-00000-SpinalCord" and set(region.centre_lps) <= {20.0, 24.0}
    with pytest.raises(LabelError, match="no row in the split final"):
        organ_cases(tmp_path, splits=("final",))


def test_nodules_without_the_indeterminate_and_the_unrated(tmp_path):
    write_ct(tmp_path)
    found = nodule_cases(tmp_path, splits=("val",))
    assert found.labels.tolist() == [1, 0, 0]
    assert found.patients.tolist() == [0, 0, 1]
    assert np.exp(found.baselines["diameter"][:, 0]) == pytest.approx([5, 8, 9])
    assert found.baselines["crop thickness"][:, 0].tolist() == [10, 10, 10]
    x, y, z = found.tasks[0].regions[0].centre_lps
    assert 3 <= x <= 4 and 4 <= y <= 5 and 2.5 <= z <= 5
    assert "SECRET" not in " ".join(found.identifiers)


def test_a_folder_without_labels_is_a_sentence(tmp_path):
    with pytest.raises(LabelError, match="labels.csv does not exist"):
        organ_cases(tmp_path, splits=("val",))


def test_lesions_take_turns_and_lie_in_the_middle(tmp_path):
    found = lesion_cases(tmp_path, count=7, edge_mm=40.0)
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert found.tasks[1].regions[0].identifier == "lesion-1000001"
    phantom = make_phantom(1_000_001, shape=(40,) * 3, spacing=(1.0,) * 3, center_on="lesion", lesion=LESION_TYPES[1])
    stored = np.asarray(nib.load(found.tasks[1].scan.path).dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(stored, phantom.volume.hu)
    centre = np.argwhere(phantom.mask("lesion")).mean(0)
    assert np.abs(centre - found.tasks[1].regions[0].centre_lps).max() < 1.5


@pytest.fixture
def quick(cases, monkeypatch):
    """One made task, and probes of one strength in three folds."""
    monkeypatch.setattr(learned, "read_cases", lambda *_: [cases])
    monkeypatch.setattr(learned, "out_of_fold", partial(out_of_fold, folds=3, strengths=(1.0,)))


def test_results_from_end_to_end(model, quick, tmp_path):
    results = learned.compare(model, tmp_path, tmp_path / "out", SETTINGS)
    text = write_results(results, tmp_path / "out")
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["encoder", "task", "target", "metric", "value", "low", "high", "n", "seeds"]
    by_name = {row["encoder"]: row for row in rows}
    assert float(by_name["histogram"]["value"]) == 1
    assert by_name["trained CLS"]["n"] == "30" and by_name["trained CLS"]["seeds"] == "2"
    difference = by_name["trained CLS - histogram"]
    assert float(difference["value"]) == pytest.approx(float(by_name["trained CLS"]["value"]) - 1)
    assert "trained CLS - untrained CLS" in by_name and "| histogram | 1.000 |" in text
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["made"]["patients"] == 15
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_reads_the_stores(model, cases, tmp_path, monkeypatch):
    first = model_features(model, cases, tmp_path, region_size=16)
    monkeypatch.setattr("voxelfm_hf.features.inputs.read_volume", lambda *_, **__: pytest.fail("a scan was read again"))
    again = model_features(model, cases, tmp_path, region_size=16)
    np.testing.assert_array_equal(first["patch mean"], again["patch mean"])


def test_verdict_needs_both_intervals_above_zero():
    differences = [
        {"task": task, "encoder": f"trained {readout} - {other}", "low": low}
        for task in ("organ", "nodule")
        for readout, histogram in learned.READOUTS.items()
        for other, low in ((f"untrained {readout}", 0.01), (histogram, 0.02 if readout == "patch mean" else -0.01))
    ]
    # The nodules are reported, win or lose.
    verdict = dict.fromkeys(learned.READOUTS, False) | {"patch mean": True}
    assert learned.better(differences) == {"organ": verdict}


def test_curve_from_a_folder_of_checkpoints(model, quick, tmp_path):
    run = tmp_path / "run" / "teachers"
    run.mkdir(parents=True)
    for step, folder in ((200, model), (0, untrained_model(model, tmp_path, seed=5))):
        shutil.copytree(folder, run / f"step-{step:08d}")
    models = learned.curve_models([str(tmp_path / "run")])
    assert list(models) == [0, 200]
    assert learned.curve_models([f"0={model}"]) == {0: model}
    found = learned.curve(models, tmp_path, tmp_path / "out", learned.Settings(seeds=1))
    table = write_curve(found, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert [point["step"] for point in saved["points"]] == [0, 200]
    assert saved["references"]["made"]["histogram"] == 1
    assert table.splitlines()[-1].startswith("| 200 |")
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ModelError, match="no model folder named by its step"):
        learned.curve_models([str(tmp_path / "out")])  # holds the untrained model, but no checkpoint
