"""The door for files: look at what a path really is and hand it to the reader of that format."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from voxelfm_hf.volumes.errors import ScanError
from voxelfm_hf.volumes.find import begins_as_dicom
from voxelfm_hf.volumes.formats import DICOM, FORMATS, READABLE, Format
from voxelfm_hf.volumes.volume import Volume

if TYPE_CHECKING:
    from voxelfm_hf.volumes.dicom import SeriesFacts


def read_volume(
    path: str | os.PathLike[str],
    *,
    series: int | None = None,
    assume_hu: bool = False,
    spacing: Sequence[float] | None = None,
) -> Volume:
    """Read one CT scan of any supported format.

    Args:
        path: a NIfTI (.nii, .nii.gz, .hdr/.img), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), .npy or DICOM
            file, or the folder of a DICOM series. Formats are recognised by content.
        series: which CT series of a DICOM folder, by its number in `list_series` (1 = the largest, the default).
        assume_hu: take the values as HU even if they do not look like it.
        spacing: (z, y, x) mm of a .npy file without a sidecar; only for .npy.

    Returns:
        The scan as (z, y, x) in LPS+ and HU, with notes on whatever was repaired or assumed.

    Raises:
        ScanError: the scan cannot be read or must not be trusted; one sentence with file, problem and remedy.
    """
    return read_with_series(path, series=series, assume_hu=assume_hu, spacing=spacing)[0]


def read_with_series(
    path: str | os.PathLike[str],
    *,
    series: int | None = None,
    assume_hu: bool = False,
    spacing: Sequence[float] | None = None,
) -> tuple[Volume, list[SeriesFacts]]:
    """The scan as `read_volume` gives it, and what `list_series` says of its folder (nothing unless it is DICOM)."""
    path = Path(path)
    kind = _format_of(path)
    if series is not None and kind is not DICOM:
        raise ScanError(f"{path}: series={series} was asked for, but only DICOM folders hold several series.")
    if spacing is not None and kind.has_spacing:
        raise ScanError(f"{path}: spacing= is only for .npy files; this file states its own.")
    try:
        read = kind.load_reader()
        if kind is DICOM:
            return read(path, series=series, assume_hu=assume_hu)
        given = {} if kind.has_spacing else {"spacing": spacing}
        return read(path, assume_hu=assume_hu, **given), []
    except MemoryError:
        raise ScanError(f"{path}: there is not enough memory for this scan; free memory or crop the scan.") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def list_series(path: str | os.PathLike[str]) -> list[SeriesFacts]:
    """List the CT series of a DICOM folder or file, largest first.

    Args:
        path: a folder with DICOM files, or one file.

    Returns:
        One entry a series with its number (what `series=` takes), slice count, size and spacing; no header text.

    Raises:
        ScanError: no DICOM, or no CT among it.
    """
    path = Path(path)
    if _format_of(path) is not DICOM:
        raise ScanError(f"{path}: only DICOM has series; this is another format.")
    from voxelfm_hf.volumes.dicom import list_dicom_series

    try:
        return list_dicom_series(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> ScanError:
    return ScanError(f"{path}: it cannot be read ({error.strerror or 'input/output error'}); check it and its disk.")


def _format_of(path: Path) -> Format:
    """The format by content; refuses what is no readable file or folder."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ScanError(f"{path}: no such file or folder; check the path.") from None
    except PermissionError:
        raise ScanError(f"{path}: no permission to read it; change its permissions.") from None
    except (OSError, ValueError):
        raise ScanError(f"{str(path)!r}: this path cannot be opened; check it.") from None
    if stat.S_ISDIR(mode):
        return DICOM
    if not stat.S_ISREG(mode):
        raise ScanError(f"{path}: this is a device, socket or pipe, not a scan file.")
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(512)
    except PermissionError:
        raise ScanError(f"{path}: no permission to read it; change its permissions.") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    return _format_of_bytes(path, head)


def _format_of_bytes(path: Path, head: bytes) -> Format:
    name = path.name.lower()
    if not head:
        raise ScanError(f"{path}: the file is empty; copy or download it again.")
    if begins_as_dicom(name, head):
        return DICOM
    for known in FORMATS:
        if known.claims(name, head):
            return known
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"Rar!", b"7z\xbc\xaf")) or name.endswith((".tar", ".tgz")):
        raise ScanError(f"{path}: this is an archive; unpack it and give the scan inside.")
    claim = next((known.title for known in (*FORMATS, DICOM) if name.endswith(known.endings)), None)
    if claim:
        raise ScanError(f"{path}: the name says {claim} but the content is something else; check what the file is.")
    raise ScanError(f"{path}: this is no scan format that is known here; {READABLE} can be read.")
