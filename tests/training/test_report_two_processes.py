"""Two gloo processes train a report model as one process with the same batch does."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.eval.report_world import write_bases, write_data
from tests.two_processes import in_two_processes
from voxelfm_hf.recipes import load_recipe
from voxelfm_hf.training.report.recipe import ReportRecipe
from voxelfm_hf.training.report.stages import train_reports


def train(folder: Path, out: str, batch_size: int) -> None:
    recipe = load_recipe(folder / "training.yaml", ReportRecipe)
    # Without noise and dropout nothing is drawn while training.
    quiet = replace(recipe.stage1, batch_size=batch_size, total_batch=4, epochs=2, feature_noise=0.0)
    recipe = replace(
        recipe,
        data=replace(recipe.data, reports=str(folder / "labels.csv"), store=str(folder / "store")),
        model=replace(recipe.model, resampler_dropout=0.0),
        stage1=quiet,
        output_dir=str(folder / out),
    )
    train_reports(recipe, stage=1)


def test_two_processes_learn_what_one_learns(tmp_path):
    write_bases(tmp_path)
    write_data(tmp_path, scans=16)
    in_two_processes(train, tmp_path, "two", batch_size=1)
    train(tmp_path, "one", batch_size=4)
    one, two = (load_file(tmp_path / name / "stage1/model/model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
