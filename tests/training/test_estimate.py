"""The estimate before a run against what models really hold, and the packaged recipes."""

import pytest
import torch

from voxelfm_hf.recipes import load_recipe
from voxelfm_hf.training.pretrain.estimate import estimate
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe, check
from voxelfm_hf.training.pretrain.self_distillation import Student, Teacher


def packaged(name: str, *words: str) -> PretrainRecipe:
    return load_recipe(name, PretrainRecipe, overrides=["--data=x", "--output_dir=y", *words])


@pytest.mark.parametrize("name", ["base", "large", "tiny", "smoke"])
def test_packaged_recipes_can_run(name: str):
    recipe = packaged(name)
    check(recipe)
    assert recipe.accumulation_steps(1) * recipe.run.batch_size == recipe.run.total_batch


def test_base_is_the_published_run():
    recipe = packaged("base")
    published = PretrainRecipe(data="x", output_dir="y")
    for section in ("model", "crops", "masks", "head", "loss", "teacher", "optimizer"):
        assert getattr(recipe, section) == getattr(published, section)
    assert recipe.run.total_batch == 2048 and recipe.run.total_steps == 100_000
    with torch.device("meta"):
        student = Student(recipe.model_config(), recipe.head, recipe.loss)
    assert student.backbone.num_parameters() == 110_029_536
    found = estimate(recipe, num_processes=8)
    assert found.accumulation_steps == 16
    assert found.parameters == pytest.approx(student.backbone.num_parameters(), rel=0.01)
    heads = sum(parameter.numel() for parameter in student.dino_head.parameters())
    assert found.head_parameters == pytest.approx(heads, rel=0.01)
    assert found.tokens == (2 * (512 + 5) + 8 * (64 + 5), 2 * (512 + 5))


@pytest.mark.parametrize("swiglu", [False, True])
def test_estimated_activations_are_near_those_kept(swiglu: bool):
    recipe = packaged(
        "tiny", "--run.batch_size", "2", "--run.mixed_precision", "no", f"--model.use_swiglu_ffn={str(swiglu).lower()}"
    )
    student = Student(recipe.model_config(), recipe.head, recipe.loss)
    teacher = Teacher(student)
    crops = torch.randn(4, 1, 40, 40, 40), torch.randn(8, 1, 24, 24, 24)
    masks = torch.zeros(4, 125, dtype=torch.bool)
    masks[0, :40] = True
    output = teacher(crops[0], masks, temperature=0.05)
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in student.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        student(*crops, masks, output)
    assert estimate(recipe, num_processes=1).activation_bytes == pytest.approx(sum(kept.values()), rel=0.35)


def test_recomputed_blocks_and_larger_batches_show():
    plain, recomputed = (estimate(packaged("base", *words), num_processes=1) for words in ([], CHECKPOINTED))
    assert recomputed.activation_bytes < 0.3 * plain.activation_bytes
    assert recomputed.flops_per_step > plain.flops_per_step
    halved = estimate(packaged("base", "--run.batch_size", "8"), num_processes=1)
    assert halved.activation_bytes == pytest.approx(plain.activation_bytes / 2)
    assert halved.flops_per_step == pytest.approx(plain.flops_per_step)


CHECKPOINTED = ["--run.checkpoint_activations", "true"]
