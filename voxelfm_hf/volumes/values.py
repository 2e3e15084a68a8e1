"""Stored numbers become Hounsfield units: int16 where exact, float32 otherwise; and a check that they can be HU."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from voxelfm_hf.volumes.errors import ScanError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 19  # values converted at a time: a megabyte of int16 stays in the cache between passes
_INT16 = np.iinfo(np.int16)


class HounsfieldBuffer:
    """Receives a file's numbers piece by piece and keeps them as int16, or as float32 once a piece does not fit.

    Only the result and one block are in memory, whatever the type in the file.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.array = np.empty(shape, np.int16)
        self.minimum = np.inf
        self.maximum = -np.inf
        self.non_finite = 0

    def write(self, start: int, stored: np.ndarray, *, slope: float = 1.0, intercept: float = 0.0) -> None:
        """Store `stored * slope + intercept` from flat position `start` on.

        Args:
            start: flat (C order) index of the first value.
            stored: 1-d array of any integer or float type and byte order.
        """
        for begin in range(0, stored.size, _BLOCK):
            part = stored[begin : begin + _BLOCK]
            self._write_block(start + begin, part.astype(part.dtype.newbyteorder("="), copy=False), slope, intercept)

    def _write_block(self, start: int, part: np.ndarray, slope: float, intercept: float) -> None:
        if part.dtype.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer():
            ends = [int(part.min()) * int(slope) + int(intercept), int(part.max()) * int(slope) + int(intercept)]
            if min(ends) >= _INT16.min and max(ends) <= _INT16.max:
                self._widen_range(min(ends), max(ends))
                self._store(start, _whole_numbers(part, int(slope), int(intercept)))
                return
        with np.errstate(all="ignore"):
            values = part.astype(np.float64)
            if slope != 1.0 or intercept != 0.0:
                values = values * slope + intercept
            finite = np.isfinite(values)
            bad = values.size - int(finite.sum())
            if bad:
                self.non_finite += bad
                values = np.where(finite, values, 0.0)
            self._widen_range(float(values.min()), float(values.max()))
            if self.array.dtype == np.int16:
                whole = values.min() >= _INT16.min and values.max() <= _INT16.max and (values == np.rint(values)).all()
                if not whole:
                    self.array = self.array.astype(np.float32)
            self._store(start, values)

    def _store(self, start: int, values: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            self.array.reshape(-1)[start : start + values.size] = values

    def _widen_range(self, low: float, high: float) -> None:
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)


def _whole_numbers(part: np.ndarray, slope: int, intercept: int) -> np.ndarray:
    """part * slope + intercept, known to fit int16."""
    if slope == 1 and part.dtype.itemsize == 2:
        # Wrapping 16-bit addition is exact because the result is known to fit; no wider copy is made.
        stored = part.view(np.int16)
        wrapped = np.array(intercept & 0xFFFF, np.uint16).view(np.int16)
        return stored if intercept == 0 else stored + wrapped
    return part.astype(np.int64) * slope + intercept


def check_hounsfield(
    path: Path, buffer: HounsfieldBuffer, *, raw_unsigned: bool, assume_hu: bool, notes: list[str]
) -> None:
    """Refuse values that cannot be Hounsfield units; note what is merely odd.

    Args:
        path: the scan, for the message.
        buffer: the values and their range.
        raw_unsigned: the file stores unsigned numbers and states no rescale.
        assume_hu: the caller vouches for the values (NaN and infinity are refused all the same).
        notes: remarks are appended here.
    """
    if buffer.non_finite:
        raise ScanError(
            f"{path}: {buffer.non_finite} of {buffer.array.size} voxels are NaN or infinite; "
            "replace them (air is -1024 HU) and save the scan again."
        )
    low, high = buffer.minimum, buffer.maximum
    seen = f"values run from {low:g} to {high:g}"
    if assume_hu:
        notes.append(f"{seen} and were taken as HU because the caller said so")
        return
    override = "if they are HU all the same, say so with --assume-hu (assume_hu=True in Python)."
    if low == high:
        problem = f"all values are {low:g}, so there is no image in it"
    elif low >= 0 and high <= 1:
        problem = f"{seen}, which is a mask or a rescaled image and not HU"
    elif low >= 0 and high <= 255:
        problem = f"{seen}, which is an 8-bit picture or a label map and not HU"
    elif low >= 0 and raw_unsigned:
        problem = f"{seen} in an unsigned type without a rescale, which are raw scanner numbers and not HU"
    elif low >= 0:
        problem = (
            f"{seen} with nothing below 0, while HU of fat and air are negative (an offset of 1024 may be missing)"
        )
    elif high - low < 30:
        problem = f"{seen}, which looks like a normalised image and not HU"
    elif low < -40000 or high > 70000:
        problem = f"{seen}, far beyond the HU scale"
    else:
        if low > -150:
            notes.append(f"{seen}: no air and no fat, unusual for CT in HU")
        if high < -500:
            notes.append(f"{seen}: nothing but air and lung")
        return
    raise ScanError(f"{path}: {problem}; convert the scan to HU, or {override}")
