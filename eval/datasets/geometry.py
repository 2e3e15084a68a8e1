"""Where structures lie, in LPS millimetres, and cubes that hold one."""

from pathlib import Path

import numpy as np

from voxelfm_hf.volumes import Volume
from voxelfm_hf.volumes.errors import DatasetError

# How far the edge of a structure stays from that of its cube.
CUBE_MARGIN_MM = 8.0


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


def extent_lps(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest corner of a scan in LPS mm, from its header alone; DatasetError without one."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise DatasetError(f"{file} has no header that can be read: get it again") from None
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    along = direction * np.array(reader.GetSpacing())
    size = np.array(reader.GetSize())
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in size], indexing="ij")).reshape(3, -1)
    points = np.array(reader.GetOrigin())[:, None] + along @ corners
    return points.min(1), points.max(1)


def cube_round(
    place: np.ndarray, diameter: float, edge: float, low: np.ndarray, high: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The centre of a cube that holds a structure, but not in its middle.

    Args:
        place: Centre (x, y, z) of the structure in LPS mm.
        diameter: Of the structure in mm.
        edge: Of the cube in mm.
        low: Lowest corner of the scan in LPS mm.
        high: Its highest corner.
        rng: Of the shift.

    Returns:
        (x, y, z) from which the structure lies inside the cube, and the cube inside the scan where there is room.
    """
    room = max(0.0, edge / 2 - CUBE_MARGIN_MM - diameter / 2)
    centre = place + rng.uniform(-room, room, 3)
    fits = high - low >= edge
    inside = np.clip(centre, low + edge / 2, np.maximum(high - edge / 2, low + edge / 2))
    centre = np.where(fits, inside, centre)
    return np.clip(centre, place - room, place + room)
