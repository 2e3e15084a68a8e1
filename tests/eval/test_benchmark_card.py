"""The card and figures of a benchmark say what its files say."""

import json

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from sklearn.metrics import roc_auc_score

from voxelfm_hf.eval.benchmark.card import write_report
from voxelfm_hf.eval.benchmark.finished import FinishedBenchmark
from voxelfm_hf.eval.benchmark.grid import run_benchmark
from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe
from voxelfm_hf.eval.benchmark.results import score_benchmark
from voxelfm_hf.eval.benchmark.tables import write_benchmark
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.features import Task
from voxelfm_hf.recipes import to_recipe
from voxelfm_hf.release.checks import empty_sections
from voxelfm_hf.scan_list import Region, Scan
from voxelfm_hf.volumes.errors import RecipeError

COUNT = 120


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A benchmark of label columns as features, on regions of one scan, and its data."""
    folder = tmp_path_factory.mktemp("benchmark")
    rng = np.random.default_rng(0)
    np.save(folder / "scan.npy", rng.integers(-900, 200, (12, 30, 30)).astype(np.int16))
    (folder / "scan.json").write_text(json.dumps({"spacing": [2.0, 1.0, 1.0]}))
    clue = rng.normal(size=COUNT)
    life, censoring = rng.exponential(np.exp(-clue)), rng.exponential(2.0, size=COUNT)
    columns = {
        "patient_id": [i // 2 for i in range(COUNT)],
        "split": [("train", "train", "train", "val", "test", "test")[i // 2 % 6] for i in range(COUNT)],
        "clue": clue.tolist(),
        "other": rng.normal(size=COUNT).tolist(),
        "sick": (clue + 0.7 * rng.normal(size=COUNT) > 0.2).astype(int).tolist(),
        "size": (5 + 2 * clue + 0.3 * rng.normal(size=COUNT)).tolist(),
        "time": np.minimum(life, censoring).tolist(),
        "event": (life <= censoring).astype(int).tolist(),
        "sex": ["FM"[i // 2 % 2] for i in range(COUNT)],
    }
    ids = [f"scan{i:03d}" for i in range(COUNT)]
    regions = tuple(Region(i, (15.0, 15.0, 12.0), 20.0) for i in ids)
    labels = LabelTable("labels.csv", ids, columns)
    data = BenchmarkData([Task(Scan("scan", folder / "scan.npy"), regions)], labels, folder, subgroups=("sex",))
    values = {
        "data": "lidc",
        "title": "Made-up",
        "encoders": [
            {"kind": "columns", "name": "good", "options": {"columns": ["clue"]}},
            {"kind": "columns", "name": "poor one", "options": {"columns": ["other"]}},
        ],
        "tasks": [
            {"task": "classification", "targets": ["sick"]},
            {"task": "regression", "targets": ["size"]},
            {"task": "survival", "read": {"unit": "months"}},
            {"task": "retrieval", "targets": ["sick"]},
        ],
        "fractions": [0.3, 1.0],
        "seeds": [0, 1],
        "replicates": 50,
    }
    run = run_benchmark(to_recipe(values, BenchmarkRecipe), data, folder / "out")
    write_benchmark(run, score_benchmark(run), folder / "out")
    return folder / "out", data


def test_the_card_shows_every_task_and_figure(finished):
    out, data = finished
    card = write_report(out, data, command="voxelfm benchmark made-up.yaml --out OUT").read_text()
    assert DatasetCard(card).data.pretty_name == "Made-up" and empty_sections(card) == []
    for words in (
        "voxelfm benchmark made-up.yaml",
        "### classification: ",
        "### survival: ",
        "Paired tests",
        "CC BY 3.0",
    ):
        assert words in card
    shown = [line.split("](")[1].rstrip(")") for line in card.splitlines() if line.startswith("![")]
    kinds = {name.split("/")[1].split("-")[0] for name in shown}
    assert kinds == {"forest", "labels", "roc", "reliability", "agreement", "survival", "neighbours"}
    assert all((out / name).is_file() for name in shown) and len(shown) == len(set(shown))
    assert "| poor one |" in card and "| sick | sex | F |" in card
    assert "scan0" not in card  # ids of scans stay in the files of predictions


def test_curves_come_from_the_predictions_that_are_kept(finished):
    out, _ = finished
    benchmark = FinishedBenchmark(out)
    assert benchmark.encoders("classification") == ["good", "poor one"]
    assert benchmark.options("survival") == {"unit": "months"} and benchmark.options("regression") == {}
    columns = benchmark.by_target("good", "classification")["sick"]
    row = next(r for r in benchmark.main_rows("classification") if r["encoder"] == "good")
    assert len(columns["truth"]) == row["n"]
    assert abs(roc_auc_score(columns["truth"], columns["prediction"]) - row["value"]) < 0.05  # one of two seeds


def test_a_folder_of_something_else_is_a_sentence(tmp_path):
    with pytest.raises(RecipeError, match="voxelfm benchmark"):
        write_report(tmp_path)
