"""What `voxelfm probe` and `finetune` make of the options that say how a task reads its labels."""

import csv
import json
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from voxelfm_hf.cli import app
from voxelfm_hf.eval.tasks import task_names
from voxelfm_hf.modeling.configuration_voxelfm_probe import HEADS_OF_TASK
from voxelfm_hf.release.checks import empty_sections
from voxelfm_hf.store import StoreWriter
from voxelfm_hf.volumes.errors import LabelError


def who(scan: int) -> str:
    """Two scans a person; as numbers, two persons would be one."""
    return str(scan // 4).zfill(2 + scan // 2 % 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of 60 scans, two a person, and labels with the columns of several tasks."""
    folder = tmp_path_factory.mktemp("options")
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 4))
    facts = {"spacing_mm": [1.0] * 3, "effective_spacing_mm": [1.0] * 3, "field_of_view_mm": [60.0] * 3}
    facts["patch_affine"] = np.eye(4).ravel().tolist()
    rows = [
        {"id": f"s{i}", "source": f"s{i}.nii", "cls": row.tolist(), "grid": [4, 4, 4], "notes": [], **facts}
        for i, row in enumerate(features)
    ]
    run = {"model": "m", "weight_hash": "w"}
    StoreWriter(folder / "store", {**run, "processor": {}}).add(rows)
    StoreWriter(folder / "regions", {**run, "processor": {"region_size": 16}}).add(rows)
    lines = ["id,who,days,died,age,weight"]
    for i, row in enumerate(features):
        lines.append(f"s{i},{who(i)},{1 + 90 * np.exp(-row[0]):.2f},{i % 3 != 0:d},{50 + 9 * row[1]:.1f},{70 + i}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "s0.nii").touch()
    return folder


def probe(folder, *words, out="out", store="store"):
    words = ["probe", folder / store, folder / "labels.csv", "--out", folder / out, *words]
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_a_probe_says_how_it_is_asked_and_what_it_does_not_know(folder):
    """Of regions it has to be told where to look; without a column of patients rows are taken for them."""
    words = ["--task", "regression", "--target", "age"]
    told = "note: the label table has no column of patients"
    backbone = "--model FOLDER_OF_THE_BACKBONE"  # the store does not say where its model is
    whole = probe(folder, *words, "--patient-column", "who", out="whole")
    assert whole.output.rstrip().endswith(f"--probe {folder / 'whole'} {backbone}") and told not in whole.output
    regions = probe(folder, *words, out="of-regions", store="regions")
    asked = f"--probe {folder / 'of-regions'} {backbone} --regions CSV"
    assert regions.output.rstrip().endswith(asked) and told in regions.output
    card = (folder / "of-regions" / "README.md").read_text()
    assert f"--probe THIS_FOLDER_OR_REPOSITORY {backbone} --regions CSV" in card


def test_retrieval_writes_its_scores_beside_those_of_a_random_order(folder):
    words = ["--task", "retrieval", "--target", "died", "--patient-column", "who", "--about", "Made up."]
    done = probe(folder, *words, out="retrieval")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (folder / "retrieval").iterdir()) == ["README.md", "results.json"]
    scores = json.loads((folder / "retrieval" / "results.json").read_text())["died"]["estimates"]
    card = (folder / "retrieval" / "README.md").read_text()
    line = next(line for line in done.output.splitlines() if "recall_at_1 " in line)
    assert f"chance {scores['recall_at_1']['chance']:.3f})" in line
    row = f"| died | Recall@1 | {scores['recall_at_1']['chance']:.3f} | {scores['recall_at_1']['value']:.3f} |"
    assert row in card and "Made up." in card and "not centred" in card and "no probe to load" in card
    assert "queries have fewer than 99 negatives" in card and "from_pretrained" not in card
    assert ModelCard(card).data.eval_results[0].metric_type == "recall_at_5" and empty_sections(card) == []


def test_retrieval_of_a_finding_that_no_test_scan_has_says_so(folder, tmp_path):
    lines = ["id,split,rare"] + [f"s{i},{('train', 'val', 'test')[i % 3]},{int(i == 0)}" for i in range(60)]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    words = ["probe", folder / "store", tmp_path / "labels.csv", "--task", "retrieval", "--target", "rare"]
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--out", tmp_path / "out")], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "rare  recall_at_5  undefined: no " in done.output, done.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "No score is defined on the test rows." in card and "recall_at_5 of rare: no " in card


def test_survival_takes_unit_horizons_and_the_column_of_patients(folder):
    words = ["--task", "survival", "--time", "days", "--event", "died", "--unit", "days", "--patient-column", "who"]
    done = probe(folder, *words, "--horizon", "60", "--horizon", "90.5", out="survival")
    assert done.exit_code == 0, done.output
    assert "auroc_at_60" in done.output and "auroc_at_90.5" in done.output
    config = json.loads((folder / "survival" / "config.json").read_text())
    assert config["target_unit"] == ["days"]
    # A person's two scans are in the same split.
    with open(folder / "survival" / "predictions.csv", newline="") as file:
        people = Counter(who(int(row["id"][1:])) for row in csv.DictReader(file))
    assert len(people) >= 5 and set(people.values()) == {2}
    assert {score["patients"] for score in config["metrics"].values()} == {len(people)}


def test_regression_takes_a_unit_for_each_target(folder):
    words = ["--task", "regression", "--target", "age", "--target", "weight"]
    done = probe(folder, *words, "--unit", "years", "--unit", "kg", out="regression")
    assert done.exit_code == 0, done.output
    assert json.loads((folder / "regression" / "config.json").read_text())["target_unit"] == ["years", "kg"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--task regression --target age --exclusive", "--task regression takes no --exclusive"),
        ("--task regression --target age --horizon 3", "--task regression takes no --horizon"),
        ("--task regression --target age --time time", "--task regression takes no --time"),
        ("--task survival --target age", "--task survival takes no --target"),
        ("--task classification --target died --mask-folder .", "--task classification takes no --mask-folder"),
        ("--task survival --head knn", "--head of survival is one of linear"),
        ("--task classification", "--task classification needs --target"),
        ("--task segmentation", "--task segmentation needs --classes"),
        ("--task nonsense", "it is one of classification"),
        ("--task survival --patient-column=", "--patient-column is empty"),
        ("--task survival --time=", "--time is empty"),
        ("--task survival --unit=", "--unit is empty"),
        ("--task survival --head=", "--head is empty"),
        ("--task regression --target age --target=", "--target is empty"),
        ("--task regression --target age --masks=", "--masks is empty"),
        ("--task segmentation --classes a --classes b --mask-folder=", "--mask-folder is empty"),
        ("--task regression --target age --target weight --target age", "--target names age twice"),
        ("--task segmentation --classes lung --classes lung", "--classes names lung twice"),
        ("--task survival --horizon 3 --horizon 3", "--horizon names 3.0 twice"),
    ],
)
def test_options_that_a_task_does_not_take_are_refused(folder, words, sentence):
    done = probe(folder, *words.split())
    assert done.exit_code == 2 and sentence in done.output, done.output
    assert not (folder / "out").exists()
    scan = ["finetune", str(folder / "s0.nii"), "--labels", str(folder / "labels.csv"), "--out", str(folder / "out")]
    done = CliRunner().invoke(app, [*scan, *words.split()], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and sentence in done.output, done.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--task classification --target died --classes a", "only where they exclude each other (exclusive)"),
        ("--task regression --target age --unit a --unit b", "a unit for each target: got a, b for age"),
        ("--task survival --unit days --unit weeks", "one unit, that of its time: got days, weeks"),
        ("--task survival --time days --event died --horizon -3", "horizons are times above 0, got -3"),
        ("--task survival --time days --event died --horizon nan", "horizons are times above 0, got nan"),
        ("--task regression --target aeg", "labels.csv has no column aeg"),
        ("--task survival --event died", "labels.csv has no column time"),
        ("--task localization --target age --target weight", "a point is three columns"),
    ],
)
def test_what_a_task_cannot_read_is_said_before_anything_is_fitted_or_embedded(folder, monkeypatch, words, sentence):
    monkeypatch.setattr(
        "voxelfm_hf.eval.probes.finetune.prepare_inputs", lambda *_, **__: pytest.fail("scans were read")
    )
    (folder / "list.csv").write_text("id,path\n" + "".join(f"s{i},s0.nii\n" for i in range(60)))
    scans = ["finetune", folder / "list.csv", "--labels", folder / "labels.csv", "--out", folder / "out"]
    tuned = CliRunner().invoke(app, [str(word) for word in (*scans, *words.split())])
    done = [tuned] if "localization" in words else [tuned, probe(folder, *words.split())]
    for result in done:
        assert isinstance(result.exception, LabelError) and sentence in str(result.exception)
    assert not (folder / "out").exists()


def test_the_tasks_of_a_command_are_those_with_a_file_and_for_finetune_with_a_head(folder):
    done = probe(folder, "--task", "retrieval", "--target", "died", "--head", "linear")
    assert done.exit_code == 2 and "--task retrieval takes no --head" in done.output
    for command, tasks in (("probe", task_names()), ("finetune", sorted(HEADS_OF_TASK))):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert f"{', '.join(tasks)}." in shown.output


def test_finetune_looks_at_its_options_before_it_searches_folders(folder, monkeypatch):
    monkeypatch.setattr("voxelfm_hf.scan_list.list_tasks", lambda *_, **__: pytest.fail("folders were searched"))
    words = ["finetune", str(folder), "--labels", str(folder / "labels.csv"), "--out", str(folder / "out")]
    done = CliRunner().invoke(app, [*words, "--task", "survival", "--head", "knn"], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and "--head of survival is one of linear" in done.output, done.output


def test_maps_lie_beside_the_labels_where_no_folder_is_named(folder, monkeypatch):
    given = []
    monkeypatch.setattr(
        "voxelfm_hf.eval.probes.run.fit_and_evaluate",
        lambda *_, read, **__: given.append(read) or (None, {}, SimpleNamespace(notes=()), None),
    )
    monkeypatch.setattr("voxelfm_hf.eval.probes.run.save_retrieval", lambda *_, **__: None)
    words = ["--task", "segmentation", "--classes", "background", "--classes", "lung", "--seed", "4"]
    assert probe(folder, *words).exit_code == 0
    assert probe(folder, *words, "--mask-folder", folder / "maps", "--allow-missing").exit_code == 0
    first = {"split_seed": 4, "folder": folder, "classes": ["background", "lung"]}
    assert given == [first, first | {"folder": str(folder / "maps"), "allow_missing": True}]


@pytest.mark.parametrize(
    "words",
    [
        ("probe", "nowhere", "labels.csv", "--task", "survival", "--out", "x"),
        ("embed", "nowhere.nii.gz", "--out", "x"),
        ("embed", "labels.csv", "--out", "labels.csv"),
        ("predict", "nowhere", "--probe", "x"),
        ("finetune", "nowhere", "--labels", "labels.csv", "--task", "survival", "--out", "x"),
        ("search", "nowhere", "--id", "a"),
        ("confounds", "store", "nowhere", "--acquisition", "a", "--out", "x"),
        ("report", "nowhere", "--model", "x"),
        ("finetune", "s0.nii", "--labels", "labels.csv", "--task", "retrieval", "--out", "x"),
        ("probe", "store", "labels.csv", "--task", "nowhere", "--out", "x"),
        ("probe", "store", "labels.csv", "--task", "survival", "--time", "", "--out", "nowhere"),
    ],
)
def test_wrong_words_are_refused_before_torch_is_imported(folder, words):
    code = "import sys; from voxelfm_hf.cli import main\nfrom contextlib import suppress\n"
    code += "with suppress(SystemExit): print('ended', main())\nsys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert any(word in done.stderr for word in ("nowhere", "is a file", "got retrieval", "is empty")), done.stderr
    assert "Traceback" not in done.stderr and not (folder / "x").exists()
