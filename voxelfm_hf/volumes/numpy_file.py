"""Arrays saved by numpy: (z, y, x) in LPS+ and HU, with the voxel spacing in a sidecar or given by the caller."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voxelfm_hf.volumes.errors import ScanError
from voxelfm_hf.volumes.geometry import MAX_VOXELS
from voxelfm_hf.volumes.values import HounsfieldBuffer, check_hounsfield
from voxelfm_hf.volumes.volume import Volume

_SLAB_BYTES = 1 << 24


def read_numpy(path: Path, *, assume_hu: bool = False, spacing: Sequence[float] | None = None) -> Volume:
    """Read a .npy file that already holds (z, y, x) in LPS+ and HU.

    Args:
        path: the .npy file. Its spacing comes from `spacing`, else from NAME.json beside it:
            {"spacing": [z, y, x]} in mm.
        assume_hu: take the values as HU whatever they look like.
        spacing: (z, y, x) mm.

    Returns:
        The volume; its first voxel lies at (0, 0, 0) mm.

    Raises:
        ScanError: no spacing, object or non-numeric arrays, damage, not 3-d, or values that cannot be HU.
    """
    shape, fortran_order, dtype, offset = _read_header(path)
    if spacing is None:
        spacing = _sidecar_spacing(path)
    memory = np.memmap(path, dtype, "r", offset, shape, "F" if fortran_order else "C")
    buffer = HounsfieldBuffer(shape)
    plane = shape[1] * shape[2]
    step = max(1, _SLAB_BYTES // (plane * dtype.itemsize))
    for z in range(0, shape[0], step):
        buffer.write(z * plane, np.ascontiguousarray(memory[z : z + step]).reshape(-1))
    notes: list[str] = []
    check_hounsfield(path, buffer, raw_unsigned=dtype.kind == "u", assume_hu=assume_hu, notes=notes)
    return Volume.from_array(buffer.array, spacing=spacing, source=path.name, notes=notes)


def _read_header(path: Path) -> tuple[tuple[int, int, int], bool, np.dtype, int]:
    damaged = ScanError(f"{path}: its .npy header is damaged; save the array again with numpy.save.")
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise damaged
        except ScanError:
            raise
        except Exception:
            raise damaged from None
        offset = file.tell()
    if dtype.hasobject:
        raise ScanError(f"{path}: it holds Python objects, which are never unpickled; save a plain number array.")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ScanError(f"{path}: it holds {dtype.name}, not plain numbers; save int16 or float32.")
    if len(shape) != 3 or min(shape) < 1:
        raise ScanError(f"{path}: its shape is {shape}, not a 3-d volume (z, y, x); save one volume per file.")
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise ScanError(f"{path}: its header claims {voxels:.3g} voxels, more than the {MAX_VOXELS:.3g} accepted.")
    if path.stat().st_size < offset + voxels * dtype.itemsize:
        raise ScanError(f"{path}: the file is shorter than its header claims; copy it again.")
    return shape, fortran_order, dtype, offset


def _sidecar_spacing(path: Path) -> Sequence[float]:
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise ScanError(
            f"{path}: a .npy file states no voxel spacing; give --spacing z,y,x in mm (spacing= in Python), "
            f'or write {sidecar.name} beside it: {{"spacing": [z, y, x]}}.'
        )
    try:
        if sidecar.stat().st_size > 1 << 20:
            raise ValueError
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        spacing = [float(v) for v in facts["spacing"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise ScanError(f'{sidecar}: it must hold {{"spacing": [z, y, x]}} in mm; correct it.') from None
    return spacing
