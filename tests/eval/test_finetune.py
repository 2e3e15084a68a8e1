import csv
import json
import re
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from tests.training.small_tuning import SCANS, make_tuning
from voxelfm_hf.eval.benchmark.grid import run_benchmark
from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe
from voxelfm_hf.eval.benchmark.results import score_benchmark
from voxelfm_hf.eval.benchmark.tables import write_benchmark
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.labels import LabelTable, read_labels
from voxelfm_hf.eval.probes.apply import ProbeReader
from voxelfm_hf.eval.probes.finetune import Tuner, finetune_and_save
from voxelfm_hf.eval.probes.label_check import check_labels
from voxelfm_hf.eval.probes.run import fit_and_evaluate
from voxelfm_hf.eval.tasks import classification, survival
from voxelfm_hf.failures import read_failures
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.recipes import to_recipe
from voxelfm_hf.scan_list import Scan
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.finetune.settings import FinetuneSettings
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import LabelError, RecipeError, VoxelFMError

SETTINGS = FinetuneSettings(epochs=1, batch_size=10, learning_rate=5e-4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The small scans with a label table and a store of their frozen features."""
    folder = tmp_path_factory.mktemp("tuning")
    small = make_tuning(folder)
    rng = np.random.default_rng(0)
    labels = small.job.targets[:, 0]
    rows = [
        {
            "id": name,
            "path": f"scans/{index}.nii.gz",
            "split": "train" if index < 20 else "val" if index < 30 else "test",
            "stripes": "" if index in (3, 35) else int(labels[index]),
            "other": int(rng.integers(0, 2)),
            "time": round(float(rng.exponential()), 2),
            "event": int(rng.integers(0, 2)),
        }
        for index, name in enumerate(small.ids)
    ]
    with open(folder / "labels.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    tasks = [Task(Scan(name, path, named=True)) for name, path in zip(small.ids, small.scans, strict=True)]
    embed_scans(tasks, small.model, folder / "store", EmbedOptions(dtype="float32"))
    return small, tasks


def test_frozen_is_what_voxelfm_probe_gives(made):
    """Inputs kept in 16 bits move the frozen features, and the probe's answers, by less than any score shows."""
    small, _ = made
    store, labels = FeatureStore(small.folder / "store"), read_labels(small.folder / "labels.csv")
    told = []
    probe, reports, data, predictions = fit_and_evaluate(
        store,
        labels,
        task="classification",
        read={"targets": ["stripes", "other"]},
        fit={"seed": 3},
        progress=lambda *place: told.append(place),
    )
    assert list(dict.fromkeys(part for part, _, _ in told)) == ["reading", "fitting", "scores"]
    epochs = [done for part, done, _ in told if part == "fitting"]
    assert epochs == list(range(len(epochs))) and len(epochs) > 10
    tuned = Tuner(small.model, small.inputs, SETTINGS).fit(data, mode="frozen", seed=3)
    ours = classification.predict(tuned.probe, tuned.data, data.rows("test"))
    np.testing.assert_allclose(ours, predictions, atol=2e-3)
    assert tuned.cost.trainable_parameters == 2 * (24 + 1) and tuned.cost.peak_memory_mb > 50


def test_a_tuned_model_is_calibrated_and_scored_as_a_probe_is(made):
    small, _ = made
    store, labels = FeatureStore(small.folder / "store"), read_labels(small.folder / "labels.csv")
    data = classification.read(store, labels, targets=["stripes", "other"])
    tuned = Tuner(small.model, small.inputs, SETTINGS).fit(data, mode="last_1", train=data.rows("train")[:15])
    rows = data.rows("test")
    found = classification.predict(tuned.probe, tuned.data, rows)
    assert len(tuned.probe.config.threshold) == len(tuned.probe.config.temperature) == 2
    facts = tuned.probe.config.fit["fine_tuning"]
    assert facts["mode"] == "last_1" and facts["settings"]["epochs"] == 1
    assert tuned.probe.config.fit["rows"]["train"] == 15
    reports = classification.evaluate(found, tuned.data, rows, replicates=0)
    truth = data.targets[rows, 0]
    known = np.isfinite(truth)
    assert known.sum() == len(rows) - 1 and reports["stripes"]["estimates"]["auroc"]["n"] == len(rows) - 1
    assert reports["stripes"]["auroc"] == pytest.approx(roc_auc_score(truth[known], found[known, 0]))


def test_survival_gets_its_baseline_hazard(made):
    small, _ = made
    data = survival.read(FeatureStore(small.folder / "store"), read_labels(small.folder / "labels.csv"))
    tuned = Tuner(small.model, small.inputs, SETTINGS).fit(data, mode="lora")
    assert tuned.probe.config.baseline_times and tuned.finetuned.epochs == 1
    assert survival.predict(tuned.probe, tuned.data, data.rows("test")).shape == (18, 1)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_command_leaves_adapters_and_a_probe_that_answer_from_a_file(made, tmp_path, monkeypatch):
    from voxelfm_hf.cli import app

    small, _ = made
    words = ["finetune", str(small.folder / "labels.csv"), "--labels", str(small.folder / "labels.csv")]
    words += ["--task", "classification", "--target", "stripes", "--model", str(small.model), "--mode", "lora"]
    words += ["--out", str(tmp_path / "out"), "--set", "epochs=2", "--set", "lora.rank=2", "--set", "batch_size=10"]
    words += ["--license", "mit", "--dataset", "user/stripes", "--about", "Stripes along z or y."]
    told = record_parts(monkeypatch)
    monkeypatch.setattr("sys.argv", ["voxelfm", *words])
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "stripes  auroc  frozen" in result.output and re.search(
        r"parameters trained, \d+ s of training", result.output
    )
    scans = [(0, SCANS), (SCANS, SCANS)]
    assert [told[part] for part in ("preparing", "embedding", "frozen features", "tuned features")] == [scans] * 4
    assert [told[part] for part in ("training", "scores")] == [[(0, 2), (2, 2)], [(0, 1), (1, 1)]]
    assert list(told)[3] == "frozen probe" and len(told) == 7
    assert re.search(r"epoch 0: validation loss 0\.\d+\n", result.output)
    assert re.search(r"epoch 2: training loss 0\.\d+, validation loss 0\.\d+\n", result.output)
    facts = json.loads((tmp_path / "out" / "adapter" / "finetuning.json").read_text())
    assert facts["mode"] == "lora" and facts["base"] == "small" and len(facts["history"]) == 3
    adapter = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 2 and adapter["base_model_name_or_path"] == "small"
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").glob("[am]*/*.json"))
    assert str(small.folder).encode() not in written
    probe = json.loads((tmp_path / "out" / "probe" / "config.json").read_text())
    check_tuned_card((tmp_path / "out" / "probe" / "README.md").read_text(), probe["fit"]["fine_tuning"], facts)
    # The base was a local folder: it has to lie beside the adapters.
    (tmp_path / "out" / "small").symlink_to(small.model)
    reader = ProbeReader(tmp_path / "out" / "probe", model=tmp_path / "out" / "adapter")
    with open(tmp_path / "out" / "probe" / "predictions.csv", newline="") as file:
        expected = {row["id"]: float(row["predicted_stripes"]) for row in csv.DictReader(file)}
    for index in (30, 41):
        answer = reader.answer(read_volume(small.scans[index]))
        assert answer.values["stripes"] == pytest.approx(expected[f"s{index}"], abs=2e-3)
    again = CliRunner().invoke(app, words)
    assert again.exit_code != 0 and "out is finished: name a new --out, or delete it" in str(again.exception)


def record_parts(monkeypatch):
    """First and last place (done, total) of each part that the command tells its bar of."""
    told = {}

    @contextmanager
    def bar(unit):
        yield lambda part, *place: told.setdefault(part, [place, place]).__setitem__(1, place)

    monkeypatch.setattr(sys.modules["voxelfm_hf.cli.finetune"], "bar_of_parts", bar)
    return told


def check_tuned_card(card, tuning, facts):
    """The card is that of the fine-tuning, not of the frozen probe it started from."""
    data = ModelCard(card).data
    assert (data.license, data.datasets) == ("mit", ["user/stripes"]) and "Stripes along z or y." in card
    assert "A linear head with LoRA adapters for `small`, trained together" in card
    assert "probe on frozen features" not in card and "nesterov" not in card
    assert re.search(r"Scored once on the test rows .*`voxelfm finetune labels\.csv .*--set lora\.rank=2", card)
    assert f"| trainable parameters | {facts['trainable_parameters']:,} |" in card
    assert f"the best epoch (of {facts['epochs']})" in card and f"| best epoch | {facts['best_epoch']} |" in card
    assert "| lora rank | 2 |" in card and "| lora layers | q_proj, k_proj, v_proj, o_proj |" in card
    assert "| batch size | 10 |" in card and "| layer decay |" not in card and "None" not in card
    assert f"took {tuning['seconds']:.0f} s" in card and f"{tuning['peak_memory_mb']} MB" in card
    assert tuning["seconds"] == facts["seconds"] and all(note in card for note in facts["notes"])


def test_heads_that_cannot_be_trained_are_refused_before_any_scan_is_read(made, tmp_path):
    from voxelfm_hf.cli import app

    small, _ = made
    words = ["finetune", str(small.scans[0]), "--labels", str(small.folder / "labels.csv"), "--task", "classification"]
    words += ["--target", "stripes", "--head", "knn", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, RecipeError) and not (tmp_path / "out").exists()
    assert "knn" in str(result.exception) and "linear, mlp or pooler" in str(result.exception)
    data = classification.read(
        FeatureStore(small.folder / "store"), read_labels(small.folder / "labels.csv"), targets=["stripes"], head="knn"
    )
    with pytest.raises(RecipeError, match="knn"):
        Tuner(small.model, small.inputs, SETTINGS).fit(data, mode="full")


def test_every_scan_that_fails_is_named_and_listed(made, tmp_path):
    small, tasks = made
    odd = ["s1", "s5", "s33"]
    for name, content in zip(odd, (b"no scan", b"no scan", b""), strict=True):
        (tmp_path / f"{name}.nii.gz").write_bytes(content)
    tasks = [Task(Scan(t.scan.identifier, tmp_path / f"{t.scan.identifier}.nii.gz", named=True)) for t in tasks]
    tasks = [bad if bad.scan.identifier in odd else good for bad, good in zip(tasks, made[1], strict=True)]
    fit = {"model": small.model, "task": "classification", "read": {"targets": ["stripes"]}, "mode": "lora"}
    labels = read_labels(small.folder / "labels.csv")
    with pytest.raises(
        VoxelFMError, match=r"^3 scans cannot be prepared: s1: .*\(and 1 more\); s33: .*; all listed in"
    ):
        finetune_and_save(tasks, labels, tmp_path / "out", **fit)
    assert sorted(read_failures(tmp_path / "out" / "work")) == sorted(odd)


def test_a_task_that_fits_nothing_is_refused(made, tmp_path):
    small, tasks = made
    labels, fit = read_labels(small.folder / "labels.csv"), {"model": small.model, "mode": "lora"}
    with pytest.raises(RecipeError, match="retrieval fits nothing"):
        finetune_and_save(tasks, labels, tmp_path / "out", task="retrieval", read={"targets": ["stripes"]}, **fit)


def test_scans_are_read_as_the_command_says(made, tmp_path, monkeypatch):
    """What a refusal of a scan names is an option here too."""
    from voxelfm_hf.cli import app

    given = {}
    monkeypatch.setattr("voxelfm_hf.eval.probes.finetune.finetune_and_save", lambda *_, **named: given.update(named))
    small, _ = made
    words = ["finetune", str(small.scans[0]), "--labels", str(small.folder / "labels.csv"), "--task", "survival"]
    words += ["--out", str(tmp_path / "out"), "--pad", "--assume-hu", "--spacing", "2.5,0.7,0.8"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert given["options"] == EmbedOptions(pad=True, assume_hu=True, spacing=(2.5, 0.7, 0.8))


def test_unknown_settings_are_one_sentence(made, tmp_path):
    from voxelfm_hf.cli import app

    small, _ = made
    words = ["finetune", str(small.folder / "labels.csv"), "--labels", str(small.folder / "labels.csv")]
    words += ["--task", "classification", "--target", "stripes", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--set", "epoch=2"])
    assert result.exit_code != 0 and "did you mean epochs?" in str(result.exception)
    result = CliRunner().invoke(app, [*words, "--set", "epochs=0"])
    assert "epochs must be at least 1" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--mode last_0", "no way of fine-tuning named last_0: use frozen, lora, full or last_1"),
        ("--mode Lora", "no way of fine-tuning named Lora"),
        ("--mode last_4", "last_4 names more blocks than the backbone has"),
        ("--set lora.layers=[gate_proj]", "none of which the backbone has"),
        ("--set lora.rank=0", "lora.rank must be at least 1"),
        ("--set lora.dropout=1.5", "lora.dropout lies in"),
        ("--set learning_rate=-1", "learning_rate must be a number of at least 0"),
        ("--set head_learning_rate=.nan", "head_learning_rate must be a number of at least 0"),
        ("--set clip_norm=0", "clip_norm must be above 0"),
        ("--set layer_decay=2", "layer_decay lies in"),
        ("--set flip=true --task localization", "flip moves the targets of a localization"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_scan_is_read(made, tmp_path, monkeypatch, words, sentence):
    from voxelfm_hf.cli import app

    small, _ = made
    monkeypatch.setattr(
        "voxelfm_hf.eval.probes.finetune.prepare_inputs", lambda *_, **__: pytest.fail("scans were read")
    )
    given = ["finetune", str(small.folder / "labels.csv"), "--labels", str(small.folder / "labels.csv")]
    given += ["--task", "classification", "--target", "stripes", "--model", str(small.model)]
    given += ["--out", str(tmp_path / "out"), *words.split()]
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, RecipeError) and sentence in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["classification", "localization", "segmentation"])
def test_labels_that_will_do_are_not_refused_before_scans_are_read(made, tmp_path, task):
    small, tasks = made
    rows = {"x": [-4e3] * SCANS, "y": [0.0] * SCANS, "z": [4e3] * SCANS, "mask": ["none.nii"] * SCANS}
    table = LabelTable("labels", small.ids, {**rows, "sick": [0, 1] * (SCANS // 2)})
    read = {
        "classification": {"targets": ["sick"]},
        "localization": {"targets": ["x", "y", "z"]},
        "segmentation": {"classes": ["background", "lung"]},
    }
    check_labels(task, tasks, table, read[task])
    with pytest.raises(LabelError, match="12 of 48 ids of labels have no features"):
        check_labels(task, tasks[12:], table, read[task])


def test_benchmark_has_every_mode_beside_the_frozen_encoder(made, tmp_path):
    small, tasks = made
    labels = read_labels(small.folder / "labels.csv")
    data = BenchmarkData(tasks, LabelTable("labels.csv", labels.ids, labels.columns), small.folder)
    recipe = to_recipe(
        {
            "data": "lidc",
            "encoders": [{"kind": "voxelfm", "model": str(small.model)}],
            "tasks": [{"task": "classification", "targets": ["stripes"]}],
            "fine_tuning": ["frozen", "lora", "full"],
            "tuning": {"epochs": 1, "batch_size": 10, "lora": {"rank": 2}},
            "seeds": [0],
            "replicates": 20,
            "references": False,
        },
        BenchmarkRecipe,
    )
    run = run_benchmark(recipe, data, tmp_path / "out")
    results = score_benchmark(run)
    text = write_benchmark(run, results, tmp_path / "out")
    assert not run.failures
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "auroc"]
    assert [row["encoder"] for row in rows] == ["small", "small+frozen", "small+lora", "small+full"]
    plain, frozen, lora, full = rows
    assert len({row["n"] for row in rows}) == len({row["train_rows"] for row in rows}) == 1
    assert float(frozen["value"]) == pytest.approx(float(plain["value"]), abs=0.02)
    assert plain["seconds"] == "" and float(lora["seconds"]) > 0 and float(full["peak_memory_mb"]) > 50
    assert float(frozen["trainable_parameters"]) == 25
    assert float(lora["trainable_parameters"]) == 25 + 3 * 4 * 2 * (24 + 24)
    assert float(full["trainable_parameters"]) > 10_000
    assert "## Cost of fine-tuning" in text and "small+lora" in text
    assert {row["second"] for row in results.comparisons} == {"small+frozen", "small+lora", "small+full"}
    assert len(labels) == SCANS
