"""Recipes of benchmarks: mistakes, those of the package, the command."""

import inspect
from importlib import resources
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from tests.eval.small_benchmark import made_data, made_recipe
from tests.eval.small_datasets import ct_rate_folder, nsclc_folder, total_folder
from voxelfm_hf.cli import app
from voxelfm_hf.eval.benchmark.recipe import read_recipe
from voxelfm_hf.eval.datasets import About, dataset_names, load_dataset
from voxelfm_hf.volumes.errors import RecipeError


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


@pytest.mark.parametrize("change", [{"fine_tuning": ["lorra"]}, {"seeds": []}, {"tasks": [{"task": "captioning"}]}])
def test_a_mistake_is_looked_for_in_the_file_that_has_it(tmp_path, change):
    values = {"data": "lidc", "encoders": [{"kind": "spacing"}], "tasks": [{"task": "survival"}], **change}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match=r"mine\.yaml: "):
        read_recipe(tmp_path / "mine.yaml")


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
    assert not quick or (recipe.quick == {} and len(recipe.seeds) <= len(read_recipe(name).seeds))


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
