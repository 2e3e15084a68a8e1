"""The recipe in a run's folder: kept to once there is something to go on with, free before."""

import pytest

from voxelfm_hf.recipes import load_recipe
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe
from voxelfm_hf.training.run_folder import RunLog, settle_recipe
from voxelfm_hf.volumes.errors import RecipeError


def recipe(seed: int) -> PretrainRecipe:
    return PretrainRecipe(data="SHARDS", output_dir="RUN", seed=seed)


def test_a_run_that_never_made_a_step_does_not_block_another(tmp_path) -> None:
    settle_recipe(recipe(0), tmp_path)
    settle_recipe(recipe(1), tmp_path)
    assert load_recipe(tmp_path / "recipe.yaml", PretrainRecipe).seed == 1


def test_a_run_goes_on_with_its_own_recipe_only(tmp_path) -> None:
    settle_recipe(recipe(0), tmp_path)
    RunLog(tmp_path / "log.jsonl").add({"step": 1})
    settle_recipe(recipe(0), tmp_path)
    with pytest.raises(RecipeError, match="holds a run with seed 0, not 1"):
        settle_recipe(recipe(1), tmp_path)
    assert load_recipe(tmp_path / "recipe.yaml", PretrainRecipe).seed == 0
