"""The published value range, and sizes and resampling of CT volumes.

All geometry is per axis, so a whole chain of resamplings is composed into one small matrix an axis and applied
once; nothing larger than its input or its output is ever in memory.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

Size = tuple[int, ...]
# In HU: the range values are clipped to, and how they are normalised.
HU_RANGE = (-1000.0, 1900.0)
IMAGE_MEAN = -573.8
IMAGE_STD = 461.3
MIN_SPACING_MM = 0.75
# Voxels converted to float at a time, and output rows of one block of a banded matrix product.
CHUNK_VOXELS = 1 << 23
BLOCK_ROWS = 64
# Factors tried round the exact scale of the patch budget, as published.
BUDGET_TRIALS = (0.98, 0.99, 1.0, 1.01, 1.02)
BUDGET_FALLBACK = 0.95


def isotropic_size(
    shape: Sequence[int],
    spacing: Sequence[float],
    min_spacing_mm: float = MIN_SPACING_MM,
    voxel_mm: float | None = None,
) -> Size:
    """The shape after resampling to cubic voxels.

    Their edge is `voxel_mm`, by default max(min(spacing), `min_spacing_mm`), or the voxels' own if already cubic.
    """
    if voxel_mm is not None and not (math.isfinite(voxel_mm) and voxel_mm > 0):
        raise ValueError(f"voxel_mm must be a positive number of millimetres, got {voxel_mm}")
    if voxel_mm is None and len(set(spacing)) == 1:
        return tuple(shape)
    target = max(min(spacing), min_spacing_mm) if voxel_mm is None else voxel_mm
    return tuple(max(1, round(n * s / target)) for n, s in zip(shape, spacing, strict=True))


def budget_size(shape: Sequence[int], patch_size: int, max_patches: int) -> Size:
    """The shape scaled down so that its patch grid holds at most `max_patches` patches.

    All axes shrink by (budget / patches)^(1/3) times the candidate among 0.98 .. 1.02 that keeps the most patches;
    where none fits it is 0.95, as published, which on grids of few patches can still exceed the budget. An axis that
    would end below one patch keeps exactly one while the others share the rest of the budget.

    Args:
        shape: (D, H, W) in voxels, every side at least `patch_size`.
        patch_size: Patch edge p in voxels.
        max_patches: The budget, at least 1.
    """

    def patches(size: Sequence[int]) -> int:
        return math.prod(n // patch_size for n in size)

    if max_patches < 1:
        raise ValueError(f"max_patches must be at least 1, got {max_patches}")
    if patches(shape) <= max_patches:
        return tuple(shape)

    def scaled(factor: float) -> list[int]:
        return [patch_size if fixed else int(n * factor) for n, fixed in zip(shape, pinned, strict=True)]

    pinned = [False] * len(shape)
    while not all(pinned):
        free = [n for n, fixed in zip(shape, pinned, strict=True) if not fixed]
        factor = (max_patches / patches(free)) ** (1 / len(free))
        fitting = [size for trial in BUDGET_TRIALS if patches(size := scaled(factor * trial)) <= max_patches]
        size = max(fitting, key=patches) if fitting else scaled(factor * BUDGET_FALLBACK)
        while any(pinned) and patches(size) > max_patches:
            factor *= BUDGET_FALLBACK
            size = scaled(factor)
        too_thin = [n < patch_size for n in size]
        if not any(too_thin):
            return tuple(size)
        pinned = [fixed or thin for fixed, thin in zip(pinned, too_thin, strict=True)]
    return tuple(scaled(1.0))


def interpolation_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Linear interpolation of an axis, half-pixel centres (align_corners False), as a (size_out, size_in) matrix."""
    return linear_rows((np.arange(size_out) + 0.5) * size_in / size_out - 0.5, size_in)


def linear_rows(source: np.ndarray, size_in: int) -> np.ndarray:
    """Rows that interpolate linearly at fractional indices, with the edge values outside: (len(source), size_in)."""
    source = np.clip(source, 0, size_in - 1)
    lower = source.astype(np.int64)
    upper = np.minimum(lower + 1, size_in - 1)
    matrix = np.zeros((len(source), size_in))
    rows = np.arange(len(source))
    np.add.at(matrix, (rows, lower), 1 - (source - lower))
    np.add.at(matrix, (rows, upper), source - lower)
    return matrix


def _multiply_axis(values: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Applies a banded (n_out, n_in) matrix along one axis of a float volume, block by block of its band."""
    shape = list(values.shape)
    shape[axis] = len(matrix)
    out = values.new_empty(shape)
    for start in range(0, len(matrix), BLOCK_ROWS):
        block = matrix[start : start + BLOCK_ROWS]
        used = block.any(0).nonzero()
        low, high = int(used[0]), int(used[-1]) + 1
        block, part = block[:, low:high], values.narrow(axis, low, high - low)
        if axis == 2:
            product = part @ block.T
        elif axis == 1:
            product = block @ part
        else:
            product = (block @ part.reshape(high - low, -1)).unflatten(1, part.shape[1:])
        out.narrow(axis, start, len(block)).copy_(product)
    return out


def apply_axes(hu: np.ndarray, matrices: Sequence[np.ndarray | slice], hu_range: Sequence[float]) -> torch.Tensor:
    """Clips a volume to `hu_range` and applies one matrix (or slice) an axis; float32 (D', H', W') in HU."""
    hu = hu[tuple(m if isinstance(m, slice) else slice(None) for m in matrices)]
    todo = {axis: torch.from_numpy(m).float() for axis, m in enumerate(matrices) if not isinstance(m, slice)}
    # Axes that shrink most go first: the rest then has less to do.
    order = sorted(todo, key=lambda axis: todo[axis].shape[0] / todo[axis].shape[1])
    if not order:
        return torch.from_numpy(hu.astype(np.float32)).clamp_(hu_range[0], hu_range[1])
    first = order[0]
    along = 1 if first == 0 else 0
    rows = max(1, CHUNK_VOXELS * hu.shape[along] // hu.size)
    shape = list(hu.shape)
    shape[first] = len(todo[first])
    out = torch.empty(shape)
    for start in range(0, hu.shape[along], rows):
        part = hu[:, start : start + rows] if along else hu[start : start + rows]
        values = torch.from_numpy(np.array(part, np.float32, order="C")).clamp_(hu_range[0], hu_range[1])
        out.narrow(along, start, part.shape[along]).copy_(_multiply_axis(values, todo[first], first))
    for axis in order[1:]:
        out = _multiply_axis(out, todo[axis], axis)
    return out


def axis_matrix(n: int, isotropic: int, padded: int, resized: int, offset: int, kept: int) -> np.ndarray | slice:
    """Isotropic resampling, edge padding, budget resampling and centre crop of one axis in one matrix.

    Args:
        n, isotropic, padded, resized: Voxels of the axis before and after each of the first three steps.
        offset, kept: First voxel and number of voxels that the crop keeps.

    Returns:
        (kept, n), or a slice where nothing is resampled.
    """
    if n == isotropic == padded == resized:
        return slice(offset, offset + kept)
    matrix = np.eye(n) if n == isotropic else interpolation_matrix(n, isotropic)
    if padded != isotropic:
        before = (padded - isotropic) // 2
        matrix = matrix[np.clip(np.arange(padded) - before, 0, isotropic - 1)]
    if resized != padded:
        matrix = interpolation_matrix(padded, resized)[offset : offset + kept] @ matrix
        return matrix
    return matrix[offset : offset + kept]
