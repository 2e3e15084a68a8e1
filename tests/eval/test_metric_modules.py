from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, mean_absolute_error, roc_auc_score

import voxelfm_hf.eval.metrics as metrics

FOLDER = Path(metrics.__file__).parent


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


def load(name):
    return evaluate.load(str(FOLDER / name), keep_in_memory=True)


def test_every_folder_loads():
    names = sorted(path.name for path in FOLDER.glob("ct_*"))
    tasks = ("classification", "localization", "regression", "report", "retrieval", "segmentation", "survival")
    assert names == [f"ct_{task}" for task in tasks]
    for name in names:
        assert load(name).inputs_description


def test_classification_in_batches_with_intervals_and_subgroups():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60).astype(float)
    probabilities = np.clip(0.3 * labels + rng.uniform(0, 0.7, 60), 0, 1)
    module = load("ct_classification")
    for start in (0, 30):
        rows = slice(start, start + 30)
        module.add_batch(predictions=probabilities[rows], references=labels[rows])
    sex = ["F", "M"] * 30
    found = module.compute(replicates=100, patients=list(range(60)), subgroups={"sex": sex})
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, probabilities))
    assert found["estimates"]["auroc"]["low"] < found["auroc"] < found["estimates"]["auroc"]["high"]
    women = next(row for row in found["subgroups"] if row["level"] == "F" and row["metric"] == "auroc")
    assert women["n"] == 30 and women["value"] == pytest.approx(roc_auc_score(labels[::2], probabilities[::2]))


def test_an_undefined_metric_is_nan_with_its_sentence():
    found = load("ct_classification").compute(predictions=[0.2, 0.4], references=[1.0, float("nan")])
    assert np.isnan(found["auroc"]) and "two classes" in found["estimates"]["auroc"]["note"]
    assert found["estimates"]["auroc"]["value"] is None and found["estimates"]["auroc"]["n"] == 1


def test_regression_and_survival():
    targets, predictions = np.array([1.0, 2, 4]), np.array([1.5, 2, 3])
    found = load("ct_regression").compute(predictions=predictions, references=targets)
    assert found["mae"] == pytest.approx(mean_absolute_error(targets, predictions))
    pairs = [[1, 1], [2, 0], [3, 1], [4, 0]]
    found = load("ct_survival").compute(predictions=[4.0, 3, 1, 2], references=pairs, horizons=[2.5])
    assert found["c_index"] == pytest.approx(3 / 4)  # the event at 3 ranks below the patient followed to 4
    assert found["auroc_at_2.5"] == 1


def test_retrieval_with_pools_of_different_length():
    similarities, relevant = [[0.9, 0.1, 0.5], [0.3, 0.2]], [[0, 1, 1], [0, 1]]
    found = load("ct_retrieval").compute(predictions=similarities, references=relevant, k=[1])
    expected = [average_precision_score(r, s) for s, r in zip(similarities, relevant, strict=True)]
    assert found["map"] == pytest.approx(np.mean(expected))
    assert found["recall_at_1"] == 0


def test_segmentation_of_scans_of_different_size_and_localization():
    first, second = np.zeros((4, 5, 6), dtype=int), np.zeros((3, 4, 4), dtype=int)
    first[1:3, 1:3, 1:3], second[1, 1, 1] = 1, 2
    wrong = np.zeros_like(second)
    found = load("ct_segmentation").compute(
        predictions=[first, wrong],
        references=[first, second],
        class_names=["background", "liver", "node"],
        spacing=(2.0, 1.0, 1.0),
    )
    assert (found["dice_liver"], found["dice_node"], found["nsd_node"]) == (1, 0, 0)
    assert found["hd95_liver"] == 0 and np.isnan(found["hd95_node"])
    assert found["estimates"]["dice_liver"]["n"] == 1
    assert found["dice_macro"] == pytest.approx(0.5)
    found = load("ct_localization").compute(predictions=[[0.0, 0, 0]], references=[[3.0, 4, 0]], extent_mm=[10, 10, 10])
    assert found["error_mm"] == 5 and found["error_normalised"] == pytest.approx(0.5)
