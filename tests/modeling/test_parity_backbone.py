"""The model against what the published code computes: every token, hidden state and rotary table of three variants."""

import pytest
import torch
from safetensors.torch import load_file

from tests.modeling.published_tokens import VARIANTS, published_tokens
from voxelfm_hf.convert import convert_checkpoint
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel

TOLERANCE = 1e-5
TABLE_TOLERANCE = 5e-6
CASES = ("case0", "case1", "case2")


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, parity, tmp_path_factory):
    """(folder of the converted model, the reference tensors by case)."""
    source = parity / "backbone" / request.param
    folder = convert_checkpoint(
        source / "checkpoint.pth", source / "config.yaml", tmp_path_factory.mktemp("converted") / request.param
    )
    tensors = load_file(source / "case.safetensors")
    cases = {case: {k.removeprefix(f"{case}."): v for k, v in tensors.items() if k.startswith(case)} for case in CASES}
    return folder, cases


def load(folder, implementation="sdpa", **kwargs) -> VoxelFMModel:
    return VoxelFMModel.from_pretrained(folder, attn_implementation=implementation, **kwargs)


def worst(ours: torch.Tensor, published: torch.Tensor) -> float:
    assert ours.shape == published.shape
    return (ours - published).abs().max().item()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_token_is_the_published_one(variant, case, masked, implementation):
    folder, cases = variant
    tensors, group = cases[case], "masked_output" if masked else "output"
    model = load(folder, implementation)
    outputs = model(
        tensors["input.volume"].float(),
        bool_masked_pos=tensors["input.mask"] if masked else None,
        output_hidden_states=True,
    )

    assert worst(outputs.last_hidden_state, published_tokens(tensors, group)) <= TOLERANCE
    assert worst(outputs.pooler_output, tensors[f"{group}.cls"]) <= TOLERANCE
    names = ["embedded", *(f"hidden{i}" for i in range(model.config.num_hidden_layers))]
    assert len(outputs.hidden_states) == len(names)
    for name, ours in zip(names, outputs.hidden_states, strict=True):
        # The reference holds masked hidden states of one case only.
        if not masked or f"{group}.{name}" in tensors:
            assert worst(ours, tensors[f"{group}.{name}"]) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_rotary_tables_are_the_published_ones(variant, case):
    folder, cases = variant
    tensors = cases[case]
    model = load(folder)
    grid = model.patch_grid(tensors["input.volume"])
    rotations = model.rotary_embedding(grid, torch.device("cpu"))

    prefix = model.num_prefix_tokens
    assert torch.equal(rotations[:prefix], torch.ones_like(rotations[:prefix]))
    patches = rotations[prefix:].unflatten(1, (3, -1))
    assert worst(patches.real, tensors["output.rope_cos"]) <= TABLE_TOLERANCE
    assert worst(patches.imag, tensors["output.rope_sin"]) <= TABLE_TOLERANCE


@pytest.mark.parametrize("how", ["weights", "autocast"])
@torch.no_grad()
def test_bf16_features_point_the_published_way(variant, how):
    folder, cases = variant
    model = load(folder, dtype=torch.bfloat16 if how == "weights" else torch.float32)
    for case in CASES:
        tensors = cases[case]
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            outputs = model(tensors["input.volume"].float())
        for ours, published in (
            (outputs.pooler_output, tensors["output.cls"]),
            (outputs.last_hidden_state, published_tokens(tensors, "output")),
        ):
            cosine = torch.nn.functional.cosine_similarity(ours.float(), published, dim=-1)
            assert cosine.min() >= 0.9999
