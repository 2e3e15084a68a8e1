"""Finding the scans in a folder tree: every scan once, thousands of files quickly, by names and first bytes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from voxelfm_hf.volumes.errors import ScanError
from voxelfm_hf.volumes.formats import DICOM, ENDINGS, HEADERS, VOXELS

logger = logging.getLogger(__name__)

# Never scans; listed so that they need not be opened. Unknown endings (DICOM names often end in digits) are.
_OTHER = frozenset([
    ".img", ".raw", ".zraw", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".rar", ".csv",
    ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".xml", ".html", ".htm", ".txt", ".md", ".rst",
    ".log", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".png", ".jpg", ".jpeg", ".gif",
    ".bmp", ".tif", ".tiff", ".svg", ".mp4", ".avi", ".py", ".ipynb", ".sh", ".bat", ".exe", ".dll", ".so",
    ".parquet", ".arrow", ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npz", ".h5", ".hdf5", ".db",
    ".sqlite", ".lock", ".tmp", ".bval", ".bvec", ".mat", ".vtk", ".stl", ".obj", ".tfm", ".lic", ".md5",
    ".sha256", ".ini", ".cfg", ".js", ".css",
])  # fmt: skip


def format_ending(name: str) -> str:
    """The part of a file's name that tells its format, in small letters; empty where none does."""
    lowered = name.lower()
    return next((ending for ending in (*ENDINGS, *DICOM.endings) if lowered.endswith(ending)), "")


def find_scans(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Walk a folder tree and yield every scan once, in a fixed (sorted) order.

    A folder with DICOM files is one scan; files of other formats are one scan each, an .hdr/.img pair and an
    .mhd/.nhdr with its voxel file too. Names beginning with a dot are skipped. Links to folders are followed,
    but no folder is visited twice. Files are recognised by name, DICOM also by its magic; whether a scan is
    readable shows when it is read.

    Args:
        folder: where to look; a path to a file is yielded as it is.

    Yields:
        Paths that `read_volume` takes.

    Raises:
        ScanError: the folder does not exist or cannot be opened.
    """
    root = Path(folder)
    if root.is_file():
        yield root
        return
    if not root.is_dir():
        raise ScanError(f"{root}: no such folder.")
    try:
        os.scandir(root).close()
    except PermissionError:
        raise ScanError(f"{root}: no permission to open this folder.") from None
    yield from _walk(root, os.path.realpath(root), set(), set())


def _walk(folder: Path, root: str, seen_folders: set[tuple[int, int]], seen_links: set[str]) -> Iterator[Path]:
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            facts = current.stat()
            with os.scandir(current) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            logger.warning("%s was skipped: %s", current, error.strerror)
            continue
        if (facts.st_dev, facts.st_ino) in seen_folders:
            continue
        seen_folders.add((facts.st_dev, facts.st_ino))
        names = {e.name for e in entries}
        folders, files, is_dicom = [], [], False
        for entry in entries:
            try:
                if entry.is_dir():
                    folders.append(current / entry.name)
                    continue
                if not entry.is_file() or (entry.is_symlink() and _is_repeat(entry.path, root, seen_links)):
                    continue
            except OSError:
                continue
            kind = _kind(entry.name, names)
            if kind == "scan":
                files.append(current / entry.name)
            elif kind == "maybe dicom" and not is_dicom:
                try:
                    is_dicom = has_dicom_magic(entry.path)
                except OSError as error:
                    logger.warning("%s was skipped: %s", entry.path, error.strerror)
        if is_dicom:
            yield current
        yield from files
        pending.extend(reversed(folders))


def _kind(name: str, names: set[str]) -> str:
    lower = name.lower()
    if lower.endswith(ENDINGS):
        return "scan"
    header = next((ending for ending in HEADERS if lower.endswith(ending)), None)
    if header is not None:
        stem = name[: -len(header)]
        return "scan" if any(stem + end in names for end in (*VOXELS, *map(str.upper, VOXELS))) else "other"
    if os.path.splitext(lower)[1] in _OTHER or lower == "dicomdir":
        return "other"
    return "maybe dicom"


def _is_repeat(path: str, root: str, seen_links: set[str]) -> bool:
    """A link whose target is found on its own, or was already found through another link."""
    target = os.path.realpath(path)
    if target.startswith(root + os.sep) or target in seen_links:
        return True
    seen_links.add(target)
    return False


def has_dicom_magic(path: str) -> bool:
    """Whether a file is DICOM by its name and first bytes; may raise OSError."""
    with open(path, "rb", buffering=0) as file:
        return begins_as_dicom(path, file.read(132))


def begins_as_dicom(name: str, head: bytes) -> bool:
    """Whether a file of this name begins as DICOM does, or, named so, as DICOM without the usual preamble."""
    return head[128:132] == b"DICM" or (name.lower().endswith(DICOM.endings) and head[:2] in (b"\x08\0", b"\x02\0"))
