"""Where the body lies in a CT volume."""

from collections.abc import Sequence

import numpy as np

BACKGROUND_HU = -800.0
BACKGROUND_KERNEL = 21


def _box_sums(values: np.ndarray, kernel: int, axes: Sequence[int]) -> np.ndarray:
    """Sums over centred windows of `kernel` along the axes, zero outside; int64."""
    half = kernel // 2
    for axis in axes:
        padding = [(half + 1, half) if a == axis else (0, 0) for a in range(values.ndim)]
        total = np.cumsum(np.pad(values, padding), axis=axis, dtype=np.int64)
        length = values.shape[axis]
        upper = np.take(total, range(kernel, kernel + length), axis=axis)
        values = upper - np.take(total, range(length), axis=axis)
    return values


def _first_plane(mask: np.ndarray, axis: int, candidates: np.ndarray, kernel: int) -> int | None:
    """The first of the candidate planes of an axis that holds a voxel whose k^3 cube is more than half true."""
    planes = np.moveaxis(mask, axis, 0)
    half = kernel // 2
    for index in candidates:
        slab = planes[max(0, index - half) : index + half + 1]
        columns = slab.sum(axis=0, dtype=np.uint16)
        if (2 * _box_sums(columns, kernel, (0, 1)) > kernel**3).any():
            return int(index)
    return None


def background_box(
    hu: np.ndarray, threshold: float = BACKGROUND_HU, kernel: int = BACKGROUND_KERNEL
) -> list[tuple[int, int]] | None:
    """The box of the body: where more than half of the k^3 cube round a voxel exceeds the threshold.

    The same box as a dense k^3 convolution with zero padding, found without one: windowed projections of the
    thresholded volume bound the possible planes of each axis, and only those are summed exactly, from the outside
    in, until the first hit.

    Args:
        hu: Volume (D, H, W) in HU.
        threshold: Voxels above it count as body, in HU.
        kernel: Edge k of the cube, odd.

    Returns:
        [start, stop) an axis, widened by k // 2 and clipped to the volume; None where no voxel qualifies.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"the background kernel must be odd and positive, got {kernel}")
    mask = hu > threshold
    half = kernel // 2
    # (H, W) and (D, H) projections, summed slice by slice in small integers: one quick pass over the mask each
    over_z = np.zeros(mask.shape[1:], np.int32)
    over_x = np.empty(mask.shape[:2], np.int32)
    ones = np.ones(mask.shape[2], np.float32)
    for z, plane in enumerate(mask.view(np.uint8)):
        over_z += plane
        over_x[z] = plane.astype(np.float32) @ ones
    # A cube holds at most what its column through the whole volume holds.
    possible_yx = 2 * _box_sums(over_z, kernel, (0, 1)) > kernel**3
    possible_zy = 2 * _box_sums(over_x, kernel, (0, 1)) > kernel**3
    possible = [possible_zy.any(1), possible_yx.any(1) & possible_zy.any(0), possible_yx.any(0)]
    box = []
    for axis, candidates in enumerate(np.flatnonzero(p) for p in possible):
        first = _first_plane(mask, axis, candidates, kernel)
        if first is None:
            return None
        last = _first_plane(mask, axis, candidates[::-1], kernel)
        assert last is not None  # the plane found from the other side is one
        box.append((max(0, first - half), min(mask.shape[axis], last + half + 1)))
    return box
