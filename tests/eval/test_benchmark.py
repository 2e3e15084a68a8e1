import csv
import dataclasses
import importlib.resources
import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sklearn.metrics import r2_score, roc_auc_score
from typer.testing import CliRunner

import voxelfm_hf.eval.benchmark.grid as engine
from voxelfm_hf.cli import app
from voxelfm_hf.eval.benchmark.folder import cell_path
from voxelfm_hf.eval.benchmark.grid import run_benchmark
from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe, TaskRecipe, read_recipe
from voxelfm_hf.eval.benchmark.references import with_reference
from voxelfm_hf.eval.benchmark.results import score_benchmark
from voxelfm_hf.eval.benchmark.tables import write_benchmark
from voxelfm_hf.eval.datasets import About, BenchmarkData, dataset_names
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.statistics.delong import delong_test
from voxelfm_hf.eval.statistics.estimates import holm
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.features import Task
from voxelfm_hf.modeling.probe_heads_voxelfm import pooled_grid
from voxelfm_hf.recipes import to_recipe
from voxelfm_hf.scan_list import Scan
from voxelfm_hf.training.probe.data import ProbeFeatures
from voxelfm_hf.volumes.errors import RecipeError

COUNT = 240


def made_labels(count=COUNT, seed=0):
    """Scans of patients with two scans each; `clue` tells sick, size and survival, `junk` tells nothing."""
    rng = np.random.default_rng(seed)
    clue = rng.normal(size=count)
    sick = (clue + 0.7 * rng.normal(size=count) > 0.4).astype(int)
    risk = 1.2 * clue
    life, censoring = rng.exponential(np.exp(-risk)), rng.exponential(2.0, size=count)
    columns = {
        "patient_id": [i // 2 for i in range(count)],
        "split": [("train", "train", "train", "val", "test", "test")[i // 2 % 6] for i in range(count)],
        "clue": clue.tolist(),
        "junk": rng.normal(size=count).tolist(),
        "sick": [None if i % 11 == 0 else int(v) for i, v in enumerate(sick)],
        "luck": rng.integers(0, 2, size=count).tolist(),
        "size": (5 + 2 * clue + 0.3 * rng.normal(size=count)).tolist(),
        "time": np.minimum(life, censoring).tolist(),
        "event": (life <= censoring).astype(int).tolist(),
        "log_risk": risk.tolist(),
        "spacing": rng.choice([1.0, 2.0], size=count).tolist(),
        "sex": ["FM"[i // 2 % 2] for i in range(count)],
    }
    return LabelTable("labels.csv", [f"scan{i:03d}" for i in range(count)], columns)


def made_data(tmp_path, **changes):
    labels = made_labels()
    tasks = [Task(Scan(name, tmp_path / name)) for name in labels.ids]
    return BenchmarkData(
        tasks, labels, tmp_path, **{"baselines": {"junk": ("junk",)}, "subgroups": ("sex",), **changes}
    )


def made_recipe(**changes):
    values = {
        "data": "lidc",
        "encoders": [
            {"kind": "columns", "name": "good", "options": {"columns": ["clue"]}},
            {"kind": "columns", "name": "other", "options": {"columns": ["spacing"]}},
        ],
        "tasks": [
            {"task": "classification", "targets": ["sick", "luck"]},
            {"task": "regression", "targets": ["size"]},
            {"task": "survival", "ceiling": ["log_risk"], "read": {"horizons": [0.5]}},
            {"task": "retrieval", "targets": ["sick"], "read": {"alike": {"spacing": 0.5}}},
        ],
        "fractions": [0.1, 1.0],
        "seeds": [0, 1],
        "replicates": 100,
        **changes,
    }
    return to_recipe(values, BenchmarkRecipe)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    run = run_benchmark(made_recipe(), made_data(folder), folder / "out")
    results = score_benchmark(run)
    write_benchmark(run, results, folder / "out")
    with open(folder / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return SimpleNamespace(run=run, results=results, out=folder / "out", rows=rows, folder=folder)


def value(rows, encoder, task, target, metric, fraction=1.0):
    (row,) = [
        row
        for row in rows
        if (row["encoder"], row["task"], row["target"], row["metric"]) == (encoder, task, target, metric)
        and float(row["fraction"]) == fraction
    ]
    return float(row["value"])


def test_the_table_has_every_encoder_task_and_fraction(finished):
    agreed = ["encoder", "task", "target", "metric", "value", "low", "high", "n", "fraction", "seeds"]
    assert [*finished.rows[0]][: len(agreed)] == agreed
    encoders = ["good", "other", "junk only", "ceiling", "floor"]
    assert list(dict.fromkeys(row["encoder"] for row in finished.rows)) == encoders
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
    for name in ("one", "two"):
        run = run_benchmark(recipe, made_data(tmp_path), tmp_path / name)
        write_benchmark(run, score_benchmark(run), tmp_path / name)
    assert (tmp_path / "one" / "results.csv").read_bytes() == (tmp_path / "two" / "results.csv").read_bytes()


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
            {"task": "classification", "name": "neighbours", "targets": ["sick", "luck"], "head": "knn"},
            {"task": "retrieval", "targets": ["sick"]},
        ]
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


def write_organ_scans(folder, count=12):
    """Small scans with a bright cube at random places, its label map, and its centre in LPS mm."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        hu, mask = rng.normal(0, 20, size=(24, 32, 32)), np.zeros((24, 32, 32), dtype=np.uint8)
        z, y, x = (int(rng.integers(0, n // 8 - 1)) * 8 for n in hu.shape)
        hu[z : z + 8, y : y + 8, x : x + 8] += 600
        mask[z : z + 8, y : y + 8, x : x + 8] = 1
        affine = np.diag([-2.0, -2.0, 2.0, 1.0])  # RAS, so LPS mm are twice the index
        nib.save(nib.Nifti1Image(hu.astype(np.int16).transpose(2, 1, 0), affine), folder / f"{i}.nii.gz")
        nib.save(nib.Nifti1Image(mask.transpose(2, 1, 0), affine), folder / f"{i}_mask.nii.gz")
        centre = [2 * (v + 3.5) for v in (x, y, z)]
        split = ("train", "train", "val", "test")[i % 4]
        rows.append([f"{i}", i, split, f"{i}_mask.nii.gz", *centre])
    names = ("id", "patient_id", "split", "mask", "x", "y", "z")
    columns = {name: [row[k] for row in rows] for k, name in enumerate(names)}
    labels = LabelTable("labels.csv", columns["id"], columns)
    tasks = [Task(Scan(name, folder / f"{name}.nii.gz", named=True)) for name in labels.ids]
    return BenchmarkData(tasks, labels, folder, classes=("background", "cube"))


def test_patch_tasks_with_ceiling_and_label_maps(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    data = write_organ_scans(folder)
    recipe = made_recipe(
        encoders=[{"kind": "intensity", "model": "tiny"}, {"kind": "spacing"}],
        tasks=[
            {
                "task": "segmentation",
                "read": {"voxels_per_patch": 2},
                "evaluate": {"surfaces": False},
                "settings": {"epochs": 12, "learning_rate": 0.01, "accumulate": 1},
            },
            {"task": "localization", "targets": ["x", "y", "z"], "settings": {"epochs": 40, "learning_rate": 0.003}},
        ],
        seeds=[0],
        baselines=False,
    )
    run = run_benchmark(recipe, data, tmp_path / "out")
    assert not run.failures
    results = score_benchmark(run)
    write_benchmark(run, results, tmp_path / "out")
    rows = results.rows
    assert value(rows, "ceiling", "segmentation", "cube", "dice") > 0.6
    assert (
        value(rows, "ceiling", "segmentation", "cube", "dice")
        > value(rows, "floor", "segmentation", "cube", "dice") + 0.3
    )
    errors = {e: value(rows, e, "localization", "localization", "error_mm") for e in ("ceiling", "floor", "intensity")}
    assert errors["ceiling"] < 0.6 * errors["floor"]
    constant = value(rows, "intensity", "localization", "localization", "mean_position_error_mm")
    report = (tmp_path / "out" / "results.md").read_text()
    assert f"A constant answer, the mean training position, has an error of {constant:.1f} [" in report
    maps = sorted((tmp_path / "out" / "predictions" / "intensity" / "segmentation" / "maps").iterdir())
    assert len(maps) == 3
    mask = nib.load(folder / maps[0].name.replace(".nii.gz", "_mask.nii.gz"))
    assert np.allclose(nib.load(maps[0]).affine, mask.affine) and nib.load(maps[0]).shape == mask.shape
    assert not any(row["encoder"] == "spacing" for row in rows)
    # It is not even asked for its features, and the report says so.
    assert "spacing gives no patches, which every task here needs, and is left out" in run.notes
    assert [path.name for path in (tmp_path / "out" / "stores").iterdir() if path.name.startswith("spacing")] == []


def test_delong_of_means_over_seeds():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 80)
    first, second = labels[:, None] + rng.normal(size=(80, 3)), labels[:, None] + 2 * rng.normal(size=(80, 3))
    patients = np.arange(80) // 2
    one = delong_test(labels, first[:, 0], second[:, 0], patients=patients)
    doubled = delong_test(labels, first[:, [0, 0]], second[:, 0], patients=patients)
    assert (doubled.difference, doubled.p_value) == pytest.approx((one.difference, one.p_value))
    several = delong_test(labels, first, second, patients=patients)
    means = [np.mean([roc_auc_score(labels, s) for s in scores.T]) for scores in (first, second)]
    assert several.difference == pytest.approx(means[0] - means[1])
    # Its standard error against a bootstrap over patients.
    draws = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(patients == p) for p in rng.integers(0, 40, 40)])
        draws.append(
            np.mean([roc_auc_score(labels[rows], s[rows]) for s in first.T])
            - np.mean([roc_auc_score(labels[rows], s[rows]) for s in second.T])
        )
    assert (several.high - several.low) / 3.92 == pytest.approx(np.std(draws), rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": [{"task": "captioning"}]}, "no task captioning"),
        ({"tasks": []}, "tasks is empty"),
        ({"encoders": [{"kind": "spacing"}, {"kind": "spacing"}]}, "two encoders are called spacing"),
        ({"fractions": [0.0, 1.0]}, "fractions lie in"),
        ({"seeds": []}, "seeds is empty"),
        ({"tasks": [{"task": "survival", "settings": {"speed": 3}}]}, "no speed"),
        ({"tasks": [{"task": "survival", "head": "knn"}]}, "head of survival is one of linear, mlp, pooler, got knn"),
        ({"tasks": [{"task": "regression", "evaluate": {"surfaces": False}}]}, "evaluate of regression: there is no"),
        ({"encoderz": []}, "no field encoderz"),
    ],
)
def test_mistakes_in_a_recipe_are_sentences(change, message):
    with pytest.raises(RecipeError, match=message):
        made_recipe(**change)


def packaged():
    folder = importlib.resources.files("voxelfm_hf.eval") / "recipes"
    texts = {file.name: file.read_text() for file in folder.iterdir() if file.name.endswith(".yaml")}
    return sorted(name for name, text in texts.items() if "reports" not in yaml.safe_load(text))


@pytest.mark.parametrize("name", packaged())
@pytest.mark.parametrize("quick", [False, True])
def test_packaged_recipes_are_valid(name, quick):
    recipe = read_recipe(name, quick=quick)
    assert recipe.data in dataset_names() and recipe.title
    assert not quick or (recipe.quick == {} and len(recipe.seeds) <= len(read_recipe(name).seeds))


def test_unknown_fields_of_quick_are_refused(tmp_path):
    values = {**made_recipe().__dict__, "encoders": [{"kind": "spacing"}], "tasks": [{"task": "survival"}]}
    values = {"data": "lidc", "encoders": values["encoders"], "tasks": values["tasks"], "quick": {"seedz": [1]}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match="quick.seedz"):
        read_recipe(tmp_path / "r.yaml", quick=True)


def test_the_command(tmp_path, monkeypatch):
    data = made_data(tmp_path)
    about = About("made", "example.org", "none", "nobody", "labels.csv")
    module = SimpleNamespace(read=lambda folder, edge_mm=1.0: data, ABOUT=about)
    monkeypatch.setattr("voxelfm_hf.eval.benchmark.run.load_dataset", lambda name: module)
    monkeypatch.setattr("voxelfm_hf.eval.benchmark.card.load_dataset", lambda name: module)
    values = {
        "data": "lidc",
        "title": "made",
        "encoders": [
            {"kind": "columns", "name": "good", "options": {"columns": ["clue"]}},
            {"kind": "hub2d", "model": str(tmp_path / "nothing")},
        ],
        "tasks": [{"task": "regression", "targets": ["size"]}],
        "replicates": 50,
        "quick": {"seeds": [0]},
    }
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(values))
    command = ["benchmark", str(tmp_path / "made.yaml"), "--quick", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, RecipeError) and "--data" in str(refused.exception)
    found = CliRunner().invoke(app, [*command, "--data", str(tmp_path)])
    assert found.exit_code == 3, found.output
    assert "regression: r2" in found.output and "good" in found.output
    assert (tmp_path / "out" / "results.md").read_text().startswith("# made")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "regression: R²" in card and "nothing" in card
    values["data_options"] = {"edge": 3}
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(values))
    refused = CliRunner().invoke(app, [*command, "--data", str(tmp_path)])
    assert "no option edge" in str(refused.exception)


def test_a_recipe_of_reports_goes_to_its_own_runner(tmp_path, monkeypatch):
    called = []

    def run(path, data, out, quick):
        called.append((path, data, out, quick))
        return SimpleNamespace(tables=["a table"], failures=[])

    monkeypatch.setitem(__import__("sys").modules, "voxelfm_hf.eval.reports.benchmark", SimpleNamespace(run=run))
    monkeypatch.setattr("voxelfm_hf.eval.reports.benchmark", SimpleNamespace(run=run), raising=False)
    (tmp_path / "r.yaml").write_text("reports: {}\n")
    found = CliRunner().invoke(app, ["benchmark", str(tmp_path / "r.yaml"), "--quick", "--out", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    assert called == [(str(tmp_path / "r.yaml"), None, tmp_path / "out", True)]


@pytest.mark.parametrize("kind", ["ceiling", "floor"])
def test_ceiling_and_floor_localise_on_as_many_patches_as_the_encoders(kind):
    data = TaskData(
        task="localization",
        ids=["a"],
        features=ProbeFeatures(patches=lambda row: np.zeros((10, 12, 8, 16), np.float32)),
        targets=np.array([[0.2, 0.5, 0.9]]),
        names=["point"],
        splits=np.array(["train"]),
        groups=np.array([0]),
        subgroups={},
        run={},
        affines=np.eye(4)[None],
        grids=np.array([[10, 12, 8]]),
        options={"max_positions": 100},
    )
    task = TaskRecipe("localization", targets=["x", "y", "z"])
    changed = with_reference(data, task, LabelTable("labels.csv", ["a"], {}), kind, seed=0)
    found = changed.features.patches(0)
    assert found.shape[:3] == pooled_grid(torch.zeros(10, 12, 8, 1), 100).shape[:3]
    if kind == "ceiling":
        # Its first channel shines where the point lies.
        place = (np.array(np.unravel_index(found[..., 0].argmax(), found.shape[:3])) + 0.5) / found.shape[:3]
        assert np.abs(place - data.targets[0]).max() <= 0.5 / min(found.shape[:3]) + 1e-9
