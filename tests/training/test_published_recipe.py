"""The `base` recipe and the defaults of every setting are the published numbers."""

import pytest
import torch

from voxelfm_hf.recipes import load_recipe, to_values
from voxelfm_hf.training.pretrain.heads import DistillationHead, HeadSettings
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe

# The method of arXiv 2604.04133; epochs of 1,000 steps.
PUBLISHED = {
    "model": {
        "hidden_size": 864,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 14,
        "mlp_ratio": 4,
        "num_register_tokens": 4,
        "layerscale_value": 1e-5,
        "rope_theta": 100,
    },
    "crops": {
        "global_size": 112,
        "local_size": 56,
        "num_locals": 8,
        "global_scale": [0.32, 1],
        "local_scale": [0.05, 0.32],
        "hu_range": [-1000, 1900],
        "image_mean": -573.8,
        "image_std": 461.3,
    },
    "masks": {"masked_share": 0.5, "ratio_range": [0.1, 0.5]},
    "head": {"hidden_size": 2048, "bottleneck_size": 256, "num_prototypes": 65536, "separate_ibot_head": False},
    "loss": {
        "ibot_weight": 1,
        "koleo_weight": 0.1,
        "student_temperature": 0.1,
        "centre_momentum": 0.9,
        "targets": "centring",
    },
    "teacher": {
        "temperature_start": 0.04,
        "temperature": 0.07,
        "temperature_warmup_steps": 30_000,
        "momentum_start": 0.994,
        "momentum_end": 0.994,
    },
    "optimizer": {
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-6,
        "warmup_steps": 10_000,
        "weight_decay": 0.04,
        "final_weight_decay": 0.2,
        "last_layer_frozen_steps": 1000,
        "layer_decay": 0.9,
        "patch_embedding_multiplier": 0.2,
        "clip_norm": 3,
    },
    "run": {"total_steps": 100_000, "total_batch": 2048, "batch_size": 16},
}


PLACES = {"data": "SHARDS", "output_dir": "RUN"}
RECIPES = {
    "base": load_recipe("base", PretrainRecipe, overrides=[f"--{name}={value}" for name, value in PLACES.items()]),
    "defaults": PretrainRecipe(**PLACES),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("section", PUBLISHED)
def test_numbers_are_the_published_ones(recipe, section) -> None:
    values = to_values(RECIPES[recipe])[section]
    assert {name: values[name] for name in PUBLISHED[section]} == PUBLISHED[section]


def test_a_new_head_starts_as_published() -> None:
    torch.manual_seed(0)
    head = DistillationHead(864, HeadSettings(num_prototypes=512))
    assert [tuple(layer.weight.shape) for layer in head.mlp if hasattr(layer, "weight")] == [
        (2048, 864),
        (2048, 2048),
        (256, 2048),
    ]
    for layer in head.mlp:
        if hasattr(layer, "weight"):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
            assert not layer.bias.any()
    # Unit prototypes: the gain of the weight normalisation starts at 1, and there is no bias.
    torch.testing.assert_close(head.prototypes().norm(dim=1), torch.ones(512))
    assert head.last_layer.bias is None
