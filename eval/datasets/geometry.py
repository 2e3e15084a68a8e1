"""Where a structure of a label map lies, in LPS millimetres."""

import numpy as np

from voxelfm_hf.volumes import Volume


def mask_centre(mask: Volume, value: int) -> tuple[float, float, float]:
    """The centre (x, y, z) in LPS mm of the voxel with this value that is nearest to the centroid of all of them."""
    voxels = np.argwhere(mask.hu == value)
    apart = ((voxels - voxels.mean(0)) * mask.spacing) ** 2
    nearest = voxels[apart.sum(1).argmin()]
    x, y, z = (mask.affine @ [*nearest, 1.0])[:3].tolist()
    return x, y, z


def mask_centroids(mask: Volume) -> dict[int, tuple[float, float, float]]:
    """The centroid (x, y, z) in LPS mm of each structure by its value; it may lie outside the structure."""
    voxels = np.nonzero(mask.hu)
    values = mask.hu[voxels].astype(int)
    counts = np.bincount(values)
    sums = np.stack([np.bincount(values, weights=axis) for axis in voxels], axis=1)
    found = {}
    for value in np.flatnonzero(counts).tolist():
        x, y, z = (mask.affine @ [*(sums[value] / counts[value]), 1.0])[:3].tolist()
        found[value] = (x, y, z)
    return found
