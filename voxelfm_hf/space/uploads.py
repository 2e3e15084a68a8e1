"""Uploaded scans: unpacked within limits, read, and deleted whatever happens."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path, PurePosixPath

import numpy as np

import voxelfm_hf
from voxelfm_hf.space.limits import Limits
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import ScanError
from voxelfm_hf.volumes.find import format_ending
from voxelfm_hf.volumes.formats import SINGLE_FILES
from voxelfm_hf.volumes.itk import voxel_file

FOLDER_PREFIX = "voxelfm-upload-"


def read_upload(path: str | Path, *, limits: Limits | None = None) -> Volume:
    """Reads an uploaded scan in a process of its own, which can be stopped, and deletes the upload.

    Args:
        path: A scan file, or a zip of DICOM files, in a folder of its own that may be deleted.
        limits: By default those of the page.

    Raises:
        ScanError: it cannot be read, is too large or takes too long; the sentence does not hold the file's name.
    """
    path, limits = Path(path), limits or Limits()
    root = str(Path(voxelfm_hf.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    try:
        if path.stat().st_size > limits.upload_mb * 1_000_000:
            raise ScanError(f"the file is larger than {limits.upload_mb} MB: crop the scan or compress it")
        with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
            words = ["-m", "voxelfm_hf.space.reading", str(path), folder, json.dumps(asdict(limits))]
            # What readers say on stderr may quote a header.
            done = subprocess.run(
                [sys.executable, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=limits.seconds,
                env=environment,
            )
    except subprocess.TimeoutExpired:
        raise ScanError(
            f"reading the scan took longer than {limits.seconds:g} s: crop it or upload one series"
        ) from None
    except FileNotFoundError:
        raise ScanError("the upload is no longer there: upload it again") from None
    finally:
        path.unlink(missing_ok=True)
        if _is_upload_folder(path.parent):
            shutil.rmtree(path.parent, ignore_errors=True)
    if done.returncode:
        raise ScanError("the scan is broken or takes more memory than this page has: check or crop it")
    return from_bytes(done.stdout)


def to_bytes(volume: Volume) -> bytes:
    """A volume as a line of JSON and its voxels, without the way back to the file's grid; see `from_bytes`."""
    facts = {"shape": volume.hu.shape, "dtype": volume.hu.dtype.str, "affine": volume.affine.tolist()}
    return json.dumps({**facts, "notes": volume.notes}).encode() + b"\n" + volume.hu.tobytes()


def from_bytes(data: bytes) -> Volume:
    """The volume of `to_bytes`.

    Raises:
        ScanError: the line is an error's instead.
    """
    end = data.index(b"\n") if b"\n" in data[:1_000_000] else len(data)
    facts = json.loads(data[:end])
    if "error" in facts:
        raise ScanError(facts["error"])
    hu = np.frombuffer(data, facts["dtype"], offset=end + 1).reshape(facts["shape"]).copy()
    return Volume.from_array(hu, affine=np.array(facts["affine"]), source="scan", notes=facts["notes"])


def open_scan(path: Path, folder: Path, limits: Limits) -> Volume:
    """Reads a scan file or an archive of one.

    Args:
        path: The upload.
        folder: Empty, for what is unpacked.
        limits: As in `read_upload`.

    Raises:
        ScanError: as in `read_upload`.
    """
    if zipfile.is_zipfile(path):
        unpack(path, folder, limits)
        return _read(folder, "the archive", limits)
    return _read(path, "the file", limits)


def unpack(archive: Path, folder: Path, limits: Limits) -> None:
    """Unpacks a zip of scans into an empty folder, flat, within the limits; names in the archive are not used.

    Raises:
        ScanError: too many or too large files, encrypted ones, links, or a broken archive.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check_entries(entries, limits)
            unpacked = 0
            for number, entry in enumerate(entries):
                # Flat and numbered: paths in an archive can lead anywhere. The ending tells NIfTI from NRRD.
                target = folder / f"{number:05d}{format_ending(entry.filename)}"
                with opened.open(entry) as source, open(target, "wb") as file:
                    while block := source.read(1 << 20):
                        unpacked += len(block)
                        if unpacked > limits.unpacked_bytes:
                            raise ScanError(_too_large(limits))
                        file.write(block)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise ScanError(f"the archive cannot be unpacked ({type(error).__name__}): zip the scan again") from None


def _too_large(limits: Limits) -> str:
    return f"the archive unpacks to more than {limits.unpacked_bytes / 1e9:g} GB: upload one series"


def _check_entries(entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    if not entries:
        raise ScanError("the archive is empty: zip the files of one series")
    if len(entries) > limits.files:
        raise ScanError(f"the archive holds {len(entries)} files, more than {limits.files}: upload one series")
    if any(entry.flag_bits & 1 for entry in entries):
        raise ScanError("the archive is encrypted: upload it without a password")
    claimed, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if claimed > limits.unpacked_bytes:
        raise ScanError(_too_large(limits))
    if claimed > limits.ratio * max(packed, 1) and claimed > 10_000_000:
        raise ScanError(f"the archive unpacks to {claimed / max(packed, 1):.0f} times its size, which no scan does")
    if any(stat.S_ISLNK(entry.external_attr >> 16) for entry in entries):
        raise ScanError("the archive holds links: zip the files themselves")
    if any(PurePosixPath(entry.filename).suffix.lower() in (".zip", ".tar", ".7z", ".rar") for entry in entries):
        raise ScanError("the archive holds further archives: zip the scan's own files")


def _read(path: Path, called: str, limits: Limits) -> Volume:
    """The volume; messages call the file "the file", as its name may name a patient."""
    if path.is_dir():
        files = list(path.iterdir())
        path = files[0] if len(files) == 1 else path
    try:
        _check_alone(path, called)
        volume = read_volume(path)
    except ScanError as error:
        message = str(error)
        for known in (str(path), path.name):
            message = message.replace(known, called)
        raise ScanError(message) from None
    if volume.hu.size > limits.voxels:
        raise ScanError(f"{called} has {volume.hu.size / 1e6:.0f} million voxels, more than this page takes: crop it")
    return volume


def _check_alone(path: Path, called: str) -> None:
    """Refuses headers whose voxels lie in another file: they could name any file of this machine."""
    if path.is_dir():
        return
    with open(path, "rb") as file:
        is_nrrd = file.read(7) == b"NRRD000"
    if (is_nrrd or path.suffix.lower() in (".mha", ".mhd")) and voxel_file(path) != path:
        raise ScanError(
            f"{called} is a header without its voxels: save the scan as one file ({', '.join(SINGLE_FILES)})"
        )


def _is_upload_folder(folder: Path) -> bool:
    """Whether a folder was made for one upload: inside the system's temporary folder, and now empty."""
    temporary = Path(tempfile.gettempdir()).resolve()
    return (
        folder.resolve() != temporary
        and temporary in folder.resolve().parents
        and folder.is_dir()
        and not any(folder.iterdir())
    )
