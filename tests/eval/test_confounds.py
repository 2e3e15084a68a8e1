import csv
import json

import numpy as np
import pytest
import scipy.linalg
from PIL import Image
from scipy.stats import hypergeom
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import r2_score
from typer.testing import CliRunner

from voxelfm_hf.eval.confounds.check import measure_confounds
from voxelfm_hf.eval.confounds.erasure import fit_erasure
from voxelfm_hf.eval.confounds.probes import (
    STRENGTHS,
    _ridge_path,
    erase_acquisition,
    nearest,
    predict_fact,
    read_acquisition,
    ridge,
)
from voxelfm_hf.eval.labels import LabelTable, read_labels
from voxelfm_hf.store import FeatureStore, StoreWriter
from voxelfm_hf.volumes.errors import LabelError

PEOPLE, WIDTH = 120, 12


def made_rows(seed: int = 0):
    """Two scans of every person: features hold the person, a finding, the kernel and the spacing."""
    rng = np.random.default_rng(seed)
    person, finding = rng.normal(size=(PEOPLE, WIDTH)), rng.integers(0, 2, PEOPLE)
    mixing = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    rows, features = [], []
    for index in range(PEOPLE):
        sharp = int(rng.integers(0, 2))
        for scan in range(2):
            kernel, spacing = (sharp + scan) % 2, float(rng.uniform(0.5, 3))
            vector = person[index] * 0.5
            vector[:3] = [8 * kernel, 3 * (spacing - 1.75), 2 * finding[index] + 0.5 * rng.normal()]
            features.append(vector @ mixing + 0.1 * rng.normal(size=WIDTH))
            split = ("train", "train", "val", "test")[index % 4]
            rows.append(
                {
                    "id": f"p{index}-{scan}",
                    "patient_id": f"p{index}",
                    "split": split,
                    "kernel": ("soft", "sharp")[kernel],
                    "spacing": round(spacing, 4),
                    "finding": int(finding[index]),
                    "size": round(float(finding[index] + 0.3 * person[index, 5]), 4),
                    "scanner": "one",
                }
            )
    return np.array(features, dtype=np.float32), rows


def write_store(folder, ids, features) -> FeatureStore:
    writer = StoreWriter(
        folder, {"model": "made", "weight_hash": "x", "processor": {}, "dtype": "float32", "patches": False}
    )
    ones = [1.0, 1.0, 1.0]
    facts = {"source": "", "grid": [1, 1, 1], "spacing_mm": ones, "effective_spacing_mm": ones, "notes": []}
    facts |= {"field_of_view_mm": ones, "patch_affine": np.eye(4).ravel().tolist()}
    writer.add({**facts, "id": name, "cls": vector} for name, vector in zip(ids, features, strict=True))
    return FeatureStore(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("confounds")
    features, rows = made_rows()
    write_store(folder / "store", [row["id"] for row in rows], features)
    with open(folder / "labels.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return folder


def test_after_erasure_a_linear_probe_is_at_chance_on_the_rows_of_the_fit():
    features, rows = made_rows()
    features = features.astype(float)
    kernel = np.array([row["kernel"] == "sharp" for row in rows]).astype(float)
    spacing = np.array([row["spacing"] for row in rows])
    concepts = np.column_stack([kernel, spacing])
    erasure = fit_erasure(features, concepts)
    cleaned = erasure(features)
    assert erasure.rank == 2
    assert np.abs((cleaned - cleaned.mean(0)).T @ (concepts - concepts.mean(0))).max() < 1e-8
    assert r2_score(spacing, LinearRegression().fit(features, spacing).predict(features)) > 0.9
    assert abs(r2_score(spacing, LinearRegression().fit(cleaned, spacing).predict(cleaned))) < 1e-9
    assert LogisticRegression(C=1e3).fit(features, kernel).score(features, kernel) > 0.99
    probe = LogisticRegression(C=1e3).fit(cleaned, kernel)
    assert np.ptp(probe.predict_proba(cleaned)[:, 1]) < 1e-4  # the same answer for every row
    np.testing.assert_allclose(cleaned.mean(0), features.mean(0), atol=1e-9)


def test_erasure_is_idempotent_and_equals_the_published_formula():
    features, rows = made_rows(1)
    features = features.astype(float)
    concepts = np.array([[row["spacing"], row["kernel"] == "sharp"] for row in rows], dtype=float)
    erasure = fit_erasure(features, concepts)
    cleaned = erasure(features)
    np.testing.assert_allclose(erasure(cleaned), cleaned, atol=1e-9)
    centred, aims = features - features.mean(0), concepts - concepts.mean(0)
    covariance, cross = centred.T @ centred / len(features), centred.T @ aims / len(features)
    root = scipy.linalg.sqrtm(covariance).real
    whitening = np.linalg.inv(root)
    basis = scipy.linalg.orth(whitening @ cross)
    expected = features - centred @ (root @ basis @ basis.T @ whitening).T
    np.testing.assert_allclose(cleaned, expected, atol=1e-7)


def test_erasure_changes_features_no_more_than_other_maps_that_erase():
    features, rows = made_rows(2)
    features = features.astype(float)
    concepts = np.array([[row["spacing"]] for row in rows])
    change = ((fit_erasure(features, concepts)(features) - features) ** 2).sum()
    centred = features - features.mean(0)
    cross = centred.T @ (concepts - concepts.mean(0))
    orthogonal = cross[:, 0] / np.linalg.norm(cross)  # an orthogonal projection erases too
    assert change < ((centred @ orthogonal) ** 2).sum()
    rng = np.random.default_rng(0)
    for _ in range(20):
        # All rank-one maps x - a (b.x) with b.cross = a.b = 1 direction: b free but for b . a = 1 and a along cross.
        other = rng.normal(size=features.shape[1])
        other /= other @ orthogonal
        assert change <= ((np.outer(centred @ other, orthogonal)) ** 2).sum() + 1e-6


def test_erasure_with_fewer_rows_than_dimensions_and_constant_concepts():
    rng = np.random.default_rng(0)
    features, concepts = rng.normal(size=(10, 40)), rng.normal(size=(10, 2))
    erasure = fit_erasure(features, concepts)
    cleaned = erasure(features)
    assert np.abs((cleaned - cleaned.mean(0)).T @ concepts).max() < 1e-8
    np.testing.assert_allclose(erasure(cleaned), cleaned, atol=1e-8)
    nothing = fit_erasure(features, np.ones((10, 1)))
    assert nothing.rank == 0
    np.testing.assert_array_equal(nothing(features), features)
    for count in range(2, 11):  # the mean of some of these differs from them in its last bit
        assert [fit_erasure(features[:count], np.full((count, 1), n)).rank for n in (0.0, 0.1, 1.1, 3.3)] == [0] * 4
    with pytest.raises(ValueError, match="are needed"):
        fit_erasure(features, concepts[:5])


def test_units_change_nothing():
    rng = np.random.default_rng(1)
    features, concepts = rng.normal(size=(50, 6)), rng.normal(size=(50, 2)) + 3
    expected = fit_erasure(features, concepts)
    assert expected.rank == 2
    for units in ([1, 1e-3], [1e9, 1], [1e-12, 1e-12]):
        np.testing.assert_allclose(fit_erasure(features, concepts * units).removed, expected.removed, atol=1e-9)
    np.testing.assert_allclose(fit_erasure(features * 1e-9, concepts).removed, expected.removed, atol=1e-9)


def test_ridge_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    features, targets, weights = rng.normal(size=(30, 50)), rng.normal(size=(30, 2)), rng.uniform(0.5, 2, 30)
    ours = _ridge_path(features, targets, weights, features[:5])
    for strength, found in zip(STRENGTHS, ours, strict=True):
        theirs = Ridge(alpha=strength).fit(features, targets, sample_weight=weights).predict(features[:5])
        np.testing.assert_allclose(found, theirs, atol=1e-6)


def test_probes_tell_what_is_there_and_not_what_is_noise():
    rng = np.random.default_rng(0)
    features, groups = rng.normal(size=(200, 10)), np.arange(200) // 2
    told = features[:, :1] * 2 + 0.1 * rng.normal(size=(200, 1))
    found = ridge(features[:150], told[:150], groups[:150], features[150:])
    assert r2_score(told[150:], found) > 0.9
    noise = rng.normal(size=(200, 1))
    assert abs(r2_score(noise[150:], ridge(features[:150], noise[:150], groups[:150], features[150:]))) < 0.2
    classes = np.eye(2)[(np.arange(200) % 10 == 0).astype(int)]  # one in ten; classes weigh the same
    near = features + 20 * np.array([[0.0], [1.0]])[classes[:, 1].astype(int)] * np.eye(10)[0]
    found = ridge(near[:150], classes[:150], groups[:150], near[150:], classes=True)
    assert (found.argmax(1) == classes[150:].argmax(1)).all()
    assert (nearest(near[:150], classes[:150], near[150:]).argmax(1) == classes[150:].argmax(1)).mean() > 0.9


def test_columns_of_numbers_words_and_flags():
    labels = LabelTable(
        "t",
        [str(i) for i in range(12)],
        {
            "number": [1.0, 2.5, None, *range(9)],
            "word": ["a"] * 5 + ["b"] * 5 + ["rare", None],
            "flag": [0, 1] * 6,
            "same": [3] * 12,
            "alone": ["x"] * 11 + ["y"],
        },
    )
    number, _ = read_acquisition(labels, "number")
    assert number.levels == () and number.known.sum() == 11
    word, _ = read_acquisition(labels, "word")
    assert word.levels == ("a", "b") and word.known.sum() == 10  # a level of one row is left out
    assert read_acquisition(labels, "flag")[0].levels == ("0", "1")
    assert read_acquisition(labels, "same") == (None, "same is the same in all rows")
    assert "fewer than two levels" in read_acquisition(labels, "alone")[1]
    assert erase_acquisition(np.random.default_rng(0).normal(size=(12, 5)), [number, word], np.arange(12)).rank == 2


def test_no_row_is_scored_by_a_probe_that_saw_its_patient():
    """Features that name the person and nothing else: a probe that sees a patient's other scan would be perfect."""
    rng = np.random.default_rng(0)
    patients = np.arange(60).repeat(3)
    features = (rng.normal(size=(60, 40)) * 5)[patients] + 0.01 * rng.normal(size=(180, 40))
    column = rng.permutation(np.arange(60) % 2)[patients]
    labels = LabelTable("t", [str(i) for i in range(180)], {"kernel": [("a", "b")[c] for c in column]})
    fact, _ = read_acquisition(labels, "kernel")
    found = predict_fact(features, fact, [fact], patients)
    assert all(np.isfinite(values).all() for values in found.answers.values())
    for answers in found.answers.values():
        assert 0.3 < (answers.argmax(1) == column).mean() < 0.7


def test_confounds_of_features_of_known_make_up(made):
    labels = read_labels(made / "labels.csv")
    found = measure_confounds(
        FeatureStore(made / "store"),
        labels,
        acquisition=["kernel", "spacing", "scanner"],
        targets=["finding", "size"],
        replicates=100,
    )
    value = {(r["question"], r["what"], r["stratum"], r["stage"], r["metric"]): r for r in found.rows}

    def of(question, what, stage, metric, stratum=""):
        return value[question, what, stratum, stage, metric]["value"]

    assert found.facts == ["kernel", "spacing"] and found.rank == (2, WIDTH)
    assert found.notes == ["scanner is the same in all rows: it is left out"]
    assert of("acquisition", "kernel", "before", "balanced_accuracy") > 0.98
    assert of("acquisition", "spacing", "before", "r2") > 0.9
    assert abs(of("acquisition", "kernel", "after", "balanced_accuracy") - 0.5) < 0.12
    assert of("acquisition", "spacing", "after", "r2") < 0.1
    # The task does not hang on acquisition; the nearest scan does until the kernel is out.
    assert of("task", "finding", "before", "auroc") > 0.95 and of("task", "finding", "after", "auroc") > 0.95
    assert of("task", "size", "after", "r2") > 0.5
    assert of("retrieval", "same person", "before", "recall_at_1") < 0.1
    assert of("retrieval", "same person", "after", "recall_at_1") > 0.7
    assert of("retrieval", "finding", "after", "recall_at_1") > of("retrieval", "finding", "before", "recall_at_1")
    strata = {key[2] for key in value if key[2]}
    assert {"kernel: sharp", "kernel: soft"} <= strata and any(name.startswith("spacing: ") for name in strata)
    sharp = value["task", "finding", "kernel: sharp", "before", "auroc"]
    assert sharp["n"] == 30 and sharp["patients"] == 30
    chance = value["retrieval", "same person", "", "before", "recall_at_1"]["chance"]
    assert chance == pytest.approx(1 / 59)  # one right scan among those of 29 other people and itself


def test_the_eraser_sees_no_test_row(made, monkeypatch):
    from voxelfm_hf.eval.confounds import check as confounds

    seen = []
    original = confounds.erase_acquisition

    def spy(features, facts, rows):
        seen.append(rows)
        return original(features, facts, rows)

    monkeypatch.setattr(confounds, "erase_acquisition", spy)
    labels = read_labels(made / "labels.csv")
    measure_confounds(FeatureStore(made / "store"), labels, acquisition=["kernel"], replicates=10)
    assert len(seen) == 1
    assert {labels.column("split")[row] for row in seen[0]} == {"train"}


@pytest.mark.parametrize("tested", [2, 4])
def test_chance_is_the_hypergeometric_one(tmp_path, tested):
    """Each test scan has two of its person among all those of others; five of two people's are found in any case."""
    people, each = 8 + tested, 3
    ids = [f"p{person}-{scan}" for person in range(people) for scan in range(each)]
    columns = {
        "patient_id": [name.split("-")[0] for name in ids],
        "split": ["test" if number < tested * each else "train" for number in range(len(ids))],
        "spacing": [float(number % each + 1) for number in range(len(ids))],
    }
    features = np.random.default_rng(0).normal(size=(len(ids), 6)).astype(np.float32)
    store = write_store(tmp_path / "store", ids, features)
    found = measure_confounds(store, LabelTable("t", ids, columns), acquisition=["spacing"], replicates=10)
    for k in (1, 5):
        chances = [row["chance"] for row in found.rows if row["metric"] == f"recall_at_{k}"]
        expected = hypergeom(M=each * tested - 1, n=each - 1, N=k).sf(0)
        assert chances and chances == pytest.approx([expected] * len(chances))


def test_command_writes_one_table_and_one_figure(made, tmp_path):
    from voxelfm_hf.cli import app

    words = ["confounds", str(made / "store"), str(made / "labels.csv"), "--acquisition", "kernel,spacing"]
    words += ["--target", "finding", "--replicates", "50", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    with open(tmp_path / "out" / "confounds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["question"] for row in rows} == {"acquisition", "task", "retrieval"}
    assert {row["encoder"] for row in rows} == {"made"}
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows if row["low"])
    assert json.loads((tmp_path / "out" / "confounds.json").read_text())["weight_hash"] == "x"
    assert "| kernel | balanced_accuracy | 240 | 0.5 |" in (tmp_path / "out" / "confounds.md").read_text()
    with Image.open(tmp_path / "out" / "confounds.png") as picture:
        assert picture.width > 1000 and picture.height > 300
    result = CliRunner().invoke(app, [*words, "--patient-column", "who"])
    assert result.exit_code == 1 and "has no column who" in str(result.exception or result.output)
    result = CliRunner().invoke(app, [*words, "--dataset", "lidc", "--id-column", "file"])
    assert result.exit_code == 2 and "--id-column" in result.output


def test_patients_are_not_counted_where_nobody_told_them_apart(made):
    labels = read_labels(made / "labels.csv")
    del labels.columns["patient_id"]
    found = measure_confounds(FeatureStore(made / "store"), labels, acquisition=["kernel"], replicates=10)
    assert {row["patients"] for row in found.rows} == {None} and "no column of patients" in found.notes[0]


def test_columns_that_cannot_be_used_are_said(made):
    labels = read_labels(made / "labels.csv")
    store = FeatureStore(made / "store")
    with pytest.raises(LabelError, match="no acquisition column can be used: scanner is the same"):
        measure_confounds(store, labels, acquisition=["scanner"])
    with pytest.raises(LabelError, match="has no column vendor"):
        measure_confounds(store, labels, acquisition=["vendor"])
