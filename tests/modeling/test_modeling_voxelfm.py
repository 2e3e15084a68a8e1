"""What the encoder computes: embeddings, attention back ends, stochastic depth, outputs, errors, compilation."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.utils import is_flash_attn_2_available

from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMBackbone, VoxelFMDropPath, VoxelFMModel, VoxelFMPatchConv


def tiny_config(**changes) -> VoxelFMConfig:
    """Two blocks of two heads; LayerScale 1, so that every block counts."""
    settings = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
        "layerscale_value": 1.0,
        "initializer_range": 0.1,
    }
    return VoxelFMConfig(**{**settings, **changes})


def tiny_model(*, seed: int = 0, model_class=VoxelFMModel, implementation: str | None = None, **changes):
    torch.manual_seed(seed)
    model = model_class._from_config(tiny_config(**changes), attn_implementation=implementation)
    # CLS and registers start at 1e-6 and the mask token at 0: give them something to say.
    for token in (model.embeddings.cls_token, model.embeddings.register_tokens, model.embeddings.mask_token):
        if token is not None:
            nn.init.normal_(token)
    return model.eval()


def volumes(*sides: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, *(sides or (8, 12, 16)), generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(inputs).last_hidden_state.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# Published size


def test_base_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = VoxelFMModel(VoxelFMConfig())
    assert sum(p.numel() for p in model.parameters()) == 110_029_536
    assert not list(model.buffers())


# Outputs


@pytest.mark.parametrize("patch_size", [4, 7, 8, 14])
@pytest.mark.parametrize("use_swiglu_ffn", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 1, 4])
@torch.no_grad()
def test_shapes_for_every_patch_edge_and_register_count(patch_size, use_swiglu_ffn, registers):
    model = tiny_model(patch_size=patch_size, use_swiglu_ffn=use_swiglu_ffn, num_register_tokens=registers)
    inputs = volumes(patch_size, 2 * patch_size, 3 * patch_size)
    outputs = model(inputs)

    assert model.patch_grid(inputs) == (1, 2, 3)
    assert outputs.last_hidden_state.shape == (2, 1 + registers + 6, 48)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    features = model.patch_features(outputs, (1, 2, 3))
    assert features.shape == (2, 1, 2, 3, 48)
    # w is the fastest axis of the sequence
    assert torch.equal(features[:, 0, 1, 2], outputs.last_hidden_state[:, 1 + registers + 5])
    assert torch.equal(features[:, 0, 1, 0], outputs.last_hidden_state[:, 1 + registers + 3])


@torch.no_grad()
def test_channel_axis_may_be_left_out():
    model, inputs = tiny_model(), volumes()
    assert torch.equal(model(inputs).last_hidden_state, model(inputs[:, 0]).last_hidden_state)


@torch.no_grad()
def test_volumes_of_a_batch_do_not_see_each_other():
    model, inputs = tiny_model(), volumes(batch=3)
    together = model(inputs).last_hidden_state
    for i in range(3):
        torch.testing.assert_close(model(inputs[i : i + 1]).last_hidden_state[0], together[i], atol=1e-5, rtol=0)


@torch.no_grad()
def test_attention_weights_are_distributions():
    model = tiny_model(implementation="eager")
    outputs = model(volumes(), output_attentions=True)
    tokens = outputs.last_hidden_state.shape[1]
    assert len(outputs.attentions) == 2
    for weights in outputs.attentions:
        assert weights.shape == (2, 2, tokens, tokens)
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, tokens))


@torch.no_grad()
def test_hidden_states_run_from_the_embeddings_to_the_last_block():
    model, inputs = tiny_model(), volumes()
    outputs = model(inputs, output_hidden_states=True)
    states = outputs.hidden_states
    assert len(states) == 3
    assert torch.equal(states[0], model.embeddings(inputs))
    assert torch.equal(model.norm(states[-1]), outputs.last_hidden_state)
    assert model(inputs).hidden_states is None
    as_tuple = model(inputs, return_dict=False)
    assert torch.equal(as_tuple[0], outputs.last_hidden_state) and torch.equal(as_tuple[1], outputs.pooler_output)


# Attention back ends


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
@torch.no_grad()
def test_attention_back_ends_agree_with_sdpa(implementation):
    inputs, reference = volumes(), tiny_model(implementation="sdpa")
    assert reference.config._attn_implementation == "sdpa"
    expected = reference(inputs).last_hidden_state
    torch.testing.assert_close(
        tiny_model(implementation=implementation)(inputs).last_hidden_state, expected, atol=1e-5, rtol=0
    )
    reference.set_attn_implementation(implementation)
    torch.testing.assert_close(reference(inputs).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_default_attention_is_sdpa():
    assert VoxelFMModel(tiny_config()).config._attn_implementation == "sdpa"


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed, so nothing is missing")
def test_missing_flash_attention_is_said_clearly():
    with pytest.raises(ImportError, match="(?i)flash"):
        VoxelFMModel._from_config(tiny_config(), attn_implementation="flash_attention_2")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_dropout_acts_in_training_only(implementation):
    model, inputs = tiny_model(implementation=implementation, attention_dropout=0.5), volumes()
    reference = tiny_model(implementation=implementation)
    with torch.no_grad():
        assert torch.equal(model(inputs).last_hidden_state, reference(inputs).last_hidden_state)
        model.train()
        assert not torch.equal(model(inputs).last_hidden_state, model(inputs).last_hidden_state)


# Embeddings


@pytest.mark.parametrize("patch_size", [4, 7])
@pytest.mark.parametrize("channels", [1, 2])
def test_patch_product_is_the_convolution(patch_size, channels):
    torch.manual_seed(0)
    ours = VoxelFMPatchConv(tiny_config(patch_size=patch_size, num_channels=channels)).double()
    conv = nn.Conv3d(channels, 48, patch_size, stride=patch_size).double()
    conv.load_state_dict(ours.state_dict())
    inputs = torch.randn(2, channels, patch_size, 2 * patch_size, 3 * patch_size, dtype=torch.float64)
    for module in (ours, conv):
        module.inputs = inputs.clone().requires_grad_()
        module.result = module(module.inputs)
        module.result.square().sum().backward()
    torch.testing.assert_close(ours.result, conv.result, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours.weight.grad, conv.weight.grad, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.bias.grad, conv.bias.grad, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.inputs.grad, conv.inputs.grad, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_masked_patches_become_the_mask_token():
    model, inputs = tiny_model(), volumes()
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[0, [0, 5, 23]] = True
    plain, masked = model.embeddings(inputs), model.embeddings(inputs, bool_masked_pos=mask)
    patches, prefix = masked[:, model.num_prefix_tokens :], model.num_prefix_tokens
    assert torch.equal(patches[mask], model.embeddings.mask_token[0].expand(3, -1))
    assert torch.equal(patches[~mask], plain[:, prefix:][~mask])
    assert torch.equal(masked[:, :prefix], plain[:, :prefix])

    # What lies under a mask must not reach the features.
    changed = inputs.clone()
    changed[0, :, :4, :4, :4] += 10
    outputs = [model(volume, bool_masked_pos=mask).last_hidden_state for volume in (inputs, changed)]
    assert torch.equal(*outputs)
    assert not torch.equal(model(changed).last_hidden_state, model(inputs).last_hidden_state)


# Training


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@pytest.mark.parametrize("use_swiglu_ffn", [False, True], ids=["mlp", "swiglu"])
def test_gradient_checkpointing_gives_the_same_gradients(drop_path_rate, use_swiglu_ffn):
    model, inputs = tiny_model(drop_path_rate=drop_path_rate, use_swiglu_ffn=use_swiglu_ffn).train(), volumes()
    runs = []
    model.layers[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    torch.manual_seed(3)
    expected = gradients(model, inputs)
    assert len(runs) == 1
    # its name after transformers 5.20
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    torch.manual_seed(3)
    got = gradients(model, inputs)
    assert len(runs) == 3, "once forward, once more in the backward pass"
    assert set(got) == set(expected) == {n for n, _ in model.named_parameters()} - {"embeddings.mask_token"}
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


def test_drop_path_drops_whole_samples_at_the_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    drop_path = VoxelFMDropPath(tiny_config(drop_path_rate=0.25)).train()
    ones = torch.ones(20_000, 3, 2)
    dropped = drop_path(ones)
    # every sample whole: all of its entries are 0, or all are 1 / keep
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    share = (dropped[:, 0, 0] == 0).float().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 20_000) ** 0.5
    assert abs(dropped.mean().item() - 1) < 0.03
    assert torch.equal(drop_path.eval()(ones), ones)


def test_drop_path_draws_each_branch_by_itself():
    """Both branches of both blocks: the patterns of 4 independent draws at rate 0.5 all occur."""
    torch.manual_seed(0)
    model = tiny_model(drop_path_rate=0.5).train()
    patterns = []
    for layer in model.layers:
        layer.drop_path.register_forward_hook(
            lambda module, args, output: patterns.append((output.flatten(1).abs().sum(1) == 0).tolist())
        )
    with torch.no_grad():
        model(volumes(4, 4, 4, batch=256))
    assert len(patterns) == 4
    assert len(set(zip(*patterns, strict=True))) == 16


# Errors


@pytest.mark.parametrize(
    "shape",
    [(2, 1, 8, 8, 9), (2, 1, 3, 8, 8), (2, 1, 0, 8, 8), (2, 2, 8, 8, 8), (8, 8, 8), (8, 8), (1, 2, 1, 8, 8, 8)],
)
def test_wrong_shapes_are_refused_with_shape_and_patch_size(shape):
    with pytest.raises(ValueError, match=r"multiples of the patch size 4.*got \(" + ", ".join(map(str, shape))):
        tiny_model()(torch.zeros(shape))


def test_a_list_of_volumes_is_refused():
    with pytest.raises(ValueError, match="one tensor.*one by one"):
        tiny_model()([torch.zeros(1, 8, 8, 8), torch.zeros(1, 4, 4, 4)])


@pytest.mark.parametrize("shape", [(2, 8), (1, 24), (2, 2, 3, 4), (24,)])
def test_wrong_masks_are_refused(shape):
    with pytest.raises(ValueError, match=r"bool_masked_pos must be \(batch, patches\) = \(2, 24\)"):
        tiny_model()(volumes(), bool_masked_pos=torch.zeros(shape, dtype=torch.bool))


# Compilation


def test_compiles_as_one_graph_for_a_fixed_grid():
    model, inputs = tiny_model(), volumes()
    graphs = []

    def counting_backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counting_backend)
    for _ in range(2):
        torch.testing.assert_close(compiled(inputs).last_hidden_state, model(inputs).last_hidden_state)
    mask = torch.rand(2, 24) < 0.5
    torch.testing.assert_close(
        compiled(inputs, bool_masked_pos=mask).last_hidden_state, model(inputs, bool_masked_pos=mask).last_hidden_state
    )
    assert len(graphs) == 2  # one with and one without a mask, none for the repetition
    torch._dynamo.reset()


# Backbone


@torch.no_grad()
def test_backbone_maps_are_the_hidden_states_on_the_grid():
    model = tiny_model()
    inputs = volumes()
    backbone = tiny_model(model_class=VoxelFMBackbone, out_features=["stem", "stage1", "stage2"])
    backbone.load_state_dict(model.state_dict())
    reference = model(inputs, output_hidden_states=True)
    outputs = backbone(inputs)

    assert outputs.hidden_states is None
    assert backbone.channels == [48, 48, 48]
    expected = [model.norm(state) for state in reference.hidden_states[:2]] + [reference.last_hidden_state]
    for feature_map, tokens in zip(outputs.feature_maps, expected, strict=True):
        assert feature_map.shape == (2, 48, 2, 3, 4)
        assert torch.equal(feature_map.permute(0, 2, 3, 4, 1).flatten(1, 3), tokens[:, model.num_prefix_tokens :])
    assert len(backbone(inputs, output_hidden_states=True).hidden_states) == 3

    as_tuple = backbone(inputs, return_dict=False)
    assert all(torch.equal(a, b) for a, b in zip(as_tuple[0], outputs.feature_maps, strict=True))
    backbone.config.return_dict = False
    assert torch.equal(backbone(inputs)[0][-1], outputs.feature_maps[-1])


@torch.no_grad()
def test_backbone_without_layernorm_gives_the_raw_stages():
    backbone = tiny_model(model_class=VoxelFMBackbone, out_indices=[1], apply_layernorm=False)
    inputs = volumes()
    outputs = backbone(inputs, output_hidden_states=True)
    raw = outputs.hidden_states[1][:, backbone.num_prefix_tokens :]
    assert torch.equal(outputs.feature_maps[0].flatten(2).transpose(1, 2), raw)


# Initialisation


def test_initial_weights_follow_the_published_recipe():
    torch.manual_seed(0)
    config = VoxelFMConfig(hidden_size=192, num_hidden_layers=1, num_attention_heads=4, patch_size=8)
    model = VoxelFMModel(config)
    linear = model.layers[0].mlp.up_proj
    assert abs(linear.weight.std().item() - 0.02) < 5e-4 and not linear.bias.any()
    assert torch.equal(model.layers[0].layer_scale1.lambda1, torch.full((192,), 1e-5))
    assert not model.embeddings.mask_token.any()
    for token in (model.embeddings.cls_token, model.embeddings.register_tokens):
        assert 5e-7 < token.std() < 2e-6
    # torch's default for a convolution: uniform in +-1/sqrt(fan in), weight and bias
    bound = 8**-1.5
    for parameter in (model.embeddings.patch_embeddings.weight, model.embeddings.patch_embeddings.bias):
        assert 0.95 * bound < parameter.abs().max() <= bound
    assert abs(model.embeddings.patch_embeddings.weight.std().item() / (bound / np.sqrt(3)) - 1) < 0.02
