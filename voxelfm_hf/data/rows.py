"""A row of any data set (a path, file bytes, the Nifti feature, an array) as a scan; which columns hold what."""

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.column_names import PATIENT_COLUMNS, usual_column
from voxelfm_hf.volumes import RecipeError, ScanError, Volume, read_volume
from voxelfm_hf.volumes.find import format_ending
from voxelfm_hf.volumes.geometry import parse_spacing
from voxelfm_hf.volumes.values import HounsfieldBuffer, check_hounsfield

_VOLUME_NAMES = ("volume", "nifti", "scan", "ct", "image", "path", "file", "file_name", "image_path", "filename")
_ID_NAMES = ("id", "scan_id", "name", "VolumeName", "__key__")


@dataclass(frozen=True)
class ColumnMap:
    """Names of the columns of a data set; None where there is none.

    Attributes:
        volume: the scan: a path or URL, the bytes of a file, a Nifti feature, an array (z, y, x) in LPS+ and HU, or,
            together with `shape`, raw int16 values in C order.
        id: a name for the scan; by default its path.
        spacing: (z, y, x) mm, numbers or a text such as "2.5,0.7,0.7"; needed with arrays, .npy files without a
            sidecar and raw values.
        shape: (D, H, W) of raw values.
        patient: whatever tells patients apart; it is hashed before anything is written.
    """

    volume: str
    id: str | None = None
    spacing: str | None = None
    shape: str | None = None
    patient: str | None = None

    @classmethod
    def resolve(cls, columns: "Mapping[str, str | None] | ColumnMap | None", available: Iterable[str]) -> "ColumnMap":
        """Complete a column map from a recipe by the usual names, and check it against the columns that exist.

        Raises:
            RecipeError: an unknown field, a column that does not exist, or no column that could hold scans.
        """
        names = list(available)
        listed = ", ".join(sorted(names)) or "none"
        given = {} if columns is None else dict(columns) if isinstance(columns, Mapping) else dict(vars(columns))
        known = [field.name for field in fields(cls)]
        for key, name in given.items():
            if key not in known:
                raise RecipeError(f"the column map has an unknown entry {key!r}; it knows {', '.join(known)}.")
            if name is not None and name not in names:
                raise RecipeError(f"the data set has no column {name!r} (for {key}); its columns are {listed}.")
        usual = {"volume": _VOLUME_NAMES, "id": _ID_NAMES, "spacing": ("spacing",), "shape": ("shape",)}
        for key, candidates in usual.items():
            if key not in given:
                given[key] = next((name for name in candidates if name in names), None)
        if "patient" not in given:
            given["patient"] = usual_column(names, PATIENT_COLUMNS)
        if given["volume"] is None:
            raise RecipeError(
                f"no column of the data set looks like scans (its columns are {listed}); name one in the column map, "
                'for example {"volume": "my_column"}.'
            )
        return cls(**given)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        """The columns that have to be read."""
        return [name for name in vars(self).values() if name is not None]


def row_id(row: Mapping[str, Any], columns: ColumnMap, fallback: str) -> str:
    """The scan's name: its id column, else its path, else the fallback."""
    if columns.id is not None and row.get(columns.id) not in (None, ""):
        return str(row[columns.id])
    value = row.get(columns.volume)
    path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
    return str(path) if path else fallback


def row_volume(
    row: Mapping[str, Any],
    columns: ColumnMap,
    *,
    name: str,
    assume_hu: bool = False,
    spacing: Sequence[float] | None = None,
) -> Volume:
    """Read the scan of a row, with the refusals of the file readers.

    Args:
        row: one row, file features not decoded.
        columns: which column holds what.
        name: the scan's name, for messages.
        assume_hu: take the values as HU even if they do not look like it.
        spacing: (z, y, x) mm, where neither the row nor its file states one.

    Raises:
        ScanError: the row holds no scan, or one that cannot be read or must not be trusted.
    """
    value = row.get(columns.volume)

    def find_spacing() -> Sequence[float] | None:
        return _stated_spacing(row, columns, name) or spacing

    if isinstance(value, Mapping):  # an undecoded file feature: {"path", "bytes"}
        path, content = value.get("path"), value.get("bytes")
        if content is not None:
            return _read_bytes(bytes(content), str(path or ""), find_spacing, name, assume_hu)
        value = path
    if isinstance(value, (str, os.PathLike)) and str(value):
        return _read_path(str(value), find_spacing, name, assume_hu)
    if isinstance(value, (bytes, memoryview, bytearray)):
        if columns.shape and row.get(columns.shape) is not None:
            return _from_array(raw_values(value, row[columns.shape], name), find_spacing(), name, assume_hu)
        return _read_bytes(bytes(value), name, find_spacing, name, assume_hu)
    if value is None or isinstance(value, str):
        raise ScanError(f"{name}: its row holds no scan (column {columns.volume!r} is empty); fill or drop the row.")
    return _from_array(np.asarray(value), find_spacing(), name, assume_hu)


def raw_values(value: Any, shape: Any, name: str) -> np.ndarray:
    """View raw int16 bytes in C order as (D, H, W).

    Raises:
        ScanError: the number of bytes does not match the shape.
    """
    size = [int(n) for n in shape]
    buffer = memoryview(value)
    if len(size) != 3 or min(size) < 1 or buffer.nbytes != 2 * size[0] * size[1] * size[2]:
        raise ScanError(
            f"{name}: its row holds {buffer.nbytes} bytes, which do not fit the stated shape {tuple(size)} of int16; "
            "the row is truncated or damaged, prepare it again."
        )
    return np.frombuffer(buffer, "<i2").reshape(size)


def _stated_spacing(row: Mapping[str, Any], columns: ColumnMap, name: str) -> tuple[float, float, float] | None:
    stated = row.get(columns.spacing) if columns.spacing else None
    if stated is None or (isinstance(stated, str) and not stated.strip()):
        return None
    try:
        if isinstance(stated, str):
            return parse_spacing(stated)
        z, y, x = (float(part) for part in stated)
    except (TypeError, ValueError):
        raise ScanError(
            f"{name}: its row states the spacing {stated} (column {columns.spacing!r}), not three numbers z,y,x in mm, "
            "for example 2.5,0.7,0.7; correct the cell or leave it empty."
        ) from None
    return z, y, x


def _read_path(path: str, find_spacing: Callable[[], Any], name: str, assume_hu: bool) -> Volume:
    if "://" not in path:
        return read_volume(path, assume_hu=assume_hu, spacing=find_spacing() if format_ending(path) == ".npy" else None)
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        raise ScanError(f"{name}: {path} cannot be downloaded ({type(error).__name__}); check the address.") from None
    return _read_bytes(content, path, find_spacing, name, assume_hu)


def _read_bytes(content: bytes, path: str, find_spacing: Callable[[], Any], name: str, assume_hu: bool) -> Volume:
    """Readers take files, so the bytes become one for a moment."""
    with tempfile.TemporaryDirectory(prefix="voxelfm-scan-") as folder:
        suffix = format_ending(path.split("?")[0]) or (".nii.gz" if content[:2] == b"\x1f\x8b" else "")
        file = Path(folder) / f"scan{suffix}"
        file.write_bytes(content)
        try:
            return read_volume(file, assume_hu=assume_hu, spacing=find_spacing() if suffix == ".npy" else None)
        except ScanError as error:
            raise ScanError(str(error).replace(str(file), name)) from None


def _from_array(array: np.ndarray, spacing: Any, name: str, assume_hu: bool) -> Volume:
    if array.ndim != 3 or not array.size or array.dtype.kind not in "iuf":
        raise ScanError(
            f"{name}: expected a 3-d array of HU (z, y, x), got {array.dtype} of shape {array.shape}; convert it."
        )
    if spacing is None:
        raise ScanError(f"{name}: an array needs its voxel spacing (z, y, x) in mm; name that column in the map.")
    buffer = HounsfieldBuffer(array.shape)  # type: ignore[arg-type]
    buffer.write(0, np.ascontiguousarray(array).reshape(-1))
    notes: list[str] = []
    check_hounsfield(Path(name), buffer, raw_unsigned=array.dtype.kind == "u", assume_hu=assume_hu, notes=notes)
    return Volume.from_array(buffer.array, spacing=[float(s) for s in spacing], source=Path(name).name, notes=notes)
