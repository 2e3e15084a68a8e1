"""Many DICOM slices -> stacks that can be volumes: grouping, ordering, duplicates, gaps. No pixels here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxelfm_hf.volumes.dicom_headers import HeaderProblem, NotDicom, Slice, read_header
from voxelfm_hf.volumes.errors import ScanError

_SAME_PLACE_MM = 1e-3
_MAX_FILLED_SHARE = 0.2
_MAX_HOLE_MM = 10.0


@dataclass
class Stack:
    """Parallel slices of one series, in order along their normal."""

    slices: list[Slice]
    copies: int = 0  # identical instances that were dropped
    others: int = 0  # slices of the same series that have another orientation, size or phase

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.slices[0].orientation[:3], self.slices[0].orientation[3:])

    @property
    def heights(self) -> np.ndarray:
        """Position of each slice along the normal, mm."""
        return np.array([s.position for s in self.slices]) @ self.normal

    @property
    def repeats(self) -> int:
        """Largest number of slices at one place."""
        return max(len(group) for group in same_place(self.heights))

    @property
    def voxels(self) -> int:
        return len(self.slices) * self.slices[0].storage.rows * self.slices[0].storage.columns


@dataclass
class Folder:
    """What a DICOM folder holds."""

    stacks: list[Stack]  # largest first
    skipped: Counter[str]  # fixed phrases, no header text
    files: int  # DICOM files


@dataclass(frozen=True)
class Spacing:
    """Where slices lie on a uniform axis.

    Attributes:
        step: (3,) LPS mm from one slice of the uniform grid to the next.
        places: position of each given slice in units of the step; whole numbers unless the gaps are irregular.
        count: slices of the uniform grid.
        note: what was found odd, or "".
    """

    step: np.ndarray
    places: np.ndarray
    count: int
    note: str = ""


def scan_folder(paths: Sequence[Path]) -> Folder:
    """Read the headers of all files that are DICOM and sort the slices into stacks, the largest volume first."""
    skipped: Counter[str] = Counter()
    files = len(paths)
    series: dict[tuple, list[Stack]] = defaultdict(list)
    for path in paths:
        try:
            slices = read_header(path)
        except NotDicom:
            files -= 1
            continue
        except HeaderProblem as problem:
            skipped[str(problem)] += 1
            continue
        for item in slices:
            if item.localizer:
                skipped["localizers"] += 1
                continue
            several_frames = item.storage.frames > 1
            _add(series[(item.study, item.series, path if several_frames else None)], item)
    stacks = []
    for group in series.values():
        parts = [part for stack in group for part in _split_phases(_ordered(stack))]
        total = sum(len(p.slices) + p.copies for p in parts)
        for part in parts:
            part.others = total - len(part.slices) - part.copies
        stacks += parts
    stacks.sort(key=lambda s: (-s.voxels, min((x.path.name, x.frame) for x in s.slices)))
    return Folder(stacks, skipped, files)


def _add(stacks: list[Stack], item: Slice) -> None:
    """Put a slice with those of its size, spacing and orientation (compared with tolerance, never binned)."""
    for stack in stacks:
        first = stack.slices[0]
        if (
            (first.storage.rows, first.storage.columns) == (item.storage.rows, item.storage.columns)
            and max(abs(a / b - 1) for a, b in zip(first.spacing, item.spacing, strict=True)) < 1e-3
            and max(abs(a - b) for a, b in zip(first.orientation, item.orientation, strict=True)) < 5e-3
        ):
            stack.slices.append(item)
            return
    stacks.append(Stack([item]))


def _ordered(stack: Stack) -> Stack:
    """Sort along the normal and drop further copies of the same instance at the same place."""
    heights = stack.heights
    order = sorted(range(len(stack.slices)), key=lambda n: (round(float(heights[n]), 6), _name(stack.slices[n])))
    seen, kept, copies = set(), [], 0
    for n in order:
        item = stack.slices[n]
        key = (item.instance, item.frame, tuple(round(p, 3) for p in item.position))
        if item.instance and key in seen:
            copies += 1
            continue
        seen.add(key)
        kept.append(item)
    return Stack(kept, copies)


def _name(item: Slice) -> tuple[str, int]:
    return item.path.name, item.frame


def same_place(heights: np.ndarray) -> list[list[int]]:
    """Group sorted heights that coincide."""
    groups: list[list[int]] = []
    for n, height in enumerate(heights):
        if groups and height - heights[groups[-1][0]] <= _SAME_PLACE_MM:
            groups[-1].append(n)
        else:
            groups.append([n])
    return groups


def _split_phases(stack: Stack) -> list[Stack]:
    """Separate contrast phases, acquisitions or reconstructions that share a series and its positions."""
    repeats = stack.repeats
    if repeats == 1:
        return [stack]
    for label in range(len(stack.slices[0].phase)):
        groups: dict[str, list[Slice]] = defaultdict(list)
        for item in stack.slices:
            groups[item.phase[label]].append(item)
        parts = [Stack(items) for items in groups.values()]
        if len(parts) == repeats and all(part.repeats == 1 for part in parts):
            parts[0].copies = stack.copies
            return parts
    return [stack]


def slice_spacing(path: Path, stack: Stack) -> Spacing:
    """Find the uniform axis that a stack (without repeated places) lies on.

    Args:
        path: for messages.
        stack: at least one slice.

    Raises:
        ScanError: slices that do not lie on a line, holes that are too large, or one slice without a thickness.
    """
    positions = np.array([s.position for s in stack.slices])
    heights = stack.heights
    count = len(heights)
    if count == 1:
        thickness = stack.slices[0].thickness
        if thickness is None:
            raise ScanError(f"{path}: it holds one slice without a thickness, so its depth is unknown.")
        return Spacing(
            stack.normal * thickness, np.zeros(1), 1, f"one slice; its thickness ({thickness:g} mm) was used"
        )
    _check_line(path, positions, heights, stack)
    gaps = np.diff(heights)
    base = float(np.median(gaps))
    places = (heights - heights[0]) / base
    whole = np.rint(places)
    total = heights[-1] - heights[0]
    even = np.linspace(0, total, count)
    error = np.abs(heights - heights[0] - even).max()
    direction = (positions[-1] - positions[0]) / total  # mm moved per mm of height: carries a gantry tilt
    if error <= 0.1 * base:
        note = f"slice positions are uneven by up to {error:.2f} mm" if error > 0.02 * base + 0.01 else ""
        return Spacing(direction * total / (count - 1), np.arange(count, dtype=float), count, note)
    largest = float(gaps.max())
    where = f"between {gaps.min():.2f} and {largest:.2f} mm"
    if largest > max(_MAX_HOLE_MM, 2.05 * base):
        raise ScanError(
            f"{path}: its slices leave a hole of {largest:.1f} mm (usual distance {base:.2f} mm), slices are missing; "
            "get the complete series."
        )
    slots = int(whole[-1]) + 1
    if np.abs(places - whole).max() <= 0.1 and len(set(whole)) == count:
        missing = slots - count
        if missing > _MAX_FILLED_SHARE * slots:
            raise ScanError(f"{path}: {missing} of {slots} slices are missing; get the complete series.")
        step = direction * total / (slots - 1)
        note = f"{missing} missing slice{'s were' if missing > 1 else ' was'} filled in by linear interpolation"
        return Spacing(step, whole, slots, note)
    if gaps.min() < 0.25 * base:
        raise ScanError(f"{path}: the distances of its slices vary {where}; it seems to mix several scans.")
    slots = round(total / base) + 1
    step = direction * total / (slots - 1)
    places = (heights - heights[0]) * (slots - 1) / total
    return Spacing(
        step, places, slots, f"slice distances vary {where}; resampled linearly to {total / (slots - 1):.3f} mm"
    )


def _check_line(path: Path, positions: np.ndarray, heights: np.ndarray, stack: Stack) -> None:
    """Refuse stacks whose slices wander sideways: neither straight nor evenly tilted."""
    share = (heights - heights[0]) / (heights[-1] - heights[0])
    off = positions - (positions[0] + share[:, None] * (positions[-1] - positions[0]))
    wander = np.linalg.norm(off, axis=1).max()
    if wander > max(0.5 * min(stack.slices[0].spacing), 0.01):
        raise ScanError(
            f"{path}: its slices are shifted sideways against each other by up to {wander:.1f} mm; "
            "it seems to mix several scans."
        )
