"""Windows of a scan that a segmentation probe is fitted on: part of the patch grid, and its part of the label map."""

from dataclasses import dataclass

import numpy as np
import torch

from voxelfm_hf.modeling.probe_heads_voxelfm import patch_positions

# Share of the windows that are placed over a voxel of a class, each class of the scan as often as the others.
ON_A_CLASS = 2 / 3


@dataclass(frozen=True, eq=False)
class VoxelWindow:
    """A window of one scan.

    Attributes:
        features: (d, h, w, C).
        positions: (d, h, w, 3) z, y, x of the patches from 0 to 1 across the whole scan.
        labels: (d * v, h * v, w * v) classes, negative where not annotated.
    """

    features: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor


def random_window(
    features: torch.Tensor, labels: torch.Tensor, *, edge: int | None, generator: torch.Generator | None = None
) -> VoxelWindow:
    """A window of `edge` patches, two of three times over a labelled voxel of a random class.

    Args:
        features: (d, h, w, C) of the whole scan.
        labels: Its label map; a whole number of voxels a patch along every axis.
        edge: In patches; None gives the whole scan.
        generator: Of the random numbers, torch's own by default.
    """
    grid = tuple(features.shape[:3])
    positions = patch_positions(grid, features)
    if edge is None or all(n <= edge for n in grid):
        return VoxelWindow(features, positions, labels.long())
    voxels = [size // n for size, n in zip(labels.shape, grid, strict=True)]
    if any(size != n * v for size, n, v in zip(labels.shape, grid, voxels, strict=True)):
        raise ValueError(f"a label map of {tuple(labels.shape)} has no whole number of voxels a patch of {grid}")
    sides = [min(n, edge) for n in grid]
    starts = [_draw(n - side + 1, generator) for n, side in zip(grid, sides, strict=True)]
    if float(torch.rand((), generator=generator)) < ON_A_CLASS:
        present = [value for value in np.unique(labels.numpy()).tolist() if value > 0]
        if present:
            value = present[_draw(len(present), generator)]
            places = (labels == value).flatten().nonzero()[:, 0]
            place = int(places[_draw(len(places), generator)])
            voxel = np.unravel_index(place, labels.shape)
            starts = [
                min(max(int(at) // v - _draw(side, generator), 0), n - side)
                for at, v, side, n in zip(voxel, voxels, sides, grid, strict=True)
            ]
    patches = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    inside = tuple(slice(start * v, (start + side) * v) for start, side, v in zip(starts, sides, voxels, strict=True))
    return VoxelWindow(features[patches], positions[patches], labels[inside].long())


def _draw(count: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(count, (), generator=generator))
