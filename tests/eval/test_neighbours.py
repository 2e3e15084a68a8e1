"""The nearest-neighbour head against scikit-learn, and what it does with unknown labels."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from voxelfm_hf.eval.tasks import classification
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.training.probe.data import ProbeFeatures
from voxelfm_hf.volumes.errors import LabelError


def make_data(targets, names, *, exclusive, seed=0):
    rng = np.random.default_rng(seed)
    count = len(targets)
    cls = rng.normal(size=(count, 6)) + 1.5 * np.nan_to_num(targets[:, :1])
    return TaskData(
        task="classification",
        ids=[str(i) for i in range(count)],
        features=ProbeFeatures(cls=torch.from_numpy(cls).float()),
        targets=targets,
        names=names,
        splits=np.array((["train"] * 3 + ["val", "test"]) * (count // 5)),
        groups=np.arange(count),
        subgroups={},
        run={"weight_hash": "a" * 64},
        affines=np.zeros((count, 4, 4)),
        grids=np.ones((count, 3)),
        options={"exclusive": exclusive, "head": "knn"},
    )


def test_findings_are_ranked_as_by_scikit_learn_and_saved_with_the_probe(tmp_path):
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (300, 2)).astype(float)
    data = make_data(targets, ["nodule", "effusion"], exclusive=False)
    probe = classification.fit(data)
    train, test, cls = data.rows("train"), data.rows("test"), data.features.cls.numpy()
    logits = probe(cls=data.features.cls[test]).logits.detach().numpy()
    for column, k in enumerate(probe.config.num_neighbours):
        oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(cls[train], targets[train, column])
        share = oracle.predict_proba(cls[test])[:, 1]
        np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, column])), (k * share + 0.5) / (k + 1), atol=1e-5)
    probe.save_pretrained(tmp_path)
    again = VoxelFMProbe.from_pretrained(tmp_path)
    expected = classification.predict(probe, data, test)
    np.testing.assert_array_equal(classification.predict(again, data, test), expected)
    assert any("feature vectors and labels of its training scans" in note for note in again.config.fit["notes"])


def test_exclusive_classes_share_their_neighbours():
    targets = np.random.default_rng(2).integers(0, 3, (200, 1)).astype(float)
    data = make_data(targets, ["a", "b", "c"], exclusive=True)
    probe = classification.fit(data)
    (k,) = set(probe.config.num_neighbours)
    test = data.rows("test")
    found = classification.predict(probe, data, test)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    cls = data.features.cls.numpy()
    oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(
        cls[data.rows("train")], targets[data.rows("train"), 0]
    )
    share = (k * oracle.predict_proba(cls[test]) + 1 / 3) / (k + 1)
    logits = probe(cls=data.features.cls[test]).logits.softmax(-1).numpy()
    np.testing.assert_allclose(logits, share, atol=1e-5)


def test_scans_with_an_unknown_label_are_not_asked_about_it():
    targets = np.random.default_rng(3).integers(0, 2, (100, 1)).astype(float)
    whole = make_data(np.hstack([targets, targets]), ["a", "b"], exclusive=False)
    holes = np.hstack([targets, targets])
    hidden = whole.rows("train")[::2]
    holes[hidden, 1] = np.nan
    data = make_data(holes, ["a", "b"], exclusive=False)
    probe = classification.fit(data)
    probe.config.num_neighbours = [3, 3]
    few = classification.fit(whole, train=np.setdiff1d(whole.rows("train"), hidden))
    few.config.num_neighbours = [3, 3]
    cls = data.features.cls[data.rows("test")]
    torch.testing.assert_close(probe(cls=cls).logits[:, 1], few(cls=cls).logits[:, 1])


def test_too_few_labelled_scans_are_one_sentence():
    targets = np.full((10, 1), np.nan)
    targets[0] = 1
    with pytest.raises(LabelError, match="nodule has 1 labelled training scans"):
        classification.fit(make_data(targets, ["nodule"], exclusive=False))
