"""What a pre-training step is timed against computes the same loss, the same masks and the same teacher."""

import numpy as np
import pytest
import torch

from voxelfm_hf.eval.speed import training as speed_training
from voxelfm_hf.training.pretrain.crops import CropSettings
from voxelfm_hf.training.pretrain.heads import HeadSettings
from voxelfm_hf.training.pretrain.recipe import ModelSettings, PretrainRecipe, PretrainRunSettings


@pytest.fixture(scope="module")
def recipe() -> PretrainRecipe:
    return PretrainRecipe(
        data="",
        output_dir="",
        model=ModelSettings(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4, drop_path_rate=0.0
        ),
        crops=CropSettings(global_size=16, local_size=8, num_locals=3),
        head=HeadSettings(16, 8, 32),
        run=PretrainRunSettings(batch_size=2, total_batch=2),
    )


def test_the_plain_step_is_ours_slowly(recipe: PretrainRecipe):
    ours, plain = (kind(recipe, autocast=False) for kind in (speed_training.Step, speed_training.PlainStep))
    for parameter, other in zip(ours.student.parameters(), plain.student.parameters(), strict=True):
        assert torch.equal(parameter, other)
    for _ in range(2):
        masks = ours.masks()
        losses = []
        for step in (ours, plain):
            step.optimizer.zero_grad()
            loss = step.loss(masks)
            loss.backward()
            step.move()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for own, other in zip(ours.teacher.parameters(), plain.teacher.parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.teacher.ibot_centre.value, plain.teacher.ibot_centre.value, atol=1e-5, rtol=1e-4)


def test_plain_masks_have_exact_counts():
    generator = np.random.default_rng(0)
    for count in (0, 1, 5, 100, 256):
        assert speed_training.plain_mask(generator, count, (8, 8, 8)).sum() == count


def test_measurements_run(recipe: PretrainRecipe):
    speed, parts = speed_training.step_speed(recipe, rounds=1)
    assert speed.ratio > 0 and sum(parts.values()) == pytest.approx(1)
    assert "ratio" in str(speed_training.masking_speed(num_images=4, grid=(4, 4, 4), rounds=1))
    assert speed_training.loader_speed(recipe, shape=(60, 60, 60)) > 0
