"""Axes, spacing and shear: how any file's grid becomes (z, y, x) in LPS+ and back; the only place that flips axes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

SPACING_RANGE_MM = (0.02, 50.0)
MAX_VOXELS = 1 << 30  # 512 x 512 x 4096: beyond any clinical scan, and 2 GiB as int16
MAX_DEFLATE_RATIO = 1040  # deflate cannot expand a byte to more than 1032
AIR_HU = -1024
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # negative, positive direction of LPS x, y, z
_SHEAR_COSINE = 1e-3


@dataclass(frozen=True, eq=False)
class Unshear:
    """A stack whose slices slide sideways (gantry tilt), straightened by shifting each slice within its plane."""

    stack_axis: int  # canonical axis along which the shift grows
    shift: tuple[float, float, float]  # voxels per slice on each canonical axis (0 on the stack axis)
    low: tuple[int, int, int]  # index of the straightened grid's first voxel in the sheared grid's axes
    sheared_shape: tuple[int, int, int]
    straight_shape: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class SourceGrid:
    """How the file's own grid relates to the canonical array.

    Attributes:
        shape: the file's grid (i, j, k), i changing fastest in the file.
        affine: 4x4, index (i, j, k, 1) -> RAS+ millimetres, as NIfTI has it.
        orientation: the file's axis letters in nibabel's convention ("RAS": i grows to the right, ...).
        axes: for canonical z, y, x: the file axis (0 = i) it comes from.
        flipped: for canonical z, y, x: whether it runs against that file axis.
        unshear: the straightening that was applied, or None.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    orientation: str
    axes: tuple[int, int, int] = (2, 1, 0)
    flipped: tuple[bool, bool, bool] = (False, False, False)
    unshear: Unshear | None = field(default=None)


def parse_spacing(text: str) -> tuple[float, float, float]:
    """The (z, y, x) mm that a text such as "2.5,0.7,0.7" states; ValueError where it is not three numbers."""
    z, y, x = (float(part) for part in text.split(","))
    return z, y, x


def tidy_spacing(value: float) -> float:
    """Remove float32 noise, so that the same scan has the same spacing in every format.

    Scanner spacings are field of view / matrix (multiples of 1/1024) or short decimals; each would
    sit on a rounding tie of the other's grid, so the binary one is tried first.
    """
    binary = round(value * 1024) / 1024
    return binary if abs(value - binary) <= 1e-6 else round(value, 5)


def closest_axes(matrix: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Assign each index axis (columns of a 3x3 index -> LPS matrix) the world axis it is closest to.

    Returns:
        (world axis of each column, sign of each column); a one-to-one assignment, shears removed as nibabel does.
    """
    cosines = matrix / np.linalg.norm(matrix, axis=0)
    u, _, vt = np.linalg.svd(cosines)
    rotation = u @ vt
    # Rounded, so that noise does not decide between equal candidates of 45 degree grids.
    closeness = np.round(np.abs(rotation), 6)
    world, free = [0, 0, 0], {0, 1, 2}
    for column in sorted(range(3), key=lambda c: -closeness[:, c].max()):  # the most certain axis chooses first
        world[column] = max(sorted(free), key=lambda w: closeness[w, column])
        free.remove(world[column])
    signs = tuple(1 if rotation[world[c], c] >= 0 else -1 for c in range(3))
    return tuple(world), signs  # type: ignore[return-value]


def orientation_letters(affine_lps: np.ndarray) -> str:
    """Axis letters of an index -> LPS affine, in nibabel's convention."""
    world, signs = closest_axes(affine_lps[:3, :3])
    return "".join(_LETTERS[w][s > 0] for w, s in zip(world, signs, strict=True))


def affine_problem(affine: np.ndarray) -> str | None:
    """What makes a 4x4 affine unusable as a scan's geometry, or None."""
    if not np.isfinite(affine).all():
        return "its affine holds NaN or infinite numbers"
    if np.abs(affine).max() > 1e7:
        return "its affine holds absurdly large numbers"
    columns = affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    low, high = SPACING_RANGE_MM
    if spacing.min() < low or spacing.max() > high:
        listed = " x ".join(f"{s:.4g}" for s in spacing)
        return f"its voxel spacing is {listed} mm, which no CT has ({low} to {high} mm are accepted)"
    if abs(np.linalg.det(columns / spacing)) < 0.1:
        return "its affine is singular (two axes point the same way)"
    return None


def canonical_view(
    array: np.ndarray, affine_lps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int], tuple[bool, bool, bool]]:
    """View a (k, j, i) array as (z, y, x) LPS+ by permutation and flips only.

    Args:
        array: the file's voxels, shape (k, j, i).
        affine_lps: 4x4, index (i, j, k, 1) -> LPS mm.

    Returns:
        (view (D, H, W), affine (z, y, x, 1) -> LPS mm, file axis of each canonical axis, flipped of each).
    """
    world, signs = closest_axes(affine_lps[:3, :3])
    shape_ijk = array.shape[::-1]
    axes = tuple(world.index(w) for w in (2, 1, 0))
    flipped = tuple(signs[a] < 0 for a in axes)
    affine = np.eye(4)
    affine[:3, 3] = affine_lps[:3, 3]
    for canonical, (axis, flip) in enumerate(zip(axes, flipped, strict=True)):
        column = affine_lps[:3, axis]
        affine[:3, canonical] = -column if flip else column
        if flip:
            affine[:3, 3] += column * (shape_ijk[axis] - 1)
    view = array.transpose([2 - a for a in axes])
    view = view[tuple(slice(None, None, -1) if f else slice(None) for f in flipped)]
    return view, affine + 0.0, axes, flipped  # type: ignore[return-value]  # + 0.0 turns -0.0 into 0.0


def source_view(array: np.ndarray, axes: tuple[int, int, int], flipped: tuple[bool, bool, bool]) -> np.ndarray:
    """Undo `canonical_view`: (D, H, W) -> (i, j, k)."""
    view = array[tuple(slice(None, None, -1) if f else slice(None) for f in flipped)]
    return view.transpose([axes.index(a) for a in range(3)])


def contiguous(view: np.ndarray) -> np.ndarray:
    """C-contiguous copy (or the array itself), blockwise when axes are permuted, which is several times quicker."""
    if view.flags.c_contiguous:
        return view
    out = np.empty(view.shape, view.dtype)
    fastest = int(np.argmin(np.abs(view.strides)))
    if fastest == 2:
        out[...] = view
        return out
    block = 64
    for start in range(0, view.shape[fastest], block):
        for x in range(0, view.shape[2], block):
            part = [slice(None), slice(None), slice(x, x + block)]
            part[fastest] = slice(start, start + block)
            out[tuple(part)] = view[tuple(part)]
    return out


def find_shear(shape: tuple[int, ...], affine: np.ndarray) -> tuple[Unshear | None, np.ndarray, str | None]:
    """Decide whether a canonical grid is sheared and how to straighten it.

    A shear counts when it moves the far end of the volume by more than half a voxel.

    Args:
        shape: canonical (D, H, W).
        affine: 4x4, (z, y, x, 1) -> LPS mm.

    Returns:
        (plan or None, affine of the straightened grid, reason why it cannot be straightened or None).
    """
    columns = affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    unit = columns / spacing
    length = spacing * (np.array(shape) - 1)
    sheared = set()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        cosine = abs(float(unit[:, a] @ unit[:, b]))
        if cosine > _SHEAR_COSINE and cosine * max(length[a], length[b]) > 0.5 * min(spacing[a], spacing[b]):
            sheared.add((a, b))
    if not sheared:
        return None, affine, None
    stacks = [axis for axis in range(3) if all(axis in pair for pair in sheared)]
    if not stacks:
        return None, affine, "all three of its axes are sheared against each other"
    stack = stacks[0]  # z before y before x: the same choice whatever the file's axis order
    p, q = (axis for axis in range(3) if axis != stack)
    normal = np.cross(unit[:, p], unit[:, q])
    normal /= np.linalg.norm(normal)
    step = float(normal @ columns[:, stack])
    normal, step = (normal, step) if step > 0 else (-normal, -step)
    if step < 0.7 * spacing[stack]:
        return None, affine, "its axes are sheared by more than 45 degrees"
    shift, low, size = [0.0] * 3, [0] * 3, list(shape)
    straight = affine.copy()
    straight[:3, stack] = normal * step
    for axis in (p, q):
        shift[axis] = float(columns[:, stack] @ unit[:, axis] / spacing[axis])
        if abs(shift[axis]) < 1e-6:
            shift[axis] = 0.0
        total = shift[axis] * (shape[stack] - 1)
        low[axis] = math.floor(min(0.0, total) + 1e-6)
        size[axis] = shape[axis] + math.ceil(max(0.0, total) - 1e-6) - low[axis]
        straight[:3, 3] += columns[:, axis] * low[axis]
    if math.prod(size) > MAX_VOXELS:
        return None, affine, "straightening its shear would need too large a grid"
    plan = Unshear(stack, tuple(shift), tuple(low), tuple(shape), tuple(size))  # type: ignore[arg-type]
    return plan, straight, None


def straighten(view: np.ndarray, plan: Unshear) -> np.ndarray:
    """Resample a sheared canonical array onto the straightened grid: linear within each slice, air outside."""
    out = np.full(plan.straight_shape, AIR_HU, view.dtype)
    for index in range(view.shape[plan.stack_axis]):
        offsets = [index * plan.shift[a] - plan.low[a] for a in range(3) if a != plan.stack_axis]
        target = np.moveaxis(out, plan.stack_axis, 0)[index]
        _store(target, _shifted(np.moveaxis(view, plan.stack_axis, 0)[index], offsets, target.shape))
    return out


def shear_back(array: np.ndarray, plan: Unshear) -> np.ndarray:
    """Undo `straighten`: nearest voxel for whole-number arrays (masks), linear for floats (maps)."""
    out = np.empty(plan.sheared_shape, array.dtype)
    exact = array.dtype.kind == "f"
    for index in range(plan.sheared_shape[plan.stack_axis]):
        axes = [a for a in range(3) if a != plan.stack_axis]
        offsets = [plan.low[a] - index * plan.shift[a] for a in axes]
        source = np.moveaxis(array, plan.stack_axis, 0)[index]
        target = np.moveaxis(out, plan.stack_axis, 0)[index]
        if exact:
            edge = np.pad(source, 1, mode="edge")
            _store(target, _shifted(edge, [o - 1 for o in offsets], target.shape, fill=0.0))
        else:
            rows, columns = (
                np.clip(np.floor(np.arange(n) - o + 0.5).astype(int), 0, s - 1)
                for n, o, s in zip(target.shape, offsets, source.shape, strict=True)
            )
            target[...] = source[np.ix_(rows, columns)]
    return out


def _store(target: np.ndarray, values: np.ndarray) -> None:
    target[...] = np.rint(values) if target.dtype.kind in "iu" else values


def _shifted(image: np.ndarray, offsets: list[float], shape: tuple[int, ...], fill: float = AIR_HU) -> np.ndarray:
    """out[y] = image[y - offset], linear, axis by axis."""
    values = image.astype(np.float64)
    for axis, offset in enumerate(offsets):
        whole = math.floor(offset)
        fraction = offset - whole
        if fraction < 1e-9 or fraction > 1 - 1e-9:
            values = _placed(values, round(offset), shape[axis], axis, fill)
        else:
            near = _placed(values, whole, shape[axis], axis, fill)
            far = _placed(values, whole + 1, shape[axis], axis, fill)
            values = (1 - fraction) * near + fraction * far
    return values


def _placed(values: np.ndarray, offset: int, size: int, axis: int, fill: float) -> np.ndarray:
    """The array moved by whole voxels along one axis into `size` voxels."""
    moved = np.moveaxis(values, axis, 0)
    out = np.full((size, *moved.shape[1:]), fill, np.float64)
    start, stop = max(0, offset), min(size, offset + len(moved))
    if stop > start:
        out[start:stop] = moved[start - offset : stop - offset]
    return np.moveaxis(out, 0, axis)
