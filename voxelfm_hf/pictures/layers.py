"""Colour layers over CT slices: grey windows, label maps, heat maps, principal components of patch features.

A layer turns one slice into colours (rows, columns, 3) and opacities (rows, columns), both 0-1. Only the slice asked
for is ever converted to float, so volumes of any size cost little.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

WINDOWS_HU = {  # name: (level, width)
    "lung": (-600.0, 1500.0),
    "soft tissue": (40.0, 400.0),
    "bone": (400.0, 1800.0),
}
LABEL_COLOURS = np.array(
    [
        (230, 75, 70), (70, 160, 245), (90, 200, 90), (245, 190, 60), (175, 110, 230), (60, 205, 200), (245, 130, 190),
        (165, 130, 95), (200, 215, 80), (130, 140, 250), (250, 150, 80), (130, 215, 160),
    ]
)  # fmt: skip
_AIR_HU = -950  # below: outside the body, or airways
_LABEL_OPACITY, _FEATURE_OPACITY, _GLOW_OPACITY = 0.45, 0.7, 0.75
_SAMPLES_PER_PATCH = 4  # along each axis, to tell air patches from the rest


def window_grey(hu: np.ndarray, *, level: float, width: float) -> np.ndarray:
    """Map HU to grey, 0 (black) to 1 (white), as a display window does."""
    return np.clip((hu.astype(np.float32) - np.float32(level - width / 2)) / np.float32(width), 0, 1)


@dataclass(frozen=True, eq=False)
class LabelLayer:
    """A label map on the volume's grid; 0 is transparent, every other value has its own colour.

    labels: (D, H, W) whole numbers or booleans; names: what to call each value in the legend.
    """

    labels: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)

    def colour_of(self, value: int | np.ndarray) -> np.ndarray:
        """RGB, 0-1, of a label value or of each in an array."""
        return LABEL_COLOURS[(value - 1) % len(LABEL_COLOURS)] / 255

    def slice(self, axis: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Colours and opacities of one slice."""
        labels = np.take(self.labels, index, axis=axis).astype(np.int64)
        return self.colour_of(labels), np.where(labels != 0, _LABEL_OPACITY, 0.0)

    def best_index(self) -> tuple[int, int, int] | None:
        """Per axis the slice with the most labelled voxels; None when the map is empty."""
        return _peak((plane != 0 for plane in self.labels), self.labels.shape)


@dataclass(frozen=True, eq=False)
class HeatLayer:
    """A map of values on the volume's grid: low is transparent, high glows; NaN is transparent.

    values: (D, H, W) numbers; limits: the values of no and full colour, by default 0 and the largest value.
    """

    values: np.ndarray
    limits: tuple[float, float] | None = None

    @cached_property
    def range(self) -> tuple[float, float]:
        """The values of no and full colour."""
        if self.limits is not None:
            return self.limits
        peaks = [float(plane[np.isfinite(plane)].max()) for plane in self.values if np.isfinite(plane).any()]
        top = max(peaks, default=0.0)
        return 0.0, top if top > 0 else 1.0

    def slice(self, axis: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Colours and opacities of one slice."""
        return glow(np.take(self.values, index, axis=axis), self.range)

    def best_index(self) -> tuple[int, int, int] | None:
        """A voxel with the highest value, the middle one of several; None when nothing is above the lower limit."""
        peaks = np.array([np.where(np.isfinite(plane), plane, -np.inf).max() for plane in self.values], float)
        if not peaks.max() > self.range[0]:
            return None
        planes = np.flatnonzero(peaks == peaks.max())
        z = int(planes[len(planes) // 2])
        spots = np.flatnonzero(self.values[z] == peaks[z])
        y, x = np.unravel_index(int(spots[len(spots) // 2]), self.values.shape[1:])
        return z, int(y), int(x)


def _peak(planes: Iterable[np.ndarray], shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    z, y, x = (np.zeros(n, np.int64) for n in shape)
    for index, plane in enumerate(planes):
        z[index] = plane.sum()
        y += plane.sum(1)
        x += plane.sum(0)
    return (int(z.argmax()), int(y.argmax()), int(x.argmax())) if z.any() else None


class FeatureLayer:
    """Patch features as colour: the first three principal components as red, green and blue, one colour a patch.

    Patches of air outside the body take no part in finding the components. Colours are relative to this scan: the same
    colour in two scans need not mean the same feature.

    Args:
        features: (d, h, w, C) patch features.
        hu: (D, H, W) the volume, to tell air from the rest.
        box: ((z, y, x) start, (z, y, x) stop), the part of the volume that the patch grid covers, in voxels: voxel i
            spans i to i + 1. Fractions are allowed. None: the whole volume.
    """

    def __init__(
        self,
        features: np.ndarray,
        hu: np.ndarray,
        *,
        box: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None,
    ):
        if np.ndim(features) != 4 or 0 in np.shape(features):
            raise ValueError(f"patch features must have shape (d, h, w, C), not {np.shape(features)}")
        start, stop = box if box is not None else ((0.0, 0.0, 0.0), hu.shape)
        self.start, self.stop = np.asarray(start, float), np.asarray(stop, float)
        if self.start.shape != (3,) or self.stop.shape != (3,) or (self.stop <= self.start).any():
            raise ValueError(f"the patch box must be a (z, y, x) start below its (z, y, x) stop, not {box}")
        self.hu = hu
        self.colours, self.variance_shares = principal_colours(features, use=self._solid_patches(features.shape[:3]))

    def slice(self, axis: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Colours and opacities of one slice; air is dimmed, outside the patch grid nothing is drawn."""
        colours, visible = patch_slice(self.colours, axis, index, self.hu.shape, (self.start, self.stop))
        air = np.take(self.hu, index, axis=axis) < _AIR_HU
        return np.clip(colours, 0, 1), np.where(air, 0.35 * _FEATURE_OPACITY, _FEATURE_OPACITY) * visible

    def _solid_patches(self, grid: tuple[int, int, int]) -> np.ndarray:
        """(d, h, w) True where a patch is not just air, judged on a few voxels each."""
        picks = []
        for a in range(3):
            steps = (np.arange(grid[a] * _SAMPLES_PER_PATCH) + 0.5) / (grid[a] * _SAMPLES_PER_PATCH)
            picks.append(
                np.clip(self.start[a] + steps * (self.stop[a] - self.start[a]), 0, self.hu.shape[a] - 1).astype(int)
            )
        solid = self.hu[np.ix_(*picks)] > _AIR_HU
        n = _SAMPLES_PER_PATCH
        return solid.reshape(grid[0], n, grid[1], n, grid[2], n).mean((1, 3, 5)) > 0.25


class PatchHeatLayer:
    """A value for every patch as glow over the scan, interpolated one slice at a time.

    Args:
        values: (d, h, w) numbers.
        shape: (D, H, W) of the volume.
        box: The part of the volume that the patch grid covers, as in `FeatureLayer`.
        limits: Values of no and full glow.
    """

    def __init__(
        self,
        values: np.ndarray,
        shape: tuple[int, ...],
        *,
        box: tuple[tuple[float, float, float], tuple[float, float, float]],
        limits: tuple[float, float],
    ):
        self.values, self.shape, self.box, self.limits = values, shape, box, limits

    def slice(self, axis: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Colours and opacities of one slice; outside the patch grid nothing is drawn."""
        values, visible = patch_slice(self.values[..., None], axis, index, self.shape, self.box)
        colours, opacity = glow(values[..., 0], self.limits)
        return colours, opacity * visible


def patch_slice(
    values: np.ndarray, axis: int, index: int, shape: Sequence[int], box: Sequence[Sequence[float] | np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """One slice of a map that has a value for every patch.

    Args:
        values: (d, h, w, c) values, taken to lie at the patch centres.
        axis: Axis that the slice is across.
        index: Voxel along it.
        shape: (D, H, W) of the volume.
        box: (start, stop) of the patch grid in voxels, with fractions.

    Returns:
        (rows, columns, c) linear interpolation, and (rows, columns) True inside the box.
    """
    weights = []
    for a in range(3):
        voxels = np.array([index]) if a == axis else np.arange(shape[a])
        weights.append(_interpolation_weights(voxels, box[0][a], box[1][a], values.shape[a]))
    inside = [w.sum(1) > 0 for w in weights]
    visible = inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]
    interpolated = np.einsum("zi,yj,xk,ijkc->zyxc", *weights, values, optimize=True)
    return np.take(interpolated, 0, axis=axis), np.take(visible, 0, axis=axis)


def _interpolation_weights(voxels: np.ndarray, start: float, stop: float, count: int) -> np.ndarray:
    """From patch centres to voxel centres, (voxels, patches); zero outside the box."""
    centre = voxels + 0.5
    position = np.clip((centre - start) / (stop - start) * count - 0.5, 0, count - 1)
    weights = np.clip(1 - np.abs(position[:, None] - np.arange(count)[None, :]), 0, 1)
    weights[(centre < start) | (centre > stop)] = 0
    return weights.astype(np.float32)


def glow(values: np.ndarray, limits: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Values as colours (..., 3) and opacities (...), dark and transparent at the lower limit; NaN is transparent."""
    from matplotlib import colormaps

    level = (values.astype(np.float32) - limits[0]) / max(limits[1] - limits[0], 1e-12)
    level = np.clip(np.nan_to_num(level, nan=0.0), 0, 1)
    return colormaps["inferno"](0.25 + 0.75 * level)[..., :3], _GLOW_OPACITY * np.sqrt(level)


def principal_colours(features: np.ndarray, *, use: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Turn feature vectors into colours by principal component analysis.

    Args:
        features: (..., C) finite numbers.
        use: (...) True for the vectors that define the components; all when None or when fewer than four are True.

    Returns:
        Colours (..., 3), float32 in 0-1: components 1 to 3, each stretched from its 2nd to its 98th percentile, the
        sign such that the largest loading is positive; and the share of the variance of each component, (3,).
    """
    flat = np.asarray(features, np.float64).reshape(-1, features.shape[-1])
    chosen = np.ones(len(flat), bool) if use is None else np.asarray(use, bool).reshape(-1)
    if chosen.sum() < 4:
        chosen = np.ones(len(flat), bool)
    mean = flat[chosen].mean(0)
    centred = flat[chosen] - mean
    _, spread, directions = np.linalg.svd(centred.T @ centred, hermitian=True)
    directions = directions[:3]
    largest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    scores = (flat - mean) @ directions.T
    colours = np.full((len(flat), 3), 0.5, np.float32)
    for c in range(scores.shape[1]):
        low, high = np.percentile(scores[chosen, c], (2, 98))
        if spread[c] > 1e-12 * max(spread[0], 1e-300) and high > low:
            colours[:, c] = np.clip((scores[:, c] - low) / (high - low), 0, 1)
    shares = np.zeros(3)
    shares[: len(directions)] = spread[:3] / max(spread.sum(), 1e-300)
    return colours.reshape(*features.shape[:-1], 3), shares


def blend(grey: np.ndarray, colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Lay colours over a grey slice, (rows, columns) with (rows, columns, 3); the scan's detail shows through."""
    opacity = opacity[..., None].astype(np.float32)
    shaded = colours.astype(np.float32) * (0.45 + 0.55 * grey[..., None])
    return grey[..., None] * (1 - opacity) + shaded * opacity
