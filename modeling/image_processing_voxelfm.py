"""From a CT volume in HU to the model's input: clip, crop the background, resample, fit the patch budget, normalise.

All geometry is per axis, so the whole chain of resamplings is composed into one small matrix an axis and applied
once; nothing larger than its input or its output is ever in memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

Size = tuple[int, ...]
# No CT spans this much; larger products of size and spacing are wrong spacings.
MAX_FIELD_OF_VIEW_MM = 4000.0
# Voxels converted to float at a time, and output rows of one block of a banded matrix product.
CHUNK_VOXELS = 1 << 23
BLOCK_ROWS = 64
# Factors tried round the exact scale of the patch budget, as published.
BUDGET_TRIALS = (0.98, 0.99, 1.0, 1.01, 1.02)
BUDGET_FALLBACK = 0.95


@dataclass(frozen=True)
class VoxelFMGeometry:
    """Where a prepared volume lies in the array it was made from; every triple is (z, y, x).

    Attributes:
        grid: Patches an axis (d, h, w).
        region_start, region_stop: Borders of the patch grid in voxels of the input array, counted from its outer
            edge: voxel i spans [i, i + 1]. With `pad_thin` they may lie outside the array.
        spacing_mm: Size of one prepared voxel in mm, after isotropic resampling and the patch budget.
        notes: What was assumed or could not be done as asked, one sentence each.
    """

    grid: Size
    region_start: tuple[float, float, float]
    region_stop: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]
    notes: tuple[str, ...] = ()

    def patch_centres(self) -> np.ndarray:
        """Centres of the patches in voxel indices of the input array: (d, h, w, 3), fractional."""
        axes = [
            start + (np.arange(n) + 0.5) / n * (stop - start) - 0.5
            for n, start, stop in zip(self.grid, self.region_start, self.region_stop, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    def patch_to_voxel(self) -> np.ndarray:
        """4x4: patch index (d, h, w, 1) -> voxel index (z, y, x, 1) of its centre, fractional."""
        size = (np.array(self.region_stop) - self.region_start) / self.grid
        matrix = np.diag([*size, 1.0])
        matrix[:3, 3] = self.region_start + size / 2 - 0.5
        return matrix


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


def background_box(hu: np.ndarray, threshold: float = -800.0, kernel: int = 21) -> list[tuple[int, int]] | None:
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


def isotropic_size(
    shape: Sequence[int], spacing: Sequence[float], min_spacing_mm: float = 0.75, voxel_mm: float | None = None
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
    return _linear_rows((np.arange(size_out) + 0.5) * size_in / size_out - 0.5, size_in)


def _linear_rows(source: np.ndarray, size_in: int) -> np.ndarray:
    """Rows that interpolate linearly at fractional indices, with the edge values outside."""
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
        part = np.take(hu, range(start, min(start + rows, hu.shape[along])), axis=along)
        values = torch.from_numpy(part.astype(np.float32)).clamp_(hu_range[0], hu_range[1])
        out.narrow(along, start, part.shape[along]).copy_(_multiply_axis(values, todo[first], first))
    for axis in order[1:]:
        out = _multiply_axis(out, todo[axis], axis)
    return out


class VoxelFMImagesKwargs(ImagesKwargs, total=False):
    """Options of one call or of `from_pretrained`."""

    max_patches: int | None
    voxel_mm: float | None
    crop_background: bool | None
    pad_thin: bool | None


class VoxelFMImageProcessor(BaseImageProcessor):
    r"""
    Prepares CT volumes for VoxelFM; it reads no files.

    Takes anything with `.hu` (D, H, W) in HU and `.spacing` (z, y, x) in mm, such as the package's `Volume`, or an
    array or tensor with a `spacing=`; one or a list. Axes are LPS+: z up to the head, y to the back, x to the
    patient's left.

    Args:
        hu_range (`list[float]`, defaults to `[-1000, 1900]`): HU are clipped to it first.
        image_mean, image_std (`float`, default to -573.8 and 461.3): Normalisation after resampling, in HU.
        patch_size (`int`, defaults to 14): Patch edge of the model.
        max_patches (`int`, defaults to 25000): Patch budget a volume; larger volumes are scaled down.
        min_spacing_mm (`float`, defaults to 0.75): Lower bound of the isotropic spacing.
        voxel_mm (`float`, *optional*): Isotropic spacing of every scan, in place of that of its finest axis.
        crop_background (`bool`, defaults to `True`): Crop to the body's box (see `background_box`).
        background_hu (`float`, defaults to -800.0): Threshold of that box.
        background_kernel (`int`, defaults to 21): Edge of its cube in voxels.
        pad_thin (`bool`, defaults to `False`): Pad volumes thinner than one patch by their edge values; otherwise
            they are refused.

    Example:

    ```python
    >>> import numpy as np
    >>> from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
    >>> processor = VoxelFMImageProcessor(patch_size=8, max_patches=100)
    >>> scan = np.zeros((20, 64, 64), np.int16)  # water
    >>> processor(scan, spacing=(5.0, 1.0, 1.0))["pixel_values"].shape
    torch.Size([1, 1, 48, 32, 32])

    ```
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = VoxelFMImagesKwargs

    def __init__(
        self,
        hu_range: Sequence[float] = (-1000.0, 1900.0),
        image_mean: float = -573.8,
        image_std: float = 461.3,
        patch_size: int = 14,
        max_patches: int = 25000,
        min_spacing_mm: float = 0.75,
        voxel_mm: float | None = None,
        crop_background: bool = True,
        background_hu: float = -800.0,
        background_kernel: int = 21,
        pad_thin: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hu_range = [float(v) for v in hu_range]
        self.image_mean = image_mean
        self.image_std = image_std
        self.patch_size = patch_size
        self.max_patches = max_patches
        self.min_spacing_mm = min_spacing_mm
        self.voxel_mm = voxel_mm
        self.crop_background = crop_background
        self.background_hu = background_hu
        self.background_kernel = background_kernel
        self.pad_thin = pad_thin

    # Typed for volumes; the base class speaks of pictures.
    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self,
        images,
        spacing: Sequence[float] | Sequence[Sequence[float]] | None = None,
        max_patches: int | None = None,
        voxel_mm: float | None = None,
        crop_background: bool | None = None,
        pad_thin: bool | None = None,
        return_tensors: str = "pt",
        return_geometry: bool = False,
    ) -> BatchFeature:
        """Prepares one volume or a list of volumes.

        Args:
            images: A volume with `.hu` and `.spacing`, an array (D, H, W) or (1, D, H, W) in HU, a batch
                (B, D, H, W), or a list of those.
            spacing: (z, y, x) in mm for arrays: one triple for all, or one a volume.
            max_patches, voxel_mm, crop_background, pad_thin: Override the processor's own settings for this call.
            return_tensors: "pt" or "np".
            return_geometry: Add `geometry`, a `VoxelFMGeometry` a volume.

        Returns:
            `pixel_values`: (B, 1, D, H, W) float32 where all prepared shapes are equal, otherwise a list of
            (1, D, H, W).

        Raises:
            ValueError: a volume that is not 3D, holds NaN or infinite values, lacks a spacing, or is thinner than
                one patch while `pad_thin` is off.
        """
        if return_tensors not in ("pt", "np"):
            raise ValueError(f'return_tensors must be "pt" or "np", got {return_tensors!r}')
        prepared, geometries = [], []
        for hu, spacing_mm in self._volumes(images, spacing):
            values, geometry = self._prepare(
                hu,
                spacing_mm,
                max_patches=self.max_patches if max_patches is None else max_patches,
                voxel_mm=self.voxel_mm if voxel_mm is None else voxel_mm,
                crop_background=self.crop_background if crop_background is None else crop_background,
                pad_thin=self.pad_thin if pad_thin is None else pad_thin,
            )
            prepared.append(values[None])
            geometries.append(geometry)
        is_equal = len({values.shape for values in prepared}) == 1
        batch: Any = torch.stack(prepared) if is_equal else prepared
        if return_tensors == "np":
            batch = batch.numpy() if is_equal else [values.numpy() for values in batch]
        return BatchFeature({"pixel_values": batch, **({"geometry": geometries} if return_geometry else {})})

    def prepare_region(
        self, volume, centre_lps: Sequence[float], edge_mm: float, size: int
    ) -> tuple[torch.Tensor, VoxelFMGeometry]:
        """Cuts a cube given in millimetres out of a scan and resamples it to `size`^3 voxels.

        The cube lies along the axes of the volume's grid. Parts outside the scan repeat its edge values, and a note
        says how much that is.

        Args:
            volume: A volume with `.hu`, `.spacing` and `.affine` ((z, y, x) index to LPS mm).
            centre_lps: Centre of the cube (x, y, z) in LPS mm.
            edge_mm: Edge length in mm.
            size: Edge in voxels of the result, a multiple of the patch size.

        Returns:
            Normalised voxels (1, size, size, size) float32, and where they lie in the volume.

        Raises:
            ValueError: a cube fully outside the scan, an edge that is not positive, a size that is no multiple of the
                patch size.
        """
        hu, spacing = _checked_volume(volume, None)
        if size < 1 or size % self.patch_size:
            raise ValueError(f"the region size must be a multiple of the patch size {self.patch_size}, got {size}")
        if not (math.isfinite(edge_mm) and 0 < edge_mm <= MAX_FIELD_OF_VIEW_MM):
            raise ValueError(f"the edge of a region must be a positive number of millimetres, got {edge_mm}")
        centre = np.linalg.solve(volume.affine, [*centre_lps, 1.0])[:3]
        half = edge_mm / 2 / np.array(spacing)
        starts, stops = centre + 0.5 - half, centre + 0.5 + half
        inside = np.minimum(stops, hu.shape) - np.maximum(starts, 0)
        if inside.min() <= 0:
            raise ValueError(
                f"the region of {edge_mm:g} mm lies outside the scan: its centre is at voxel (z, y, x) = "
                f"{tuple(round(float(c), 1) for c in centre)} of {hu.shape}"
            )
        matrices, cut = [], []
        for start, stop, n in zip(starts, stops, hu.shape, strict=True):
            rows = _linear_rows(start + (np.arange(size) + 0.5) * (stop - start) / size - 0.5, n)
            used = np.flatnonzero(rows.any(0))
            cut.append(slice(used[0], used[-1] + 1))
            matrices.append(rows[:, cut[-1]])
        values = apply_axes(hu[tuple(cut)], matrices, self.hu_range)
        values = values.sub_(self.image_mean).div_(self.image_std)[None]
        outside = 1 - float(np.prod(inside / (stops - starts)))
        notes = (f"{outside:.0%} of the region lies outside the scan and repeats its edge",) if outside > 1e-6 else ()
        grid = (size // self.patch_size,) * 3
        triple = (edge_mm / size,) * 3
        return values, VoxelFMGeometry(grid, tuple(starts.tolist()), tuple(stops.tolist()), triple, notes)

    def _volumes(self, images, spacing) -> list[tuple[np.ndarray, tuple[float, ...]]]:
        """The input as a flat list of (array (D, H, W), spacing)."""
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4 and images.shape[0] != 1:
            images = list(images)
        items = list(images) if isinstance(images, (list, tuple)) else [images]
        if not items:
            raise ValueError("no volume given: pass a volume or a non-empty list of volumes")
        if spacing is None or np.ndim(spacing[0]) == 0:
            spacings = [spacing] * len(items)
        elif len(spacing) == len(items):
            spacings = list(spacing)
        else:
            raise ValueError(f"{len(spacing)} spacings were given for {len(items)} volumes")
        return [_checked_volume(item, voxel_mm) for item, voxel_mm in zip(items, spacings, strict=True)]

    def _prepare(
        self,
        hu: np.ndarray,
        spacing: tuple[float, ...],
        *,
        max_patches: int,
        voxel_mm: float | None,
        crop_background: bool,
        pad_thin: bool,
    ) -> tuple[torch.Tensor, VoxelFMGeometry]:
        p, notes = self.patch_size, []
        box = [(0, n) for n in hu.shape]
        if crop_background:
            found = background_box(hu, self.background_hu, self.background_kernel)
            if found is None:
                notes.append("no body was found to crop to, the whole volume was used")
            box = found or box
        hu = hu[tuple(slice(*side) for side in box)]

        isotropic = isotropic_size(hu.shape, spacing, self.min_spacing_mm, voxel_mm)
        if min(isotropic) < p and not pad_thin:
            raise ValueError(
                f"the volume is {tuple(isotropic)} voxels (z, y, x) after cropping and isotropic resampling, thinner "
                f"than one patch of {p}: pad it by its edge values with pad_thin=True (--pad on the command line)"
            )
        padded = tuple(max(n, p) for n in isotropic)
        resized = budget_size(padded, p, max_patches)
        grid = tuple(n // p for n in resized)

        matrices, starts, stops, spacing_mm = [], [], [], []
        for axis in range(3):
            n, iso, pad, size = hu.shape[axis], isotropic[axis], padded[axis], resized[axis]
            offset, kept = size % p // 2, grid[axis] * p
            matrices.append(_axis_matrix(n, iso, pad, size, offset, kept))
            # Edges map linearly through every stage: prepared -> padded isotropic -> voxels of the input.
            before = (pad - iso) // 2
            starts.append(box[axis][0] + (offset * pad / size - before) * n / iso)
            stops.append(box[axis][0] + ((offset + kept) * pad / size - before) * n / iso)
            spacing_mm.append(spacing[axis] * n / iso * pad / size)
        values = apply_axes(hu, matrices, self.hu_range)
        values = values.sub_(self.image_mean).div_(self.image_std)
        return values, VoxelFMGeometry(grid, tuple(starts), tuple(stops), tuple(spacing_mm), tuple(notes))


def _axis_matrix(n: int, isotropic: int, padded: int, resized: int, offset: int, kept: int) -> np.ndarray | slice:
    """Isotropic resampling, edge padding, budget resampling and centre crop of one axis in one matrix."""
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


def _checked_volume(item, spacing) -> tuple[np.ndarray, tuple[float, ...]]:
    """One input as (array (D, H, W), spacing); ValueError with what is wrong."""
    array = getattr(item, "hu", item)
    spacing = getattr(item, "spacing", None) if spacing is None else spacing
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().numpy()
    array = np.asarray(array)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or not array.size:
        raise ValueError(f"a CT volume must be (D, H, W) with at least one voxel, got shape {array.shape}")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"a CT volume must hold HU as integers or floats, got {array.dtype}")
    if array.dtype.kind == "f":
        bad = array.size - np.count_nonzero(np.isfinite(array))
        if bad:
            raise ValueError(f"the volume holds {bad} NaN or infinite values: repair or mask them before")
        array = array.astype(np.float32, copy=False)
    elif array.dtype != np.int16:
        # int32 keeps every HU a scanner can write, and torch knows no wider unsigned types
        array = np.clip(array, -(2**31), 2**31 - 1).astype(np.int32)
    if spacing is None:
        raise ValueError("an array has no voxel size: pass spacing=(z, y, x) in mm, or a Volume")
    spacing = tuple(float(s) for s in spacing)
    if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing must be three positive numbers (z, y, x) in mm, got {spacing}")
    if max(n * s for n, s in zip(array.shape, spacing, strict=True)) > MAX_FIELD_OF_VIEW_MM:
        raise ValueError(f"a volume of {array.shape} voxels of {spacing} mm is larger than any CT: check the spacing")
    return array, spacing


__all__ = ["VoxelFMGeometry", "VoxelFMImageProcessor"]

VoxelFMImageProcessor.register_for_auto_class("AutoImageProcessor")
