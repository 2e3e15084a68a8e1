"""Where a scan looks like a place: similarity of patch features, within a scan and between two."""

from collections.abc import Sequence

import numpy as np

from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry
from voxelfm_hf.pictures.layers import patch_slice
from voxelfm_hf.volumes import Volume

Box = tuple[tuple[float, float, float], tuple[float, float, float]]


def patch_box(geometry: VoxelFMGeometry) -> Box:
    """(z, y, x) start and stop of the patch grid in voxels of the scan, with fractions."""
    return geometry.region_start, geometry.region_stop


def patch_at(voxel: tuple[float, ...], grid: tuple[int, ...], box: Box) -> tuple[int, int, int] | None:
    """The patch (z, y, x) that holds a voxel; None outside the part of the scan that the patches cover."""
    start, stop = np.array(box[0]), np.array(box[1])
    share = (np.array(voxel) + 0.5 - start) / (stop - start)
    if ((share < 0) | (share >= 1)).any():
        return None
    z, y, x = (share * grid).astype(int).tolist()
    return z, y, x


def patch_centre(patch: Sequence[int], grid: tuple[int, ...], box: Box) -> tuple[float, float, float]:
    """The voxel (z, y, x), with fractions, at the centre of a patch."""
    start, stop = np.array(box[0]), np.array(box[1])
    z, y, x = (start + (np.array(patch) + 0.5) / grid * (stop - start) - 0.5).tolist()
    return z, y, x


def likeness(patches: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """How much every patch is like a feature vector.

    Both are taken relative to the mean patch of the scan: what all its patches share would hide the differences.

    Args:
        patches: (d, h, w, C) features of a scan.
        vector: (C,) feature of a patch, of this scan or another.

    Returns:
        (d, h, w) cosine similarities.
    """
    mean = patches.mean((0, 1, 2))
    centred, wanted = patches - mean, vector - mean
    lengths = np.linalg.norm(centred, axis=-1) * np.linalg.norm(wanted)
    return centred @ wanted / lengths.clip(1e-12)


def on_scan_grid(values: np.ndarray, box: Box, volume: Volume) -> np.ndarray:
    """A value for every patch as a map on the scan's grid, which `volume.restore` puts on the file's own.

    Args:
        values: (d, h, w), taken to lie at the patch centres.
        box: From `patch_box`.
        volume: The scan.

    Returns:
        (D, H, W) float32, linearly interpolated; 0 where there are no patches.
    """
    shape = volume.hu.shape
    planes = (patch_slice(values[..., None], 0, z, shape, box) for z in range(shape[0]))
    return np.stack([(plane[..., 0] * visible).astype(np.float32) for plane, visible in planes])
