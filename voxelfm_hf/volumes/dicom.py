"""DICOM series and files -> Volume: choose the series, check its slices, read and rescale the pixels."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxelfm_hf.volumes.code_streams import LOSSY
from voxelfm_hf.volumes.dicom_headers import KNOWN_MODALITIES, Slice, quiet_pydicom
from voxelfm_hf.volumes.dicom_pixels import PixelReader
from voxelfm_hf.volumes.dicom_series import Folder, Spacing, Stack, same_place, scan_folder, slice_spacing
from voxelfm_hf.volumes.errors import ScanError
from voxelfm_hf.volumes.geometry import AIR_HU, MAX_VOXELS, tidy_spacing
from voxelfm_hf.volumes.values import HounsfieldBuffer, check_hounsfield
from voxelfm_hf.volumes.volume import Volume, assemble_volume


@dataclass(frozen=True)
class SeriesFacts:
    """One CT series of a folder, described without header text."""

    number: int  # what series= takes; 1 is the largest
    slices: int
    rows: int
    columns: int
    spacing: tuple[float, float, float]  # (slice distance, between rows, between columns) mm

    def __str__(self) -> str:
        size = " x ".join(f"{s:g}" for s in self.spacing)
        return f"{self.number}: {self.slices} slices of {self.rows} x {self.columns}, {size} mm"


def read_dicom(path: Path, *, series: int | None = None, assume_hu: bool = False) -> tuple[Volume, list[SeriesFacts]]:
    """Read a DICOM series.

    Args:
        path: a folder (its own files, not those of subfolders) or one file.
        series: number in `list_dicom_series`; by default the largest CT volume.
        assume_hu: take the values as HU whatever they look like.

    Returns:
        The canonical volume, and all CT series of the folder, largest first.

    Raises:
        ScanError: no CT, several patients or studies without `series`, slices that make no volume, damage.
    """
    with quiet_pydicom():
        folder = _scan(path)
        found = _listing(folder)
        stack, notes = _choose(path, folder, found, series)
        with PixelReader(path) as reader:
            _drop_repeats(path, stack, reader, notes)
            spacing = slice_spacing(path, stack)
            if spacing.note:
                notes.append(spacing.note)
            buffer = _read_pixels(path, stack, spacing, reader, notes)
    first = stack.slices[0]
    raw_unsigned = not first.storage.signed and not any(s.rescaled and s.intercept for s in stack.slices)
    check_hounsfield(path, buffer, raw_unsigned=raw_unsigned, assume_hu=assume_hu, notes=notes)
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * first.spacing[1]
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    affine[:3, 2] = spacing.step
    affine[:3, 3] = first.position
    source = path.name or path.resolve().name
    return assemble_volume(buffer.array, affine, path=path, source=source, notes=notes), found


def list_dicom_series(path: Path) -> list[SeriesFacts]:
    """Describe the CT series of a folder or file, largest first; arguments and errors as `read_dicom`."""
    with quiet_pydicom():
        return _listing(_scan(path))


def _listing(folder: Folder) -> list[SeriesFacts]:
    return [_facts(n, stack) for n, stack in enumerate(folder.stacks, 1)]


def _facts(number: int, stack: Stack) -> SeriesFacts:
    first = stack.slices[0]
    places = [float(stack.heights[group[0]]) for group in same_place(stack.heights)]
    distance = float(np.median(np.diff(places))) if len(places) > 1 else first.thickness or 0.0
    rows, columns = first.storage.rows, first.storage.columns
    spacing = tidy_spacing(distance), tidy_spacing(first.spacing[0]), tidy_spacing(first.spacing[1])
    return SeriesFacts(number, len(stack.slices), rows, columns, spacing)


def _scan(path: Path) -> Folder:
    if not path.is_dir():
        folder = scan_folder([path])
    else:
        with os.scandir(path) as listing:
            entries = sorted(listing, key=lambda e: e.name)
        folder = scan_folder([Path(e.path) for e in entries if not e.name.startswith(".") and e.is_file()])
        if not folder.files:
            inside = any(e.is_dir() for e in entries)
            advice = "give one of its subfolders, or let `voxelfm embed` search it" if inside else "check the path"
            raise ScanError(f"{path}: this folder holds no DICOM files itself; {advice}.")
    lost = folder.skipped & Counter(dict.fromkeys(("damaged", "cut short", "without read permission"), folder.files))
    if lost:
        only_closed = lost.keys() == {"without read permission"}
        advice = "make every file readable" if only_closed else "copy or export the series again, complete"
        raise ScanError(f"{path}: {_listed(lost)} among {folder.files}; {advice}.")
    if not folder.stacks:
        raise ScanError(
            f"{path}: there is no CT image that can be placed in space; it holds {_listed(folder.skipped)}."
        )
    return folder


def _listed(skipped: Counter[str]) -> str:
    def phrase(what: str, count: int) -> str:
        if what in KNOWN_MODALITIES:
            return f"{count} {what} file{'s' if count > 1 else ''}"
        if what in ("localizers", "colour pictures (screen captures)"):
            return f"{count} {what}"
        return f"{count} file{'s' if count > 1 else ''} {what}"

    return ", ".join(phrase(what, count) for what, count in sorted(skipped.items()))


def _choose(path: Path, folder: Folder, found: list[SeriesFacts], series: int | None) -> tuple[Stack, list[str]]:
    stacks = folder.stacks
    listing = "; ".join(map(str, found[:9]))
    listing += f"; and {len(stacks) - 9} more" if len(stacks) > 9 else ""
    if series is None and len({s.slices[0].study for s in stacks}) > 1:
        raise ScanError(
            f"{path}: the folder mixes several patients or studies; "
            f"choose with --series (series= in Python): {listing}."
        )
    if series is not None and not 1 <= series <= len(stacks):
        raise ScanError(f"{path}: there is no series {series}; the folder holds {listing}.")
    number = series or 1
    stack = stacks[number - 1]
    notes = []
    if len(stacks) > 1:
        chosen = "was asked for" if series else "is the largest and was taken"
        notes.append(f"the folder holds {len(stacks)} CT stacks ({listing}); number {number} {chosen}")
    if stack.others:
        notes.append(f"{stack.others} slices of the same series with another orientation, size or phase were left out")
    if stack.copies:
        notes.append(f"{stack.copies} duplicate files were ignored")
    if folder.skipped:
        notes.append(f"left out: {_listed(folder.skipped)}")
    return stack, notes


def _drop_repeats(path: Path, stack: Stack, reader: PixelReader, notes: list[str]) -> None:
    """Of several slices at one place keep one if all hold the same image; refuse if they differ."""
    groups = same_place(stack.heights)
    if len(groups) == len(stack.slices):
        return
    kept, dropped = [], 0
    for group in groups:
        first, *others = (stack.slices[n] for n in group)
        kept.append(first)
        if not others:
            continue
        image = reader.read(first)
        for other in others:
            same = (first.slope, first.intercept) == (other.slope, other.intercept)
            if not same or not np.array_equal(image, reader.read(other)):
                raise ScanError(
                    f"{path}: different images lie at the same place (phases or reconstructions in one series); "
                    "put each in a folder of its own."
                )
            dropped += 1
    stack.slices[:] = kept
    notes.append(f"{dropped} duplicate slices with identical pixels were ignored")


def _read_pixels(path: Path, stack: Stack, spacing: Spacing, reader: PixelReader, notes: list[str]) -> HounsfieldBuffer:
    """HU of the whole uniform grid (slices, rows, columns)."""
    first = stack.slices[0].storage
    shape = (spacing.count, first.rows, first.columns)
    plane = first.rows * first.columns
    if spacing.count * plane > MAX_VOXELS:
        raise ScanError(
            f"{path}: it claims {spacing.count * plane:.3g} voxels, more than the {MAX_VOXELS:.3g} accepted."
        )
    buffer = HounsfieldBuffer(shape)
    whole = np.rint(spacing.places)
    irregular = bool(np.abs(spacing.places - whole).max() > 1e-6)
    slots = np.arange(len(stack.slices)) if irregular else whole.astype(int)
    target = HounsfieldBuffer((len(stack.slices), *shape[1:])) if irregular else buffer
    padded = 0
    for slot, item, stored in zip(slots, stack.slices, reader.read_all(stack.slices), strict=True):
        filled, count = _without_padding(stored, item)
        padded += count
        if count:
            target.write(int(slot) * plane, filled)
        else:
            target.write(int(slot) * plane, stored, slope=item.slope, intercept=item.intercept)
    if padded:
        notes.append(f"{padded} padding voxels outside the scanner's circle were set to {AIR_HU} HU")
    if not all(s.rescaled for s in stack.slices):
        notes.append("the rescale to HU is not stated; slope 1 and intercept 0 were assumed")
    elif len({(s.slope, s.intercept) for s in stack.slices}) > 1:
        notes.append("the rescale differs between slices; each slice's own was applied")
    if any(s.storage.transfer_syntax in LOSSY for s in stack.slices):
        notes.append("the pixels may have been compressed with loss")
    _fill_between(target.array, buffer, spacing, slots, irregular)
    return buffer


def _without_padding(stored: np.ndarray, item: Slice) -> tuple[np.ndarray, int]:
    """HU with padding as air, and how many; (stored, 0) when padding needs no care.

    Padding that rescales to air or below is harmless. Padding that would look like tissue is replaced, but only
    where the image corners carry it: some scanners state a padding value that is a measurement inside the body.
    """
    if item.padding is None or item.padding[0] * item.slope + item.intercept <= -1000 >= (
        item.padding[1] * item.slope + item.intercept
    ):
        return stored, 0
    low, high = item.padding
    image = stored.reshape(item.storage.rows, item.storage.columns)
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
    if ((corners < low) | (corners > high)).sum() > 1:
        return stored, 0
    mask = (stored >= low) & (stored <= high)
    values = stored.astype(np.float64) * item.slope + item.intercept
    values[mask] = AIR_HU
    return values, int(mask.sum())


def _fill_between(
    known: np.ndarray, buffer: HounsfieldBuffer, spacing: Spacing, slots: np.ndarray, irregular: bool
) -> None:
    """Interpolate the grid's slices that no image lies on, linearly between their neighbours."""
    if irregular:
        buffer.minimum, buffer.maximum = float(known.min()), float(known.max())
        if known.dtype != buffer.array.dtype:
            buffer.array = buffer.array.astype(known.dtype)
        places = spacing.places
        wanted: list[int] = list(range(spacing.count))
    else:
        places = slots.astype(float)
        wanted = sorted(set(range(spacing.count)) - set(slots.tolist()))
    out = buffer.array
    for z in wanted:
        after = min(int(np.searchsorted(places, z - 1e-9)), len(places) - 1)
        before = max(after - 1, 0) if places[after] > z else after
        width = places[after] - places[before]
        weight = (z - places[before]) / width if width > 0 else 0.0
        source_before, source_after = (before, after) if irregular else (int(slots[before]), int(slots[after]))
        mixed = known[source_before] * (1 - weight) + known[source_after] * weight
        out[z] = np.rint(mixed) if out.dtype == np.int16 else mixed
