"""3D rotary positions against an independent slow implementation, and their fp32 tables whatever the model's dtype."""

import cmath
import math

import numpy as np
import pytest
import torch

from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel, VoxelFMRotaryEmbedding, apply_rotary

CPU = torch.device("cpu")
HEAD_DIM = 24
REGISTERS = 2


def config(**changes) -> VoxelFMConfig:
    return VoxelFMConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        num_hidden_layers=2,
        patch_size=4,
        num_register_tokens=REGISTERS,
        **changes,
    )


def rotate_slowly(vector: np.ndarray, position: tuple[int, int, int], grid: tuple[int, int, int], base: float):
    """One head's vector rotated by the published formula, pair by pair in double precision."""
    block = len(vector) // 3
    rotated = np.empty_like(vector)
    for axis in range(3):
        coordinate = 2 * (position[axis] + 0.5) / grid[axis] - 1
        for k in range(block // 2):
            angle = 2 * math.pi * coordinate / base ** (2 * k / block)
            even, odd = axis * block + 2 * k, axis * block + 2 * k + 1
            pair = complex(vector[even], vector[odd]) * cmath.exp(1j * angle)
            rotated[even], rotated[odd] = pair.real, pair.imag
    return rotated


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 3, 4), (5, 1, 2)])
@pytest.mark.parametrize("base", [100.0, 37])
def test_rotation_is_the_published_formula(grid, base):
    rotary = VoxelFMRotaryEmbedding(config(rope_theta=base))
    count = math.prod(grid)
    states = torch.randn(2, 1 + REGISTERS + count, 2, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    rotated = apply_rotary(states, rotary(grid, CPU))

    assert torch.equal(rotated[:, : 1 + REGISTERS], states[:, : 1 + REGISTERS])
    for token, position in enumerate(np.ndindex(*grid), start=1 + REGISTERS):
        for batch in range(2):
            for head in range(2):
                expected = rotate_slowly(states[batch, token, head].double().numpy(), position, grid, base)
                np.testing.assert_allclose(rotated[batch, token, head].numpy(), expected, atol=5e-6)


def test_the_product_of_query_and_key_depends_on_their_distance_only():
    rotary = VoxelFMRotaryEmbedding(config())
    grid = (1, 1, 6)
    query, key = torch.randn(2, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    rotations = rotary(grid, CPU)[1 + REGISTERS :]
    queries = apply_rotary(query.expand(1, 6, 1, -1), rotations)[0, :, 0]
    keys = apply_rotary(key.expand(1, 6, 1, -1), rotations)[0, :, 0]
    scores = queries @ keys.T
    for distance in range(-5, 6):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert scores[0].std() > 0.1


def tables_used(model: VoxelFMModel, inputs: torch.Tensor) -> list[torch.Tensor]:
    """The rotations every block received in one forward."""
    used: list[torch.Tensor] = []
    handles = [
        layer.attention.register_forward_pre_hook(
            lambda module, args, kwargs: used.append(kwargs["position_embeddings"]), with_kwargs=True
        )
        for layer in model.layers
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return used


@pytest.mark.parametrize("how", ["autocast", "to", "half"])
def test_tables_stay_fp32_in_half_precision_and_are_made_once(how):
    torch.manual_seed(0)
    model, inputs = VoxelFMModel(config()).eval(), torch.randn(1, 1, 8, 8, 12)
    expected = tables_used(model, inputs)
    assert expected[0].dtype == torch.complex64
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            used = tables_used(model, inputs)
    else:
        used = tables_used(model.to(torch.bfloat16) if how == "to" else model.half(), inputs)
    assert len(used) == 2
    assert all(table is used[0] for table in used), "one table a forward, not one a block"
    assert used[0].dtype == torch.complex64 and torch.equal(used[0], expected[0])


def test_rotation_keeps_dtype_and_double_precision():
    rotary = VoxelFMRotaryEmbedding(config())
    rotations = rotary((2, 2, 2), CPU)
    states = torch.randn(1, 1 + REGISTERS + 8, 2, HEAD_DIM, dtype=torch.float64)
    back = apply_rotary(apply_rotary(states, rotations), rotations.conj())
    assert back.dtype == torch.float64
    # the fp32 table is a unit number to 1e-7 only, the products themselves are exact to 1e-15
    modulus = rotations.to(torch.complex128).abs().square().repeat_interleave(2, dim=-1)[:, None]
    torch.testing.assert_close(back, states * modulus, atol=1e-14, rtol=0)
    assert apply_rotary(states.to(torch.bfloat16), rotations).dtype == torch.bfloat16


def test_coordinates_are_rescaled_in_training_only():
    rotary = VoxelFMRotaryEmbedding(config(pos_embed_rescale=2.0))
    grid = (2, 3, 4)
    plain = VoxelFMRotaryEmbedding(config())(grid, CPU)
    assert torch.equal(rotary.eval()(grid, CPU), plain)
    assert torch.equal(VoxelFMRotaryEmbedding(config()).train()(grid, CPU), plain)

    # The slowest frequency of each axis turns by less than half a circle: its angle over the plain one is the factor.
    slow = [HEAD_DIM // 6 * (axis + 1) - 1 for axis in range(3)]
    reference = plain[1 + REGISTERS :, slow].angle()
    used = reference.abs() > 1e-3
    rotary.train()
    torch.manual_seed(0)
    factors = []
    for _ in range(400):
        drawn = rotary(grid, CPU)
        assert torch.equal(drawn[: 1 + REGISTERS], plain[: 1 + REGISTERS])
        ratio = (drawn[1 + REGISTERS :, slow].angle() / reference)[used]
        factors.append(ratio.mean().item())
        torch.testing.assert_close(ratio, torch.full_like(ratio, factors[-1]), atol=1e-4, rtol=0)
    logs = np.log(factors) / np.log(2)
    assert -1.001 < logs.min() < -0.95 and 0.95 < logs.max() < 1.001
    # uniform in [-1, 1]: mean 0, variance 1/3
    assert abs(logs.mean()) < 4 * (1 / 3 / 400) ** 0.5
    assert abs(logs.var() - 1 / 3) < 0.06
