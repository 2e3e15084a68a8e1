"""Saving and loading: bit-equal round trips, dtypes, the meta device, device maps, LoRA adapters."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMBackbone, VoxelFMModel

INPUTS = torch.randn(1, 1, 8, 8, 12, generator=torch.Generator().manual_seed(0))


def make_model(model_class=VoxelFMModel, **changes):
    settings = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 4}
    torch.manual_seed(0)
    model = model_class(VoxelFMConfig(**{**settings, "layerscale_value": 1.0, **changes}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def tokens(model) -> torch.Tensor:
    return model(INPUTS.to(model.device)).last_hidden_state


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_swiglu_ffn": True},
        {"num_register_tokens": 0},
        {"qkv_bias": False, "proj_bias": False, "mlp_bias": False},
    ],
)
def test_round_trip_is_bit_equal(tmp_path, changes):
    model = make_model(**changes)
    model.save_pretrained(tmp_path)
    again, info = VoxelFMModel.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not again.training
    state = again.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(tokens(again), tokens(model))
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pth", ".pt", ".pkl")]


def test_saved_weights_hold_the_convolution_shape_and_no_tables(tmp_path):
    make_model().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_slice("embeddings.patch_embeddings.weight").get_shape() == [48, 1, 4, 4, 4]
        assert not [name for name in file.keys() if "rotary" in name or "rope" in name]  # noqa: SIM118


def test_backbone_and_model_read_each_other(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    backbone, info = VoxelFMBackbone.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    feature_map = backbone(INPUTS).feature_maps[-1]
    assert torch.equal(feature_map.flatten(2).transpose(1, 2), tokens(model)[:, model.num_prefix_tokens :])

    backbone.save_pretrained(tmp_path / "backbone")
    assert torch.equal(tokens(VoxelFMModel.from_pretrained(tmp_path / "backbone")), tokens(model))


def test_missing_weights_are_initialised_as_for_a_new_model(tmp_path):
    make_model(num_hidden_layers=1, layerscale_value=0.5).save_pretrained(tmp_path)
    config = VoxelFMConfig.from_pretrained(tmp_path, num_hidden_layers=2)
    model, info = VoxelFMModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert info["missing_keys"] and all(key.startswith("layers.1.") for key in info["missing_keys"])
    block = model.layers[1]
    assert torch.equal(block.layer_scale1.lambda1, torch.full((48,), 0.5))
    assert 0.015 < block.mlp.up_proj.weight.std() < 0.025 and not block.mlp.up_proj.bias.any()
    assert torch.equal(block.norm1.weight, torch.ones(48))


def test_dtype_follows_the_argument_or_the_checkpoint(tmp_path):
    make_model().save_pretrained(tmp_path / "fp32")
    model = VoxelFMModel.from_pretrained(tmp_path / "fp32", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    # fp32 volumes go in as the processor makes them
    assert tokens(model).dtype == torch.bfloat16

    model.save_pretrained(tmp_path / "bf16")
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"
    again = VoxelFMModel.from_pretrained(tmp_path / "bf16")
    assert again.dtype == torch.bfloat16
    assert torch.equal(tokens(again), tokens(model))
    assert VoxelFMModel.from_pretrained(tmp_path / "bf16", dtype=torch.float32).dtype == torch.float32


def test_bf16_weights_stay_close_to_fp32():
    model = make_model()
    expected = tokens(model)
    cosine = nn.functional.cosine_similarity(tokens(model.to(torch.bfloat16)).float(), expected, dim=-1)
    assert cosine.min() > 0.999


def test_device_map_and_meta_device_keep_weights_and_rotary_positions(tmp_path):
    model = make_model(pos_embed_rescale=2.0)
    model.save_pretrained(tmp_path)
    expected, grid = tokens(model), model.patch_grid(INPUTS)
    table = model.rotary_embedding(grid, torch.device("cpu"))

    mapped = VoxelFMModel.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(tokens(mapped), expected)

    with torch.device("meta"):
        empty = VoxelFMModel(model.config)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.eval().rotary_embedding(grid, torch.device("cpu")), table)
    assert torch.equal(tokens(empty), expected)


def test_meta_device_runs_shapes_only():
    with torch.device("meta"):
        model = VoxelFMModel(VoxelFMConfig())
        outputs = model(torch.empty(2, 1, 28, 42, 56))
    assert outputs.last_hidden_state.shape == (2, 1 + 4 + 24, 864)


def test_lora_trains_the_adapter_only_and_merges(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    model = make_model()
    expected = tokens(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    assert torch.equal(tokens(adapted), expected), "a fresh adapter changes nothing"
    assert all("lora" in name for name, p in adapted.named_parameters() if p.requires_grad)
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 2 * 4

    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(pixel_values=INPUTS).pooler_output.square().sum().backward()
        optimizer.step()
    trained = tokens(adapted)
    assert not torch.allclose(trained, expected, atol=1e-3)

    adapted.save_pretrained(tmp_path)
    fresh = make_model()
    assert torch.equal(tokens(PeftModel.from_pretrained(fresh, tmp_path)), trained)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(tokens(merged), trained, atol=1e-5, rtol=1e-5)
    unchanged = [name for name in before if not any(f"{p}_proj.weight" in name for p in "qkvo")]
    assert all(torch.equal(before[name], merged.state_dict()[name]) for name in unchanged)
