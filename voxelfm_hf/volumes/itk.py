"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd): headers are checked here first, then SimpleITK reads the voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.volumes.errors import ScanError
from voxelfm_hf.volumes.geometry import MAX_DEFLATE_RATIO, MAX_VOXELS
from voxelfm_hf.volumes.values import HounsfieldBuffer, check_hounsfield
from voxelfm_hf.volumes.volume import Volume, assemble_volume

_MAX_HEADER = 1 << 16
_MAX_NUMBER = 1e7
_SPACES = {
    "right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps",
}  # fmt: skip
_NRRD_BYTES = {
    "signed char": 1, "int8": 1, "int8_t": 1, "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
    "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4,
    "longlong": 8, "long long": 8, "long long int": 8, "signed long long": 8, "signed long long int": 8,
    "int64": 8, "int64_t": 8, "ulonglong": 8, "unsigned long long": 8, "unsigned long long int": 8,
    "uint64": 8, "uint64_t": 8, "float": 4, "double": 8,
}  # fmt: skip
_META_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4,
    "MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip


@dataclass
class _Claims:
    """What a header says, as far as it must be true before memory is allocated."""

    sizes: list[int]
    voxel_bytes: int
    data_path: Path
    data_start: int  # bytes of header before the voxels in that file
    packed: bool  # compressed: the file may be smaller than the voxels
    bounded: bool  # packed with deflate, whose ratio is limited


def read_itk(path: Path, *, assume_hu: bool = False) -> Volume:
    """Read a NRRD or MetaImage scan.

    Args:
        path: .nrrd, .nhdr, .mha or .mhd; a detached voxel file must lie where the header says.
        assume_hu: take the values as HU whatever they look like.

    Returns:
        The canonical volume.

    Raises:
        ScanError: damaged, not 3-d, without orientation or spacing, or values that cannot be HU.
    """
    import SimpleITK

    notes: list[str] = []
    head = _head(path)
    claims = _claims(path, head, notes)
    _check_claims(path, claims)
    SimpleITK.ProcessObject.GlobalWarningDisplayOff()  # ITK prints header text on stderr
    damaged = ScanError(f"{path}: ITK cannot read it, the file is damaged or unusual; export the scan again.")
    try:
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("NrrdImageIO" if head.startswith(b"NRRD000") else "MetaImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        if list(reader.GetSize())[:3] != claims.sizes[:3] or reader.GetNumberOfComponents() != 1:
            raise damaged
        image = reader.Execute()
    except RuntimeError:  # its text quotes the header
        raise damaged from None
    return _to_volume(path, image, notes, assume_hu=assume_hu)


def voxel_file(path: Path) -> Path:
    """Where the voxels of a NRRD or MetaImage header lie: in the file itself, or in any other that it names.

    Raises:
        ScanError: the header is damaged.
    """
    return _claims(path, _head(path), []).data_path


def _head(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(_MAX_HEADER)


def _claims(path: Path, head: bytes, notes: list[str]) -> _Claims:
    return _nrrd_claims(path, head) if head.startswith(b"NRRD000") else _meta_claims(path, head, notes)


def _to_volume(path: Path, image: Any, notes: list[str], *, assume_hu: bool) -> Volume:
    import SimpleITK

    if image.GetDimension() == 4:
        image = image[..., 0]
        notes.append("the file is 4-d with one volume; that volume was taken")
    stored = SimpleITK.GetArrayViewFromImage(image)
    buffer = HounsfieldBuffer(stored.shape)
    buffer.write(0, stored.reshape(-1))
    check_hounsfield(path, buffer, raw_unsigned=stored.dtype.kind == "u", assume_hu=assume_hu, notes=notes)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return assemble_volume(buffer.array, affine, path=path, source=path.name, notes=notes)


def _check_claims(path: Path, claims: _Claims) -> None:
    sizes = claims.sizes
    if any(n < 1 for n in sizes):
        raise ScanError(f"{path}: its header claims impossible dimensions {sizes}.")
    spatial = sizes[:3] if len(sizes) > 3 and all(n == 1 for n in sizes[3:]) else sizes
    if len(spatial) != 3 or len(sizes) > 4:
        raise ScanError(f"{path}: it is {len(sizes)}-d ({' x '.join(map(str, sizes))}), not a 3-d volume.")
    voxels = math.prod(sizes)
    if voxels > MAX_VOXELS:
        raise ScanError(f"{path}: its header claims {voxels:.3g} voxels, more than the {MAX_VOXELS:.3g} accepted.")
    try:
        regular, available = claims.data_path.is_file(), claims.data_path.stat().st_size - claims.data_start
    except (OSError, ValueError):
        regular, available = False, 0
    if not regular:
        raise ScanError(f"{path}: the voxel file that its header names is missing; keep both files together.")
    possible = available * MAX_DEFLATE_RATIO if claims.packed else available
    if (claims.bounded or not claims.packed) and voxels * claims.voxel_bytes > possible:
        raise ScanError(f"{path}: the file is shorter than its header claims; copy or download it again.")


def _fields(path: Path, head: bytes, separator: str, last: str | None) -> tuple[dict[str, str], int]:
    """The header's fields and length; it ends at an empty line (NRRD) or after the field `last` (MetaImage)."""
    fields: dict[str, str] = {}
    length = 0
    for raw in head.split(b"\n"):
        line = raw.decode("latin-1").rstrip("\r")
        length += len(raw) + 1
        if last is None and not line.strip():
            return fields, length
        key, found, value = line.partition(separator)
        if found and not line.startswith("#"):
            fields.setdefault(key.strip() if last else key.strip().lower(), value.strip())
            if last and key.strip() == last:
                return fields, length
    if last is None and len(head) < _MAX_HEADER:
        return fields, len(head)  # a detached header may end without an empty line
    raise ScanError(f"{path}: its header has no end; the file is damaged or something else.")


def _numbers(path: Path, text: str, what: str) -> list[float]:
    try:
        return [float(word) for word in text.replace(",", " ").replace("(", " ").replace(")", " ").split()]
    except ValueError:
        raise ScanError(f"{path}: its header's {what} cannot be understood; export the scan again.") from None


def _check_numbers(path: Path, fields: dict[str, str], names: tuple[str, ...], limit: float) -> None:
    """Refuse wild geometry here: ITK's matrix routines do not return from it."""
    for name in names:
        if any(not abs(n) <= limit for n in _numbers(path, fields.get(name, "").replace("none", ""), name)):
            raise ScanError(f"{path}: its header's {name} holds absurd numbers; export the scan again.")


def _integers(path: Path, text: str, what: str) -> list[int]:
    numbers = _numbers(path, text, what)
    if not numbers or any(not n.is_integer() or abs(n) > 1e15 for n in numbers):
        raise ScanError(f"{path}: its header's {what} cannot be understood; export the scan again.")
    return [int(n) for n in numbers]


def _nrrd_claims(path: Path, head: bytes) -> _Claims:
    fields, length = _fields(path, head, ":", None)
    sizes = _integers(path, fields.get("sizes", ""), "sizes")
    kind = fields.get("type", "").lower()
    if kind not in _NRRD_BYTES:
        raise ScanError(f"{path}: its header states no voxel type that can be read; export the scan again.")
    if fields.get("space", "").lower() not in _SPACES:
        raise ScanError(
            f"{path}: its header states no patient space (such as left-posterior-superior), so left and right "
            "are unknown; export the scan with its orientation."
        )
    directions = fields.get("space directions", "")
    if len(_numbers(path, directions.replace("none", ""), "space directions")) != 9:
        raise ScanError(f"{path}: its header states no 3-d space directions, so spacing is unknown; export it again.")
    _check_numbers(path, fields, ("space directions", "space origin"), _MAX_NUMBER)
    units = fields.get("space units", "").replace('"', " ").split()
    if any(unit.lower() not in ("mm", "millimeter", "millimetre") for unit in units):
        raise ScanError(f"{path}: its lengths are not in millimetres; export the scan in mm.")
    encoding = fields.get("encoding", "").lower()
    data = fields.get("data file", fields.get("datafile"))
    if data is not None and (data.upper().startswith("LIST") or "%" in data):
        raise ScanError(f"{path}: its voxels are spread over several files; save it as one file.")
    text = encoding in ("txt", "text", "ascii", "hex")
    return _Claims(
        sizes,
        1 if text else _NRRD_BYTES[kind],
        path if data is None else path.parent / data,
        length if data is None else 0,
        packed=encoding not in ("raw", "") and not text,
        bounded=encoding in ("gz", "gzip"),
    )


def _meta_claims(path: Path, head: bytes, notes: list[str]) -> _Claims:
    fields, length = _fields(path, head, "=", "ElementDataFile")
    sizes = _integers(path, fields.get("DimSize", ""), "DimSize")
    if _integers(path, fields.get("NDims", str(len(sizes))), "NDims") != [len(sizes)]:
        raise ScanError(f"{path}: its header's NDims and DimSize disagree; the file is damaged.")
    kind = fields.get("ElementType", "")
    if kind not in _META_BYTES:
        raise ScanError(f"{path}: its header states no voxel type that can be read; export the scan again.")
    if _integers(path, fields.get("ElementNumberOfChannels", "1"), "channels") != [1]:
        raise ScanError(f"{path}: it has several values per voxel (colours or vectors), not HU.")
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        raise ScanError(f"{path}: its header states no ElementSpacing, so sizes are unknown; export the scan again.")
    if not {"TransformMatrix", "Rotation", "Orientation"} & fields.keys():
        notes.append("the header states no orientation; MetaImage's default (LPS) was assumed")
    matrices = ("TransformMatrix", "Rotation", "Orientation")
    _check_numbers(path, fields, (*matrices, "Offset", "Position", "Origin", "CenterOfRotation"), _MAX_NUMBER)
    _check_numbers(path, fields, ("ElementSpacing", "ElementSize"), _MAX_NUMBER)
    data = fields["ElementDataFile"]
    if data.upper().startswith("LIST") or "%" in data:
        raise ScanError(f"{path}: its voxels are spread over several files; save it as one file.")
    packed = fields.get("CompressedData", "False").lower() in ("true", "1", "t")
    local = data.upper() == "LOCAL"
    data_path, start = (path, length) if local else (path.parent / data, 0)
    return _Claims(sizes, _META_BYTES[kind], data_path, start, packed=packed, bounded=packed)
