"""A benchmark from a recipe to its numbers: what is scored, compared, kept and done again."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import r2_score, roc_auc_score

import voxelfm_hf.eval.benchmark.grid as engine
from tests.eval.small_benchmark import made_data, made_recipe, value
from voxelfm_hf.eval.benchmark.folder import cell_path
from voxelfm_hf.eval.benchmark.grid import run_benchmark
from voxelfm_hf.eval.benchmark.results import score_benchmark
from voxelfm_hf.eval.benchmark.tables import write_benchmark
from voxelfm_hf.eval.statistics.estimates import holm
from voxelfm_hf.volumes.errors import RecipeError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    run = run_benchmark(made_recipe(), made_data(folder), folder / "out")
    results = score_benchmark(run)
    write_benchmark(run, results, folder / "out")
    with open(folder / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return SimpleNamespace(run=run, results=results, out=folder / "out", rows=rows, folder=folder)


def test_the_table_has_every_encoder_task_and_fraction(finished):
    agreed = ["encoder", "task", "target", "metric", "value", "low", "high", "n", "fraction", "seeds"]
    assert [*finished.rows[0]][: len(agreed)] == agreed
    encoders = ["good", "other", "junk only", "ceiling", "floor"]
    assert list(dict.fromkeys(row["encoder"] for row in finished.rows)) == encoders
    kinds = {row["encoder"]: row["kind"] for row in finished.rows}
    assert kinds == {**dict.fromkeys(encoders, "baseline"), "ceiling": "reference", "floor": "reference"}
    main = {(r["encoder"], r["task"], r["target"], float(r["fraction"])) for r in finished.rows if r["main"] == "True"}
    targets = {"classification": ("sick", "luck", "macro"), "regression": ("size",), "survival": ("event",)}
    for encoder in encoders:
        for task, names in targets.items():
            assert {(encoder, task, name, f) for name in names for f in (0.1, 1.0)} <= main
        assert (encoder, "retrieval", "sick", 1.0) in main
    assert not finished.run.failures


def test_ceiling_is_near_one_and_floor_near_chance(finished):
    rows = finished.rows
    assert value(rows, "ceiling", "classification", "sick", "auroc") > 0.99
    assert value(rows, "ceiling", "regression", "size", "r2") > 0.95
    assert value(rows, "ceiling", "retrieval", "sick", "recall_at_5") == pytest.approx(1.0)
    assert 0.3 < value(rows, "floor", "classification", "sick", "auroc") < 0.7
    assert value(rows, "floor", "regression", "size", "r2") < 0.2
    assert 0.35 < value(rows, "floor", "survival", "event", "c_index") < 0.65
    # The ceiling of a simulated survival is the concordance of its true hazard, not 1.
    assert 0.7 < value(rows, "ceiling", "survival", "event", "c_index") < 0.98


def test_encoders_come_out_as_they_should(finished):
    rows = finished.rows
    assert value(rows, "good", "classification", "sick", "auroc") > 0.8
    assert 0.3 < value(rows, "good", "classification", "luck", "auroc") < 0.7
    assert value(rows, "good", "regression", "size", "r2") > 0.9
    good, ceiling = (value(rows, e, "survival", "event", "c_index") for e in ("good", "ceiling"))
    assert good == pytest.approx(ceiling, abs=0.02)
    assert value(rows, "good", "retrieval", "sick", "recall_at_5") > value(
        rows, "other", "retrieval", "sick", "recall_at_5"
    )


def test_scores_are_those_of_the_kept_predictions(finished):
    """Every number can be made again from the prediction files, here by scikit-learn."""
    areas, explained = [], []
    for seed in (0, 1):
        rows = pq.read_table(cell_path(finished.out, "good", "classification", seed)).to_pylist()
        rows = [row for row in rows if row["target"] == "sick" and row["fraction"] == 1.0]
        areas.append(roc_auc_score([row["truth"] for row in rows], [row["prediction"] for row in rows]))
        rows = pq.read_table(cell_path(finished.out, "good", "regression", seed)).to_pylist()
        rows = [row for row in rows if row["fraction"] == 1.0]
        explained.append(r2_score([row["truth"] for row in rows], [row["prediction"] for row in rows]))
    assert value(finished.rows, "good", "classification", "sick", "auroc") == pytest.approx(np.mean(areas))
    assert value(finished.rows, "good", "regression", "size", "r2") == pytest.approx(np.mean(explained))


def test_only_labelled_test_rows_are_scored(finished):
    labels = finished.run.data.labels
    test = [i for i, split in enumerate(labels.column("split")) if split == "test"]
    known = sum(labels.column("sick")[i] is not None for i in test)
    chosen = [r for r in finished.rows if r["target"] == "sick" and r["metric"] == "auroc"]
    assert {int(row["n"]) for row in chosen} == {known} and known < len(test)
    ids = pq.read_table(cell_path(finished.out, "good", "classification", 0))["id"].to_pylist()
    assert set(ids) <= {labels.ids[i] for i in test}


def test_intervals_hold_the_value_and_small_fractions_have_fewer_labels(finished):
    for row in finished.rows:
        if row["low"]:
            assert float(row["low"]) <= float(row["value"]) + 1e-9 and float(row["value"]) <= float(row["high"]) + 1e-9
    rows = [r for r in finished.rows if r["encoder"] == "good" and r["task"] == "regression" and r["metric"] == "r2"]
    train = {float(row["fraction"]): float(row["train_rows"]) for row in rows}
    assert train[0.1] == pytest.approx(0.1 * train[1.0], abs=1.01)


def test_patients_are_not_counted_where_nobody_told_them_apart(tmp_path, finished):
    assert {row["patients"] for row in finished.results.rows if row["metric"] == "r2" and row["seeds"]} == {40}
    assert "resamples test patients" in (finished.out / "results.md").read_text()
    data = made_data(tmp_path)
    data.labels.columns["study_id"] = data.labels.columns.pop("patient_id")
    recipe = made_recipe(tasks=[{"task": "classification", "targets": ["sick", "luck"]}], seeds=[0])
    run = run_benchmark(recipe, data, tmp_path / "out")
    results = score_benchmark(run)
    write_benchmark(run, results, tmp_path / "out")
    assert results.subgroups and {row["patients"] for row in [*results.rows, *results.subgroups]} == {None}
    assert "resamples test rows or studies" in (tmp_path / "out" / "results.md").read_text()


def test_macro_is_the_mean_of_its_targets(finished):
    mean = np.mean([value(finished.rows, "good", "classification", t, "auroc") for t in ("sick", "luck")])
    assert value(finished.rows, "good", "classification", "macro", "auroc") == pytest.approx(mean)


def test_comparisons_are_corrected_over_all_tests(finished):
    rows = finished.results.comparisons
    assert {row["second"] for row in rows} == {"other", "junk only"}
    assert [row["p_holm"] for row in rows] == pytest.approx(list(holm([row["p_value"] for row in rows])), nan_ok=True)
    tests = {row["task"]: row["test"] for row in rows}
    assert tests["classification"] == "DeLong" and tests["regression"] == "paired bootstrap"
    (size,) = [row for row in rows if row["task"] == "regression" and row["second"] == "junk only"]
    good, junk = (value(finished.rows, e, "regression", "size", "r2") for e in ("good", "junk only"))
    assert size["difference"] == pytest.approx(good - junk)
    assert size["low"] > 0 and size["p_holm"] < 0.2


def test_subgroups_are_scored_with_their_n(finished):
    rows = [r for r in finished.results.subgroups if r["encoder"] == "good" and r["target"] == "size"]
    assert {(row["column"], row["level"]) for row in rows} == {("sex", "F"), ("sex", "M")}
    assert sum(row["n"] for row in rows) == 80


def test_the_report_states_preprocessing_and_failures_none(finished):
    text = (finished.out / "results.md").read_text()
    assert "good against the others" in text and "clue of the label table" in text and "Failures" not in text
    found = json.loads((finished.out / "results.json").read_text())
    assert len(found["rows"]) == len(finished.rows) and found["counts"]["test"] == 80


def test_an_interrupted_run_goes_on_without_computing_twice(finished, monkeypatch):
    before = (finished.out / "results.csv").read_bytes()
    path = cell_path(finished.out, "good", "survival", 1)
    path.unlink()
    called = []
    original = engine.fit_cell

    def counted(data, task, recipe, **options):
        called.append((task.title, options["seed"]))
        return original(data, task, recipe, **options)

    monkeypatch.setattr(engine, "fit_cell", counted)
    run = run_benchmark(made_recipe(), made_data(finished.folder), finished.out)
    write_benchmark(run, score_benchmark(run), finished.out)
    assert called == [("survival", 1)] and path.is_file()
    assert (finished.out / "results.csv").read_bytes() == before


def test_the_same_recipe_gives_the_same_numbers(finished, tmp_path):
    recipe = made_recipe(tasks=[{"task": "classification", "targets": ["sick", "luck"]}])
    run = run_benchmark(recipe, made_data(tmp_path), tmp_path / "again")
    write_benchmark(run, score_benchmark(run), tmp_path / "again")
    with open(tmp_path / "again" / "results.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [row for row in finished.rows if row["task"] == "classification"]


def test_other_recipes_and_other_labels_are_not_mixed(finished, tmp_path):
    with pytest.raises(RecipeError, match="another recipe .seeds differ"):
        run_benchmark(made_recipe(seeds=[0]), made_data(finished.folder), finished.out)
    data = made_data(finished.folder)
    data.labels.columns["sick"][3] = 1 - (data.labels.columns["sick"][3] or 0)
    with pytest.raises(RecipeError, match="other data"):
        run_benchmark(made_recipe(), data, finished.out)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RecipeError, match="no benchmark folder"):
        run_benchmark(made_recipe(), made_data(tmp_path), tmp_path)


def test_an_encoder_can_be_added_and_changed(tmp_path, monkeypatch):
    tasks = [{"task": "regression", "targets": ["size"]}]
    first = made_recipe(tasks=tasks)
    run_benchmark(first, made_data(tmp_path), tmp_path / "out")
    entries = [dataclasses.asdict(entry) for entry in first.encoders]
    entries[1]["options"] = {"columns": ["junk"]}  # "other" now is something else
    entries.append({"kind": "columns", "name": "third", "options": {"columns": ["clue", "junk"]}})
    made = []
    original = engine.fit_cell
    monkeypatch.setattr(engine, "fit_cell", lambda *a, **o: made.append(1) or original(*a, **o))
    run = run_benchmark(made_recipe(tasks=tasks, encoders=entries), made_data(tmp_path), tmp_path / "out")
    assert len(made) == 4  # two seeds of each
    rows = score_benchmark(run).rows
    assert value(rows, "other", "regression", "size", "r2") == pytest.approx(
        value(rows, "junk only", "regression", "size", "r2")
    )


def test_what_cannot_be_done_is_reported_and_the_rest_goes_on(tmp_path):
    recipe = made_recipe(
        encoders=[
            {"kind": "voxelfm", "name": "missing", "model": str(tmp_path / "nothing")},
            {"kind": "columns", "name": "good", "options": {"columns": ["clue"]}},
            {"kind": "spacing"},
        ],
        tasks=[
            {"task": "regression", "targets": ["size"]},
            {"task": "classification", "targets": ["none"]},
            {"task": "localization", "targets": ["x", "y", "z"]},
        ],
        references=False,
    )
    run = run_benchmark(recipe, made_data(tmp_path), tmp_path / "out")
    assert set(run.entrants) == {"good", "junk only"}
    assert "nothing" in run.failures["missing", ""]
    assert "none of the scans" in run.failures["spacing", ""]
    assert "no column none" in run.failures["good", "classification"]
    assert ("good", "localization") not in run.failures and any("gives no patches" in note for note in run.notes)
    assert ("good", "regression") in run.predictions


def test_a_task_that_is_too_small_at_a_fraction_is_said_and_not_scored(tmp_path):
    data = made_data(tmp_path)
    train = [i for i, split in enumerate(data.labels.column("split")) if split == "train"]
    for row in train:
        data.labels.columns["sick"][row] = int(row in train[:6])
    recipe = made_recipe(tasks=[{"task": "classification", "targets": ["sick"]}], fractions=[0.02, 1.0], seeds=[0])
    rows = score_benchmark(run_benchmark(recipe, data, tmp_path / "out")).rows
    (small,) = [r for r in rows if r["encoder"] == "good" and r["fraction"] == 0.02]
    assert np.isnan(small["value"]) and "both classes" in small["note"] and small["seeds"] == 0
    assert value(rows, "good", "classification", "sick", "auroc") > 0.5


def test_exclusive_classes_and_seeded_retrieval(tmp_path):
    data = made_data(tmp_path)
    grade = np.digitize(data.labels.columns["clue"], [-0.5, 0.5])
    data.labels.columns["grade"] = [("low", "middle", "high")[g] for g in grade]
    recipe = made_recipe(
        tasks=[
            {
                "task": "classification",
                "name": "grade",
                "targets": ["grade"],
                "read": {"exclusive": True},
                "fractions": [1.0],
            },
            {"task": "classification", "name": "neighbours", "targets": ["sick"], "head": "knn", "seeds": [0]},
            {"task": "retrieval", "targets": ["sick"]},
        ],
        replicates=20,
    )
    run = run_benchmark(recipe, data, tmp_path / "out")
    rows = score_benchmark(run).rows
    assert (
        value(rows, "good", "grade", "grade", "macro_auroc")
        > 0.9
        > value(rows, "other", "grade", "grade", "macro_auroc")
    )
    assert value(rows, "ceiling", "grade", "grade", "accuracy") > 0.98
    assert value(rows, "good", "neighbours", "sick", "auroc") > 0.7
    assert list(run.predictions["good", "retrieval"]) == [0] and list(run.predictions["floor", "retrieval"]) == [0, 1]
