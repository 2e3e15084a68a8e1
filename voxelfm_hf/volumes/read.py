"""The door for files: look at what a path really is and hand it to the reader of that format."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from voxelfm_hf.volumes.errors import ScanError
from voxelfm_hf.volumes.find import begins_as_dicom
from voxelfm_hf.volumes.volume import Volume

if TYPE_CHECKING:
    from voxelfm_hf.volumes.dicom import SeriesFacts

_READABLE = "NIfTI, a DICOM folder or file, NRRD, MHA/MHD and .npy can be read"


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
    kind = _kind_of(path)
    if series is not None and kind != "dicom":
        raise ScanError(f"{path}: series={series} was asked for, but only DICOM folders hold several series.")
    if spacing is not None and kind != "npy":
        raise ScanError(f"{path}: spacing= is only for .npy files; this file states its own.")
    try:
        if kind == "dicom":
            from voxelfm_hf.volumes.dicom import read_dicom

            return read_dicom(path, series=series, assume_hu=assume_hu)
        if kind == "nifti":
            from voxelfm_hf.volumes.nifti import read_nifti

            return read_nifti(path, assume_hu=assume_hu), []
        if kind == "itk":
            from voxelfm_hf.volumes.itk import read_itk

            return read_itk(path, assume_hu=assume_hu), []
        from voxelfm_hf.volumes.numpy_file import read_numpy

        return read_numpy(path, assume_hu=assume_hu, spacing=spacing), []
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
    if _kind_of(path) != "dicom":
        raise ScanError(f"{path}: only DICOM has series; this is another format.")
    from voxelfm_hf.volumes.dicom import list_dicom_series

    try:
        return list_dicom_series(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> ScanError:
    return ScanError(f"{path}: it cannot be read ({error.strerror or 'input/output error'}); check it and its disk.")


def _kind_of(path: Path) -> str:
    """ "dicom", "nifti", "itk" or "npy", by content; refuses what is no readable file or folder."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ScanError(f"{path}: no such file or folder; check the path.") from None
    except PermissionError:
        raise ScanError(f"{path}: no permission to read it; change its permissions.") from None
    except (OSError, ValueError):
        raise ScanError(f"{str(path)!r}: this path cannot be opened; check it.") from None
    if stat.S_ISDIR(mode):
        return "dicom"
    if not stat.S_ISREG(mode):
        raise ScanError(f"{path}: this is a device, socket or pipe, not a scan file.")
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(512)
    except PermissionError:
        raise ScanError(f"{path}: no permission to read it; change its permissions.") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    return _kind_of_bytes(path, head)


def _kind_of_bytes(path: Path, head: bytes) -> str:
    name = path.name.lower()
    if not head:
        raise ScanError(f"{path}: the file is empty; copy or download it again.")
    if begins_as_dicom(name, head):
        return "dicom"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"NRRD000"):
        return "itk"
    if name.endswith((".mha", ".mhd")):
        return "itk"
    if name.endswith((".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")):
        return "nifti"
    if head[:4] in (b"\\\x01\0\0", b"\0\0\x01\\", b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
        return "nifti"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"Rar!", b"7z\xbc\xaf")) or name.endswith((".tar", ".tgz")):
        raise ScanError(f"{path}: this is an archive; unpack it and give the scan inside.")
    claims = {".nrrd": "NRRD", ".nhdr": "NRRD", ".npy": "NumPy", ".dcm": "DICOM", ".dicom": "DICOM", ".ima": "DICOM"}
    claim = claims.get(path.suffix.lower())
    if claim:
        raise ScanError(f"{path}: the name says {claim} but the content is something else; check what the file is.")
    raise ScanError(f"{path}: this is no scan format that is known here; {_READABLE}.")
