"""The one form every scan takes: Hounsfield units on a (z, y, x) grid in LPS+, and the way back to the file's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from voxelfm_hf.volumes.errors import ScanError
from voxelfm_hf.volumes.geometry import (
    LPS_FROM_RAS,
    SourceGrid,
    affine_problem,
    canonical_view,
    closest_axes,
    contiguous,
    find_shear,
    orientation_letters,
    shear_back,
    source_view,
    straighten,
    tidy_spacing,
)

if TYPE_CHECKING:
    import nibabel


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """A CT scan in Hounsfield units with its geometry.

    Attributes:
        hu: (D, H, W) = (z, y, x), int16 or float32, C-contiguous; z grows to the head, y to the back, x to the
            patient's left (LPS+).
        spacing: (z, y, x) voxel spacing in mm.
        affine: 4x4 float64, index (z, y, x, 1) -> LPS millimetres (x, y, z, 1).
        source: base name of the file or folder, for messages and tables. It is the user's own name for the
            scan; nothing from the file's header is ever put here.
        notes: what was repaired or assumed, one sentence each, free of header text.
        grid: how the file's own grid relates to this one.
    """

    hu: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray
    source: str
    notes: tuple[str, ...]
    grid: SourceGrid

    def __repr__(self) -> str:
        size = "x".join(str(n) for n in self.hu.shape)
        spacing = "x".join(f"{s:g}" for s in self.spacing)
        return f"Volume({self.source!r}, {size} {self.hu.dtype}, {spacing} mm, from {self.grid.orientation})"

    @classmethod
    def from_array(
        cls,
        hu: np.ndarray,
        *,
        spacing: Sequence[float] | None = None,
        affine: np.ndarray | None = None,
        source: str = "array",
        notes: Sequence[str] = (),
    ) -> Volume:
        """Wrap an array that already is (z, y, x) in LPS+ and HU.

        Args:
            hu: (D, H, W) numbers; int16 and float32 are kept, other types become float32 (or int16 if exact).
            spacing: (z, y, x) mm; required unless `affine` is given.
            affine: 4x4, (z, y, x, 1) -> LPS mm; by default the spacing with the first voxel at (0, 0, 0).
            source: short name for messages.
            notes: remarks to carry along.

        Returns:
            The volume; `hu` is not copied when it already is contiguous int16 or float32.

        Raises:
            ScanError: wrong number of axes, no voxels, NaN or infinity, impossible spacing or affine.
        """
        hu = np.asarray(hu)
        if hu.ndim != 3 or 0 in hu.shape or hu.dtype.kind not in "iuf":
            raise ScanError(f"{source}: expected a 3-d array of numbers (z, y, x), got {hu.dtype} of shape {hu.shape}.")
        if affine is None:
            if spacing is None:
                raise ScanError(f"{source}: an array needs spacing=(z, y, x) in mm, or an affine.")
            affine = _affine_of_spacing(spacing, source)
        affine = np.array(affine, np.float64)
        if affine.shape != (4, 4):
            raise ScanError(f"{source}: the affine must be 4x4, got shape {affine.shape}.")
        problem = affine_problem(affine)
        if problem:
            raise ScanError(f"{source}: {problem}.")
        if closest_axes(affine[:3, :3]) != ((2, 1, 0), (1, 1, 1)):
            raise ScanError(f"{source}: the affine does not run along z, y, x in LPS+; reorient the array first.")
        norms = np.linalg.norm(affine[:3, :3], axis=0)
        if spacing is not None and not np.allclose(norms, np.asarray(spacing, float), rtol=1e-4):
            raise ScanError(f"{source}: spacing {tuple(spacing)} and the affine's {tuple(norms.round(5))} mm disagree.")
        if hu.dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
            exact = hu.dtype.kind in "iu" and hu.min() >= -32768 and hu.max() <= 32767
            hu = hu.astype(np.int16 if exact else np.float32)
        if hu.dtype.kind == "f" and not np.isfinite(hu).all():
            raise ScanError(f"{source}: {int((~np.isfinite(hu)).sum())} voxels are NaN or infinite.")
        file_affine = LPS_FROM_RAS @ affine[:, [2, 1, 0, 3]]
        grid = SourceGrid(hu.shape[::-1], file_affine, orientation_letters(affine[:, [2, 1, 0, 3]]))  # type: ignore[arg-type]
        tidy = tuple(tidy_spacing(float(n)) for n in norms)
        return cls(np.ascontiguousarray(hu), tidy, affine, source, tuple(notes), grid)  # type: ignore[arg-type]

    def restore(self, array: np.ndarray) -> nibabel.Nifti1Image:
        """Put a mask or map back on the input file's own grid, so that it opens over the scan in a viewer.

        Args:
            array: (D, H, W) on this volume's grid; whole numbers (masks, labels) are carried exactly or, where
                a shear was straightened, by nearest voxel; floats (maps) then linearly.

        Returns:
            An image with the file's shape (i, j, k), orientation and affine. A DICOM series counts as a
            file with i along the columns, j along the rows and k along the slices, missing slices included.
        """
        import nibabel

        array = np.asarray(array)
        if array.shape != self.hu.shape:
            raise ScanError(f"{self.source}: restore needs shape {self.hu.shape} (z, y, x), got {array.shape}.")
        array = _storable(array)
        if self.grid.unshear is not None:
            array = shear_back(array, self.grid.unshear)
        data = np.asfortranarray(source_view(array, self.grid.axes, self.grid.flipped))
        image = nibabel.Nifti1Image(data, self.grid.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(self.grid.affine, 1)
        if self.grid.unshear is None:  # a qform cannot hold a shear
            image.set_qform(self.grid.affine, 1)
        return image


def assemble_volume(
    array: np.ndarray, affine_lps: np.ndarray, *, path: object, source: str, notes: Sequence[str]
) -> Volume:
    """Turn a file's voxels and geometry into a canonical volume.

    Args:
        array: (k, j, i), i fastest in the file; int16 or float32 HU.
        affine_lps: 4x4, index (i, j, k, 1) -> LPS mm.
        path: for messages.
        source: the volume's short name.
        notes: remarks so far.

    Returns:
        The volume in (z, y, x) LPS+, straightened if the grid was sheared.

    Raises:
        ScanError: impossible spacing, singular affine, or a shear that cannot be straightened.
    """
    problem = affine_problem(affine_lps)
    if problem:
        raise ScanError(f"{path}: {problem}; correct the geometry or export the scan again.")
    notes = list(notes)
    letters = orientation_letters(affine_lps)
    view, affine, axes, flipped = canonical_view(array, affine_lps)
    plan, affine, obstacle = find_shear(view.shape, affine)
    if obstacle:
        raise ScanError(f"{path}: {obstacle}, which no CT scanner produces; resample it to a straight grid first.")
    if plan is not None:
        view = straighten(view, plan)
        total = math.hypot(*plan.shift)
        notes.append(
            f"the slices are sheared (gantry tilt) by {total:.3f} voxels each and were resampled to a straight grid"
        )
    turn = _rotation_degrees(affine)
    if turn > 0.5:
        notes.append(
            f"the grid is oblique, up to {turn:.1f} degrees from the body axes; axes were taken as the closest"
        )
    grid = SourceGrid(array.shape[::-1], LPS_FROM_RAS @ affine_lps, letters, axes, flipped, plan)  # type: ignore[arg-type]
    spacing = tuple(tidy_spacing(float(n)) for n in np.linalg.norm(affine[:3, :3], axis=0))
    return Volume(contiguous(view), spacing, affine, source, tuple(notes), grid)  # type: ignore[arg-type]


def _rotation_degrees(affine: np.ndarray) -> float:
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    smallest = min(1.0, *(abs(float(unit[w, c])) for c, w in enumerate((2, 1, 0))))
    return math.degrees(math.acos(smallest))


def _affine_of_spacing(spacing: Sequence[float], source: str) -> np.ndarray:
    numbers = np.asarray(spacing, np.float64)
    if numbers.shape != (3,) or not np.isfinite(numbers).all() or (numbers <= 0).any():
        raise ScanError(f"{source}: spacing must be three positive numbers (z, y, x) in mm, got {tuple(spacing)}.")
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = [*numbers, 1.0]
    return affine


def _storable(array: np.ndarray) -> np.ndarray:
    """A type NIfTI viewers open."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if low < -(2**31) or high >= 2**31:
            raise ScanError(f"labels from {low} to {high} do not fit a 32-bit NIfTI; renumber them.")
        return array.astype(np.int32)
    if array.dtype.kind not in "iuf":
        raise ScanError(f"a mask or map must hold numbers, got {array.dtype}.")
    return array
