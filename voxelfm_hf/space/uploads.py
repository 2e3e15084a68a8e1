"""Uploaded scans: unpacked within limits, read, and deleted whatever happens."""

import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import ScanError

MAX_UPLOAD_MB = 500
# A chest CT of 0.5 mm slices is about 400 MB unpacked.
MAX_UNPACKED_BYTES = 2_000_000_000
MAX_FILES = 5000
MAX_VOXELS = 512 * 512 * 1200
# Deflate packs CT two to four times; a hundred times is an archive made to fill disks.
MAX_RATIO = 100


def read_upload(path: str | Path) -> Volume:
    """Reads an uploaded scan and deletes the upload.

    Args:
        path: A scan file, or a zip of DICOM files, in a folder of its own that may be deleted.

    Raises:
        ScanError: it cannot be read or is too large; the sentence does not hold the file's name.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            with tempfile.TemporaryDirectory(prefix="voxelfm-upload-") as folder:
                unpack(path, Path(folder))
                return _read(Path(folder), "the archive")
        return _read(path, "the file")
    finally:
        path.unlink(missing_ok=True)
        shutil.rmtree(path.parent, ignore_errors=True) if _is_upload_folder(path.parent) else None


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip of scans into an empty folder, flat, within the limits; names in the archive are not used.

    Raises:
        ScanError: too many or too large files, encrypted ones, or a broken archive.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check_entries(entries)
            unpacked = 0
            for number, entry in enumerate(entries):
                # Flat and numbered: paths in an archive can lead anywhere. The ending tells NIfTI from NRRD.
                target = folder / f"{number:05d}{_ending(entry.filename)}"
                with opened.open(entry) as source, open(target, "wb") as file:
                    while block := source.read(1 << 20):
                        unpacked += len(block)
                        if unpacked > MAX_UNPACKED_BYTES:
                            raise ScanError(_TOO_LARGE)
                        file.write(block)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise ScanError(f"the archive cannot be unpacked ({type(error).__name__}): zip the scan again") from None


_TOO_LARGE = f"the archive unpacks to more than {MAX_UNPACKED_BYTES / 1e9:g} GB: upload one series"


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if not entries:
        raise ScanError("the archive is empty: zip the files of one series")
    if len(entries) > MAX_FILES:
        raise ScanError(f"the archive holds {len(entries)} files, more than {MAX_FILES}: upload one series")
    if any(entry.flag_bits & 1 for entry in entries):
        raise ScanError("the archive is encrypted: upload it without a password")
    claimed, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if claimed > MAX_UNPACKED_BYTES:
        raise ScanError(_TOO_LARGE)
    if claimed > MAX_RATIO * max(packed, 1) and claimed > 10_000_000:
        raise ScanError(f"the archive unpacks to {claimed / max(packed, 1):.0f} times its size, which no scan does")
    if any(stat.S_ISLNK(entry.external_attr >> 16) for entry in entries):
        raise ScanError("the archive holds links: zip the files themselves")
    if any(PurePosixPath(entry.filename).suffix.lower() in (".zip", ".tar", ".7z", ".rar") for entry in entries):
        raise ScanError("the archive holds further archives: zip the scan's own files")


def _ending(name: str) -> str:
    lowered = name.lower()
    known = (".nii.gz", ".nii", ".nrrd", ".mha", ".dcm")
    return next((ending for ending in known if lowered.endswith(ending)), "")


def _read(path: Path, called: str) -> Volume:
    """The volume; messages call the file "the file", as its name may name a patient."""
    if path.is_dir():
        files = list(path.iterdir())
        path = files[0] if len(files) == 1 else path
    try:
        volume = read_volume(path)
    except ScanError as error:
        message = str(error)
        for known in (str(path), path.name):
            message = message.replace(known, called)
        raise ScanError(message) from None
    if volume.hu.size > MAX_VOXELS:
        raise ScanError(f"{called} has {volume.hu.size / 1e6:.0f} million voxels, more than this page takes: crop it")
    return volume


def _is_upload_folder(folder: Path) -> bool:
    """Whether a folder was made for one upload: inside the system's temporary folder, and now empty."""
    temporary = Path(tempfile.gettempdir()).resolve()
    return folder.resolve() != temporary and temporary in folder.resolve().parents and not any(folder.iterdir())
