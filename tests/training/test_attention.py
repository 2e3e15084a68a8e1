"""The attention of bf16 training on CPUs is the model's own, and leaves no trace in what is exported."""

import json
from pathlib import Path

import torch

from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.training.network_options import MATMUL_ATTENTION


def test_features_and_gradients_are_those_of_sdpa(tmp_path: Path):
    torch.manual_seed(0)
    config = VoxelFMConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4, layerscale_value=1.0
    )
    model = VoxelFMModel(config)
    volume = torch.randn(2, 1, 8, 12, 16)
    results = []
    for name in ("sdpa", MATMUL_ATTENTION):
        model.set_attn_implementation(name)
        model.zero_grad()
        tokens = model(volume).last_hidden_state
        tokens.square().mean().backward()
        results.append((tokens.detach(), model.layers[0].attention.q_proj.weight.grad.clone()))
    assert model.config._attn_implementation == MATMUL_ATTENTION
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path)
    assert MATMUL_ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert VoxelFMModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
