"""From a CT volume in HU to the model's input: clip, crop the background, resample, fit the patch budget, normalise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from .background_voxelfm import BACKGROUND_HU, BACKGROUND_KERNEL, background_box
from .resampling_voxelfm import (
    HU_RANGE,
    IMAGE_MEAN,
    IMAGE_STD,
    MIN_SPACING_MM,
    Size,
    apply_axes,
    axis_matrix,
    budget_size,
    isotropic_size,
    linear_rows,
)

# No CT spans this much; larger products of size and spacing are wrong spacings.
MAX_FIELD_OF_VIEW_MM = 4000.0


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
        hu_range: Sequence[float] = HU_RANGE,
        image_mean: float = IMAGE_MEAN,
        image_std: float = IMAGE_STD,
        patch_size: int = 14,
        max_patches: int = 25000,
        min_spacing_mm: float = MIN_SPACING_MM,
        voxel_mm: float | None = None,
        crop_background: bool = True,
        background_hu: float = BACKGROUND_HU,
        background_kernel: int = BACKGROUND_KERNEL,
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
        batch: Any = prepared
        if is_equal:  # one volume is not copied
            batch = torch.stack(prepared) if len(prepared) > 1 else prepared[0][None]
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
            rows = linear_rows(start + (np.arange(size) + 0.5) * (stop - start) / size - 0.5, n)
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
            matrices.append(axis_matrix(n, iso, pad, size, offset, kept))
            # Edges map linearly through every stage: prepared -> padded isotropic -> voxels of the input.
            before = (pad - iso) // 2
            starts.append(box[axis][0] + (offset * pad / size - before) * n / iso)
            stops.append(box[axis][0] + ((offset + kept) * pad / size - before) * n / iso)
            spacing_mm.append(spacing[axis] * n / iso * pad / size)
        values = apply_axes(hu, matrices, self.hu_range)
        values = values.sub_(self.image_mean).div_(self.image_std)
        return values, VoxelFMGeometry(grid, tuple(starts), tuple(stops), tuple(spacing_mm), tuple(notes))


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
