"""A large scan through the model in overlapping tiles, whose patch features are stitched to one grid.

The encoder normalises patch positions by the grid it is given, and it was trained on crops: tiles of that size keep
both the positions and the field of view it knows, at any spacing, and memory does not grow with the scan.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from voxelfm_hf.volumes.errors import ModelError

# Patches that go through the model together.
PATCHES_A_BATCH = 8_000
# Patches a tiled scan may have; a budget against typing errors, not against memory.
TILED_BUDGET = 100_000


def tile_starts(length: int, window: int) -> list[int]:
    """First positions of windows that cover an axis and overlap by about half."""
    if length <= window:
        return [0]
    step = max(1, (window + 1) // 2)
    return [*range(0, length - window, step), length - window]


def tile_places(grid: Sequence[int], window: int) -> list[tuple[slice, slice, slice]]:
    """The windows of a grid, cut to it where it is smaller."""
    z, y, x = ([slice(s, s + min(n, window)) for s in tile_starts(n, window)] for n in grid)
    return [(a, b, c) for a in z for b in y for c in x]


def tile_weights(shape: Sequence[int], device: Any = None) -> torch.Tensor:
    """Weights (d, h, w) that fall off linearly from the middle of a tile, whose rim has seen least around it."""
    tents = []
    for n in shape:
        index = torch.arange(n, dtype=torch.float32, device=device)
        tents.append(torch.minimum(index + 1, n - index) / ((n + 1) // 2))
    z, y, x = tents
    return z[:, None, None] * y[None, :, None] * x[None, None, :]


def check_tile(tile: int | None, patch_size: int) -> None:
    """ModelError for a tile that is no multiple of the patch size."""
    if tile is not None and (tile < patch_size or tile % patch_size):
        raise ModelError(f"a tile must be a multiple of the model's patch size {patch_size}, got {tile}")


@torch.inference_mode()
def encode(network: Any, voxels: torch.Tensor, *, tile: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """CLS vectors and patch grids of prepared volumes of one shape.

    Args:
        network: A `VoxelFMModel`.
        voxels: (B, 1, D, H, W) on the device of the network, sides multiples of the patch size.
        tile: Edge in voxels of overlapping tiles to take each volume in; whole by default.

    Returns:
        (B, C) and (B, d, h, w, C), float32.
    """
    if tile is not None:
        vectors, grids = zip(*(tiled_features(network, volume, tile=tile) for volume in voxels), strict=True)
        return torch.stack(vectors), torch.stack(grids)
    outputs = network(voxels)
    return outputs.pooler_output.float(), network.patch_features(outputs, network.patch_grid(voxels)).float()


@torch.inference_mode()
def tiled_features(network: Any, voxels: torch.Tensor, *, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of one prepared volume by overlapping tiles.

    Args:
        network: A `VoxelFMModel`.
        voxels: (1, D, H, W), sides multiples of the patch size.
        tile: Edge of a tile in voxels, a multiple of the patch size.

    Returns:
        The mean CLS vector of the tiles (C,), and the patch grid (d, h, w, C), weighted means where tiles overlap;
        both float32 on the device of the network.
    """
    p = network.config.patch_size
    grid = network.patch_grid(voxels)
    places = tile_places(grid, tile // p)
    shape = tuple(side.stop - side.start for side in places[0])
    weights = tile_weights(shape, network.device)[..., None]
    total = torch.zeros((*grid, network.config.hidden_size), device=network.device)
    weight = torch.zeros((*grid, 1), device=network.device)
    vectors = []
    together = max(1, PATCHES_A_BATCH // math.prod(shape))
    for start in range(0, len(places), together):
        batch = places[start : start + together]
        cubes = [voxels[(slice(None), *(slice(s.start * p, s.stop * p) for s in place))] for place in batch]
        outputs = network(torch.stack(cubes).to(network.device))
        vectors.append(outputs.pooler_output.float())
        for place, features in zip(batch, network.patch_features(outputs, shape).float(), strict=True):
            total[place] += features * weights
            weight[place] += weights
    return torch.cat(vectors).mean(0), total / weight
