"""Drawing geometric bodies on a voxel grid with edges softened over one voxel.

Shapes are given by their signed distance in mm (negative inside). All coordinates are in the reference frame: mm of
the reference thorax, x to the patient's left, y to the back, z to the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[slice, slice, slice]
Segment = tuple[np.ndarray, np.ndarray, float, float]  # start (z,y,x), end (z,y,x), radius at start, radius at end


@dataclass(frozen=True)
class Grid:
    """Voxel centres in the reference frame: z (D,1,1), y (1,H,1), x (1,1,W), and the voxel size there."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray
    spacing: np.ndarray

    @staticmethod
    def regular(shape: tuple[int, int, int], spacing: np.ndarray, centre: np.ndarray) -> "Grid":
        axes = [(np.arange(n) - (n - 1) / 2) * s + c for n, s, c in zip(shape, spacing, centre, strict=True)]
        z, y, x = (axis.astype(np.float32) for axis in axes)
        return Grid(z[:, None, None], y[None, :, None], x[None, None, :], np.asarray(spacing, float))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.z.size, self.y.size, self.x.size

    @property
    def edge(self) -> float:
        """Width over which a surface fades: one voxel in the plane."""
        return float((self.spacing[1] + self.spacing[2]) / 2)

    def box(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> Box:
        """The voxels between two corners (z, y, x), widened by one edge; may be empty."""
        out = []
        for axis, lo, hi in zip((self.z, self.y, self.x), low, high, strict=True):
            flat, margin = axis.ravel(), self.edge
            start, stop = np.searchsorted(flat, (lo - margin, hi + margin))
            out.append(slice(int(start), int(stop)))
        return out[0], out[1], out[2]

    def part(self, box: Box) -> "Grid":
        return Grid(self.z[box[0]], self.y[:, box[1]], self.x[:, :, box[2]], self.spacing)


class Canvas:
    """The HU volume and label map under construction; later paint covers earlier paint."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.hu = np.full(grid.shape, -1000, np.float32)
        self.labels = np.zeros(grid.shape, np.uint8)

    @property
    def everything(self) -> Box:
        return slice(None), slice(None), slice(None)

    def coverage(self, distance: np.ndarray) -> np.ndarray:
        """The share of each voxel inside a shape, from its signed distance."""
        share = distance * np.float32(-1 / self.grid.edge)
        share += np.float32(0.5)
        return np.clip(share, 0, 1, out=share)

    def paint(self, box: Box, coverage: np.ndarray, hu: float | np.ndarray, label: int | None = None) -> None:
        """Blend a tissue into the box; voxels at least half covered take the label."""
        region = self.hu[box]
        region += coverage * (hu - region)
        if label is not None:
            self.labels[box][coverage >= 0.5] = label

    def paint_sparse(self, index: np.ndarray, coverage: np.ndarray, hu: float | np.ndarray, label: int | None) -> None:
        """The same for scattered voxels, given by flat index."""
        region = self.hu.reshape(-1)
        old = region[index]
        region[index] = old + coverage * (hu - old)
        if label is not None:
            self.labels.reshape(-1)[index[coverage >= 0.5]] = label

    def ellipsoid(self, shape: "Ellipsoid", hu: float, label: int | None = None, *, within: np.ndarray | None = None):
        """Paint an ellipsoid, optionally only within a coverage given for the whole grid."""
        box = self.grid.box(*shape.bounds())
        part = self.grid.part(box)
        if 0 in part.shape:
            return
        share = self.coverage(shape.distance(part.z, part.y, part.x))
        if within is not None:
            share *= within[box]
        self.paint(box, share, hu, label)

    def tubes(
        self, segments: Sequence[Segment], hu: float, label: int | None = None, *, within: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paint many tapered tubes as one body; returns its voxels (flat index) and signed distances."""
        index, distance = tube_distances(self.grid, segments)
        share = self.coverage(distance)
        if within is not None:
            share *= within.reshape(-1)[index]
        self.paint_sparse(index, share, hu, label)
        return index, distance


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and radii as (z, y, x) mm; rows of `axes` are its own directions when it is turned."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    axes: np.ndarray | None = None

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        centre, radii = np.asarray(self.centre, float), np.asarray(self.radii, float)
        reach = radii if self.axes is None else np.sqrt(((radii[:, None] * self.axes) ** 2).sum(0))
        return centre - reach, centre + reach

    def grown(self, by_mm: float) -> "Ellipsoid":
        radii = tuple(r + by_mm for r in self.radii)
        return Ellipsoid(self.centre, (radii[0], radii[1], radii[2]), self.axes)

    def distance(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Approximate signed distance at broadcastable coordinates: k (k - 1) / |gradient|, k the scaled radius."""
        offset = [c - np.float32(m) for c, m in zip((z, y, x), self.centre, strict=True)]
        if self.axes is not None:
            turned = self.axes.astype(np.float32)
            offset = [row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2] for row in turned]
        radii = np.asarray(self.radii, np.float32)
        scaled = [(o / r) ** 2 for o, r in zip(offset, radii, strict=True)]
        level = np.sqrt(scaled[0] + scaled[1] + scaled[2])
        slope = np.sqrt(scaled[0] / radii[0] ** 2 + scaled[1] / radii[1] ** 2 + scaled[2] / radii[2] ** 2)
        return np.where(slope > 1e-6, level * (level - 1) / np.maximum(slope, 1e-6), -radii.min())


def tube_distances(grid: Grid, segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the voxels near a union of tapered tubes, and their signed distances in mm.

    Around tubes thinner than a voxel the distance is cut off so that no voxel is filled more than the tube can fill it.
    """
    edge = grid.edge
    starts, ends = np.array([s[0] for s in segments]), np.array([s[1] for s in segments])
    radii = np.array([s[2:] for s in segments])
    thickest = radii.max(1)
    fills = np.minimum(1, (2 * thickest / edge) ** 2)
    reach = (thickest + edge)[:, None]
    shape, first = np.array(grid.shape), np.array([grid.z[0, 0, 0], grid.y[0, 0, 0], grid.x[0, 0, 0]], float)
    low = np.ceil((np.minimum(starts, ends) - reach - first) / grid.spacing).astype(int).clip(0, shape)
    high = np.floor((np.maximum(starts, ends) + reach - first) / grid.spacing).astype(int).clip(-1, shape - 1) + 1
    # A tube that fills less than 4 % of a voxel contributes less than the noise does.
    visible = np.flatnonzero((high > low).all(1) & (fills >= 0.04))
    along = (ends - starts).astype(np.float32)
    length = np.maximum((along**2).sum(1), np.float32(1e-6))
    starts, taper, wide = starts.astype(np.float32), np.diff(radii, axis=1)[:, 0].tolist(), radii[:, 0].tolist()
    floors = np.where(fills < 1, (0.5 - fills) * edge, -np.inf).tolist()
    low, high = low.tolist(), high.tolist()
    distance = np.full(grid.shape, 1e3, np.float32)
    for i in visible.tolist():
        (z0, y0, x0), (z1, y1, x1) = low[i], high[i]
        dz, dy, dx = grid.z[z0:z1] - starts[i, 0], grid.y[:, y0:y1] - starts[i, 1], grid.x[:, :, x0:x1] - starts[i, 2]
        az, ay, ax = along[i]
        unit = along[i] / length[i]
        t = (dz * unit[0] + dy * unit[1]) + dx * unit[2]
        np.minimum(np.maximum(t, 0, out=t), 1, out=t)
        gap = (dz - t * az) ** 2
        gap += (dy - t * ay) ** 2
        gap += (dx - t * ax) ** 2
        np.sqrt(gap, out=gap)
        t *= taper[i]
        gap -= t
        gap -= wide[i]
        if floors[i] > -edge:
            np.maximum(gap, floors[i], out=gap)
        region = distance[z0:z1, y0:y1, x0:x1]
        np.minimum(region, gap, out=region)
    index = np.flatnonzero(distance < edge)
    return index, distance.reshape(-1)[index]


def curve(points: np.ndarray, radii: np.ndarray | float) -> list[Segment]:
    """Tube segments along a polyline of (n, 3) points (z, y, x)."""
    sizes = np.broadcast_to(np.asarray(radii, float), len(points))
    return [(points[i], points[i + 1], float(sizes[i]), float(sizes[i + 1])) for i in range(len(points) - 1)]


def smooth_noise(grid: Grid, rng: np.random.Generator, cell_mm: float) -> np.ndarray:
    """A smooth random field with unit variance whose values do not depend on the voxel grid.

    Quadratic B-splines over a lattice of normal draws that covers the reference thorax.
    """
    reach = (260.0, 260.0, 260.0)
    counts = [int(np.ceil(2 * r / cell_mm)) + 3 for r in reach]
    field = rng.standard_normal(counts, dtype=np.float32)
    for axis, (coordinate, r) in enumerate(zip((grid.z, grid.y, grid.x), reach, strict=True)):
        position = np.clip((coordinate.ravel() + r) / cell_mm, 0, counts[axis] - 3.001) + 1
        offset = np.abs(position[:, None] - np.arange(counts[axis])[None, :])
        weights = np.where(offset < 0.5, 0.75 - offset**2, np.where(offset < 1.5, 0.5 * (1.5 - offset) ** 2, 0))
        weights = (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)
        field = np.moveaxis(np.tensordot(weights, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def grow_tree(
    root: np.ndarray, ends: np.ndarray, *, end_radius: float, exponent: float = 2.7, root_radius: float | None = None
) -> list[Segment]:
    """A branching tree from root to all end points, filling the space between by repeated halving.

    The radius follows Murray's law: proportional to (ends served) ** (1 / exponent).
    """
    segments: list[Segment] = []
    pending = [(root, ends, root_radius or end_radius * len(ends) ** (1 / exponent))]
    while pending:
        start, served, radius_before = pending.pop()
        radius = end_radius * len(served) ** (1 / exponent)
        target = served[0] if len(served) == 1 else start + 0.42 * (served.mean(0) - start)
        segments.append((start, target, radius_before, radius))
        if len(served) > 1:
            spread = np.ptp(served, axis=0)
            order = served[np.argsort(served[:, int(spread.argmax())], kind="stable")]
            half = len(order) // 2
            pending += [(target, order[:half], radius), (target, order[half:], radius)]
    return segments
