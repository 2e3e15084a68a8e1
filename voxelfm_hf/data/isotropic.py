"""From a scan to what pre-training reads: body box, cubic voxels, whole HU; the image processor's steps, no budget."""

from dataclasses import dataclass

import numpy as np

from voxelfm_hf.modeling.background_voxelfm import background_box
from voxelfm_hf.modeling.resampling_voxelfm import (
    HU_RANGE,
    MIN_SPACING_MM,
    apply_axes,
    interpolation_matrix,
    isotropic_size,
)
from voxelfm_hf.volumes import Volume


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """A scan ready for training.

    Attributes:
        hu: (D, H, W) int16 HU, clipped to `hu_range`, C-contiguous.
        spacing: (z, y, x) mm after resampling; equal on all axes up to the rounding of the size.
        box: [start, stop) an axis (z, y, x) of the part of the original grid that was kept.
        notes: what was assumed.
    """

    hu: np.ndarray
    spacing: tuple[float, float, float]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    notes: tuple[str, ...]


def prepare_volume(
    volume: Volume,
    *,
    crop_background: bool = True,
    hu_range: tuple[float, float] = HU_RANGE,
    min_spacing_mm: float = MIN_SPACING_MM,
) -> PreparedVolume:
    """Clip, crop to the body and resample to cubic voxels, as the image processor does, and round to whole HU.

    Args:
        volume: the scan.
        crop_background: keep only the box of the body; a scan without one is kept whole, with a note.
        hu_range: HU are clipped to it before resampling. The default is the processor's, so that a model is trained
            on the values that it will see.
        min_spacing_mm: lower bound of the voxel edge; scans that already are cubic stay as they are.

    Returns:
        The prepared volume. Thin scans (few voxels on an axis) are no error: the reader of the data decides.
    """
    hu, notes = volume.hu, list(volume.notes)
    box = [(0, n) for n in hu.shape]
    if crop_background:
        found = background_box(hu)
        if found is None:
            notes.append("no body was found to crop to, the whole volume was kept")
        box = found or box
    hu = hu[tuple(slice(*side) for side in box)]
    size = isotropic_size(hu.shape, volume.spacing, min_spacing_mm)
    matrices = [slice(None) if n == m else interpolation_matrix(n, m) for n, m in zip(hu.shape, size, strict=True)]
    if all(isinstance(m, slice) for m in matrices) and hu.dtype == np.int16:
        prepared = np.clip(hu, int(np.ceil(hu_range[0])), int(np.floor(hu_range[1])))
    else:
        prepared = apply_axes(hu, matrices, hu_range).round_().numpy().astype(np.int16)
    spacing = tuple(s * n / m for s, n, m in zip(volume.spacing, hu.shape, size, strict=True))
    return PreparedVolume(np.ascontiguousarray(prepared), spacing, tuple(box), tuple(notes))  # type: ignore[arg-type]
