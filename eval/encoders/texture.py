"""Classical texture and shape descriptors of a small volume, in plain numpy and scipy."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

# One of each pair of opposite neighbours in 3D.
DIRECTIONS = tuple((z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if (z, y, x) > (0, 0, 0))


def cooccurrence(levels: np.ndarray, offset: Sequence[int], *, count: int) -> np.ndarray:
    """Grey-level co-occurrence (count, count), symmetric, summing to 1.

    Args:
        levels: (D, H, W) whole numbers from 0 to count - 1.
        offset: (z, y, x) from a voxel to its partner.
        count: Grey levels.
    """
    first, second = [], []
    for step, n in zip(offset, levels.shape, strict=True):
        first.append(slice(max(0, -step), n - max(0, step)))
        second.append(slice(max(0, step), n - max(0, -step)))
    pairs = levels[tuple(first)].ravel().astype(np.int64) * count + levels[tuple(second)].ravel()
    matrix = np.bincount(pairs, minlength=count * count).reshape(count, count).astype(float)
    matrix += matrix.T
    return matrix / max(matrix.sum(), 1.0)


def haralick(matrix: np.ndarray) -> np.ndarray:
    """(6,): contrast, dissimilarity, homogeneity, angular second moment, entropy (bits), correlation (or 0)."""
    i, j = np.indices(matrix.shape)
    difference = np.abs(i - j)
    positive = matrix[matrix > 0]
    mean = (i * matrix).sum()
    variance = ((i - mean) ** 2 * matrix).sum()
    correlation = ((i - mean) * (j - mean) * matrix).sum() / variance if variance > 1e-12 else 0.0
    return np.array(
        [
            (difference**2 * matrix).sum(),
            (difference * matrix).sum(),
            (matrix / (1 + difference**2)).sum(),
            (matrix**2).sum(),
            -(positive * np.log2(positive)).sum(),
            correlation,
        ]
    )


def texture(hu: np.ndarray, *, hu_range: tuple[float, float], levels: int, distances: Sequence[int]) -> np.ndarray:
    """Mean and spread over the 13 directions of the six Haralick features, at each distance: (12 * distances,)."""
    low, high = hu_range
    scaled = np.clip((hu - low) / (high - low) * levels, 0, levels - 1).astype(np.int64)
    found = []
    for distance in distances:
        offsets = [tuple(distance * step for step in direction) for direction in DIRECTIONS]
        fitting = [o for o in offsets if all(abs(step) < n for step, n in zip(o, hu.shape, strict=True))]
        rows = np.stack([haralick(cooccurrence(scaled, offset, count=levels)) for offset in fitting])
        found += [*rows.mean(0), *rows.std(0)]
    return np.array(found)


def shape(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """(8,): equivalent diameter (mm), surface (mm2), sphericity, three principal standard deviations (mm), flatness,
    elongation; zeros for an empty mask.
    """
    places = np.argwhere(mask)
    if len(places) < 2:
        return np.zeros(8)
    spacing = np.array(spacing_mm)
    volume = len(places) * spacing.prod()
    surface = 0.0
    for axis in range(3):
        faces = np.abs(np.diff(np.pad(mask.astype(np.int8), 1), axis=axis)).sum()
        surface += float(faces) * spacing.prod() / spacing[axis]
    sphericity = np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface
    spread = np.linalg.eigvalsh(np.cov((places * spacing).T))[::-1].clip(0) ** 0.5
    largest = max(float(spread[0]), 1e-6)
    diameter = (6 * volume / np.pi) ** (1 / 3)
    return np.array([diameter, surface, sphericity, *spread, spread[2] / largest, spread[1] / largest])


def central_component(mask: np.ndarray) -> np.ndarray:
    """The connected component of a mask that holds its centre, or else the one nearest to it."""
    components, count = ndimage.label(mask)
    if count == 0:
        return np.zeros(mask.shape, dtype=bool)
    centre = tuple(n // 2 for n in mask.shape)
    if not components[centre]:
        nearest = ndimage.distance_transform_edt(components == 0, return_distances=False, return_indices=True)
        centre = tuple(nearest[(slice(None), *centre)])
    return components == components[centre]
