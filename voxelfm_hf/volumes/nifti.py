"""NIfTI-1 and -2 (.nii, .nii.gz, .hdr + .img): header by nibabel, voxels streamed straight into the result."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.volumes.errors import ScanError
from voxelfm_hf.volumes.geometry import LPS_FROM_RAS, MAX_DEFLATE_RATIO, MAX_VOXELS, affine_problem, orientation_letters
from voxelfm_hf.volumes.values import HounsfieldBuffer, check_hounsfield
from voxelfm_hf.volumes.volume import Volume, assemble_volume

_CHUNK = 1 << 20
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_UNITS_MM = {1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass
class _Layout:
    """What the header says about the voxels."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    scaled: bool
    affine: np.ndarray  # RAS, mm


def read_nifti(path: Path, *, assume_hu: bool = False) -> Volume:
    """Read a NIfTI scan.

    Args:
        path: .nii, .nii.gz, or either file of an .hdr/.img pair (each possibly gzipped).
        assume_hu: take the values as HU whatever they look like.

    Returns:
        The canonical volume.

    Raises:
        ScanError: not NIfTI, damaged, not 3-d, contradictory geometry, or values that cannot be HU.
    """
    header_path, image_path = _pair(path)
    notes: list[str] = []
    with _Stream(header_path) as stream:
        header = _parse_header(path, stream)
        single = header["magic"].tobytes().rstrip(b"\0 \r\n\x1a")[:2] in (b"n+",)
        layout = _layout(path, header, notes, single=single)
        if single:
            stream.skip(layout.offset - stream.position, path)
            buffer = _read_values(path, stream, layout)
    if not single:
        if image_path is None:
            raise ScanError(f"{path}: this header keeps its voxels in an .img file, which is not beside it.")
        with _Stream(image_path) as stream:
            stream.skip(layout.offset, path)
            buffer = _read_values(path, stream, layout)
    check_hounsfield(
        path, buffer, raw_unsigned=layout.dtype.kind == "u" and not layout.scaled, assume_hu=assume_hu, notes=notes
    )
    affine = LPS_FROM_RAS @ layout.affine
    return assemble_volume(buffer.array, affine, path=path, source=path.name, notes=notes)


def _pair(path: Path) -> tuple[Path, Path | None]:
    """(header file, voxel file or None) of a path that may be either half of an .hdr/.img pair."""
    name = path.name
    packed = ".gz" if name.lower().endswith(".gz") else ""
    base = name[: len(name) - len(packed)]
    if base.lower().endswith(".img"):
        header = _first_file(path.with_name(base[:-4]), (".hdr" + packed, ".hdr", ".hdr.gz", ".HDR"))
        if header is None:
            raise ScanError(f"{path}: its header file {base[:-4]}.hdr is not beside it; both are needed.")
        return header, path
    if base.lower().endswith(".hdr"):
        return path, _first_file(path.with_name(base[:-4]), (".img" + packed, ".img", ".img.gz", ".IMG"))
    return path, None


def _first_file(stem: Path, suffixes: tuple[str, ...]) -> Path | None:
    for suffix in suffixes:
        candidate = stem.with_name(stem.name + suffix)
        if candidate.is_file():
            return candidate
    return None


class _Stream:
    """Sequential bytes of a plain or gzipped file, never more than asked for, with the gzip checksum verified."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self.file_size = path.stat().st_size

    def __enter__(self) -> _Stream:
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (closed in __exit__)
        self.gzipped = self._file.read(2) == b"\x1f\x8b"
        self._file.seek(0)
        self._inflate = zlib.decompressobj(31) if self.gzipped else None
        self._pending = b""
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def could_hold(self, size: int) -> bool:
        """Whether this file can possibly deliver `size` bytes."""
        return size <= (self.file_size * MAX_DEFLATE_RATIO if self.gzipped else self.file_size)

    def read_some(self, limit: int) -> bytes:
        """Between 1 and `limit` bytes, or b"" at the end."""
        data = self._inflate_some(limit) if self.gzipped else self._file.read(min(limit, _CHUNK))
        self.position += len(data)
        return data

    def _inflate_some(self, limit: int) -> bytes:
        while True:
            assert self._inflate is not None
            if self._inflate.eof:
                rest = self._inflate.unused_data or self._pending
                while rest[:1] == b"\0":  # padding between or after members
                    rest = rest.lstrip(b"\0")
                rest = rest or self._file.read(_CHUNK).lstrip(b"\0")
                if not rest.startswith(b"\x1f\x8b"):
                    return b""
                self._inflate, self._pending = zlib.decompressobj(31), rest
            source = self._pending or self._file.read(_CHUNK // 2)
            if not source:
                raise zlib.error("truncated")
            data = self._inflate.decompress(source, limit)
            self._pending = self._inflate.unconsumed_tail
            if data:
                return data

    def read_exactly(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end of the file."""
        parts, missing = [], size
        while missing:
            part = self.read_some(missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def skip(self, size: int, path: Path) -> None:
        """Move forward over header extensions."""
        if size < 0:
            raise ScanError(f"{path}: its header says the voxels begin inside the header; the file is damaged.")
        with _damage(path):
            while size > 0:
                data = self.read_some(min(size, _CHUNK))
                if not data:
                    raise ScanError(f"{path}: the file ends before its voxels begin; copy it again.")
                size -= len(data)

    def check_end(self) -> None:
        """Read on to the gzip checksum; stops after a few bytes more than the header announced."""
        if self.gzipped:
            spare = 1 << 20
            while spare > 0 and (data := self.read_some(spare)):
                spare -= len(data)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except zlib.error as error:
        what = "is cut short" if "truncated" in str(error) else "is damaged"
        raise ScanError(f"{path}: its gzip stream {what}; copy or download the file again.") from None
    except OSError as error:
        raise ScanError(f"{path}: reading failed ({error.strerror or 'input/output error'}).") from None


def _parse_header(path: Path, stream: _Stream) -> Any:
    """The header as nibabel's object, after checking that it is one."""
    from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader

    if stream.file_size == 0:
        raise ScanError(f"{path}: the file is empty; copy or download it again.")
    with _damage(path):
        block = stream.read_exactly(4)
        sizes = {int.from_bytes(block, "little"), int.from_bytes(block, "big")}
        length = 540 if 540 in sizes else 348
        block += stream.read_exactly(length - 4)
    if not sizes & {348, 540}:
        raise ScanError(f"{path}: this is not a NIfTI file (wrong first bytes); check what the file really is.")
    if len(block) < length:
        raise ScanError(f"{path}: the file ends inside its header; copy or download it again.")
    magic = block[344:348] if length == 348 else block[4:8]
    kinds: dict[bytes, Any] = {
        b"n+1\0": Nifti1Header,
        b"ni1\0": Nifti1PairHeader,
        b"n+2\0": Nifti2Header,
        b"ni2\0": Nifti2PairHeader,
    }
    if magic not in kinds:
        raise ScanError(
            f"{path}: this is not NIfTI (no magic); an ANALYZE file states no orientation, convert it first."
        )
    try:
        return kinds[magic](block, check=False)
    except Exception:  # nibabel's text may quote the header
        raise ScanError(f"{path}: its NIfTI header is damaged; export the scan again.") from None


def _layout(path: Path, header: Any, notes: list[str], *, single: bool) -> _Layout:
    """Check everything the header claims before anything is allocated."""
    dims = [int(n) for n in header["dim"]]
    rank = dims[0]
    if not 1 <= rank <= 7 or any(n < 1 for n in dims[1 : rank + 1]):
        raise ScanError(f"{path}: its header claims impossible dimensions {dims[: max(1, min(rank, 7)) + 1]}.")
    sizes = dims[1 : rank + 1]
    if rank > 3 and all(n == 1 for n in sizes[3:]):
        notes.append(f"the file is {rank}-d with one volume; that volume was taken")
        sizes = sizes[:3]
    if len(sizes) != 3:
        advice = "extract one volume" if len(sizes) > 3 else "give a 3-d scan"
        raise ScanError(f"{path}: it is {len(sizes)}-d ({' x '.join(map(str, sizes))}), not a 3-d volume; {advice}.")
    voxels = math.prod(sizes)
    if voxels > MAX_VOXELS:
        raise ScanError(f"{path}: its header claims {voxels:.3g} voxels, more than the {MAX_VOXELS:.3g} accepted.")
    code = int(header["datatype"])
    if code not in _TYPES:
        kind = {128: "RGB colours", 2304: "RGBA colours", 32: "complex numbers", 1792: "complex numbers"}
        raise ScanError(f"{path}: it holds {kind.get(code, f'NIfTI data type {code}')}, not plain numbers; convert it.")
    order = ">" if header.endianness == ">" else "<"
    offset = float(header["vox_offset"])
    minimum = (352 if int(header["sizeof_hdr"]) == 348 else 544) if single else 0
    if not math.isfinite(offset) or offset > 1 << 26 or offset < 0:
        raise ScanError(f"{path}: its header puts the voxels at an impossible position; the file is damaged.")
    slope, intercept, scaled = _scaling(path, header)
    affine = _affine(path, header, notes)
    return _Layout(
        (sizes[0], sizes[1], sizes[2]),
        np.dtype(order + _TYPES[code]),
        max(int(offset), minimum),
        slope,
        intercept,
        scaled,
        affine,
    )


def _scaling(path: Path, header: Any) -> tuple[float, float, bool]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0, False
    if not math.isfinite(intercept) or abs(slope) > 1e6 or abs(intercept) > 1e9:
        raise ScanError(f"{path}: its rescale (slope {slope:g}, intercept {intercept:g}) is impossible.")
    return slope, intercept, (slope, intercept) != (1.0, 0.0)


def _affine(path: Path, header: Any, notes: list[str]) -> np.ndarray:
    """Choose between sform and qform, in mm; refuse when they contradict each other."""
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    sform = np.asarray(header.get_sform(), np.float64) if sform_code > 0 else None
    qform = None
    if qform_code > 0:
        try:
            qform = np.asarray(header.get_qform(), np.float64)
        except Exception:  # not a rotation
            if sform is None:
                raise ScanError(
                    f"{path}: its qform is no rotation and there is no sform; set the orientation."
                ) from None
            notes.append("the qform is no rotation and was ignored; the sform was used")
    unit = int(header["xyzt_units"]) & 7
    scale = np.diag([_UNITS_MM.get(unit, 1.0)] * 3 + [1.0])
    if unit not in _UNITS_MM:
        notes.append("the file states no length unit; millimetres were assumed")
    elif unit != 2:
        notes.append(f"lengths in {'metres' if unit == 1 else 'micrometres'} were converted to millimetres")
    affines = [scale @ a if a is not None else None for a in (sform, qform)]
    sform, qform = affines
    if sform is None and qform is None:
        raise ScanError(
            f"{path}: neither sform nor qform is set, so left and right are unknown; set the orientation "
            "(the codes in the header) with the tool that made the file."
        )
    if sform is None or qform is None:
        chosen = sform if sform is not None else qform
        assert chosen is not None
        return chosen
    if affine_problem(sform):
        return sform  # refused by the caller with the reason
    if not np.isfinite(qform).all() or affine_problem(qform):
        notes.append("the qform is unusable and was ignored; the sform was used")
        return sform
    _compare_forms(path, sform, qform, notes)
    return sform


def _compare_forms(path: Path, sform: np.ndarray, qform: np.ndarray, notes: list[str]) -> None:
    letters = [orientation_letters(LPS_FROM_RAS @ a) for a in (sform, qform)]
    spacing = [np.linalg.norm(a[:3, :3], axis=0) for a in (sform, qform)]
    if letters[0] != letters[1]:
        raise ScanError(
            f"{path}: its sform says {letters[0]} and its qform says {letters[1]}; "
            "set the wrong one's code to 0 in the header."
        )
    if np.abs(spacing[0] / spacing[1] - 1).max() > 0.05:
        both = ["x".join(f"{v:.4g}" for v in s) for s in spacing]
        raise ScanError(
            f"{path}: its sform says {both[0]} mm voxels and its qform {both[1]} mm; set the wrong one's code to 0."
        )
    turn = np.abs(sform[:3, :3] / spacing[0] - qform[:3, :3] / spacing[1]).max()
    moved = np.abs(sform[:3, 3] - qform[:3, 3]).max()
    if turn > 1e-3 or moved > 0.1 or np.abs(spacing[0] / spacing[1] - 1).max() > 1e-3:
        notes.append("sform and qform differ slightly; the sform was used")


def _read_values(path: Path, stream: _Stream, layout: _Layout) -> HounsfieldBuffer:
    """Stream the voxels into a buffer; nothing is allocated for a claim that the file cannot hold."""
    size = math.prod(layout.shape) * layout.dtype.itemsize
    short = ScanError(f"{path}: the file is shorter than its header claims; copy or download it again.")
    if not stream.could_hold(size):
        raise short
    buffer = HounsfieldBuffer(layout.shape[::-1])
    item, start, rest = layout.dtype.itemsize, 0, b""
    with _damage(path):
        while size:
            data = stream.read_some(min(size, _CHUNK))
            if not data:
                raise short
            size -= len(data)
            data = rest + data if rest else data
            whole = len(data) // item
            rest = data[whole * item :]
            stored = np.frombuffer(data, layout.dtype, whole)
            buffer.write(start, stored, slope=layout.slope, intercept=layout.intercept)
            start += whole
        stream.check_end()
    return buffer
