"""The configuration: published defaults, checks with a sentence, the round trip through JSON."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from voxelfm_hf.modeling.configuration_voxelfm import AUTO_MAP, VoxelFMConfig


def test_defaults_are_the_published_base_model():
    config = VoxelFMConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (864, 12, 12)
    assert (config.patch_size, config.num_register_tokens, config.image_size) == (14, 4, 112)
    assert (config.mlp_ratio, config.intermediate_size) == (4.0, 3456)
    assert (config.layerscale_value, config.rope_theta, config.layer_norm_eps) == (1e-5, 100.0, 1e-5)
    assert config.qkv_bias and config.proj_bias and config.mlp_bias and not config.use_swiglu_ffn
    assert config.hidden_act == "gelu" and config.drop_path_rate == 0.0 and config.pos_embed_rescale is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 100}, r"hidden_size 100 must be a multiple of 6 \* num_attention_heads \(72\)"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"num_register_tokens": -1}, "num_register_tokens must be 0 or more, got -1"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\), got 1.0"),
        ({"pos_embed_rescale": 0.5}, "pos_embed_rescale must be at least 1, got 0.5"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
    ],
)
def test_contradictions_are_named(settings, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        VoxelFMConfig(**settings)


@pytest.mark.parametrize("settings", [{"patch_size": "14"}, {"hidden_size": 864.0}, {"use_swiglu_ffn": "yes"}])
def test_wrong_types_are_refused(settings):
    with pytest.raises(StrictDataclassFieldValidationError):
        VoxelFMConfig(**settings)


def test_json_round_trip_keeps_every_field(tmp_path):
    config = VoxelFMConfig(
        patch_size=8, hidden_size=72, num_attention_heads=3, num_hidden_layers=3, mlp_ratio=2, use_swiglu_ffn=True,
        num_register_tokens=0, rope_theta=50, pos_embed_rescale=2.0, qkv_bias=False, drop_path_rate=0.1,
        out_features=["stage1", "stage3"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    again = VoxelFMConfig.from_pretrained(tmp_path)
    # saving adds the version of transformers to what is compared
    differing = {k for k, v in again.to_dict().items() if v != config.to_dict().get(k)}
    assert differing <= {"transformers_version"}
    assert again.out_indices == [1, 3]
    assert again.auto_map == AUTO_MAP


def test_stage_names_follow_a_changed_depth(tmp_path):
    VoxelFMConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    config = VoxelFMConfig.from_pretrained(tmp_path, num_hidden_layers=3)
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert config.out_features == ["stage2"]
