"""Files and folders that are there whole or not at all."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from voxelfm_hf.volumes.errors import StoreError, VoxelFMError


@contextmanager
def written_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and vanishes when it does not.

    Raises:
        VoxelFMError: the place cannot be written (read-only, full, no folder).
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Writers go by the ending, which for .nii.gz are two.
        suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except Exception as error:
        _say_what_the_system_says(error, path)
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def written_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes it when the block ends well; `path` must be new or empty.

    Raises:
        VoxelFMError: the folder is in use or cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        refuse_used(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary
        # Temporary folders, and some libraries' files, are private to the user.
        for written in (temporary, *temporary.rglob("*")):
            os.chmod(written, (0o777 if written.is_dir() else 0o666) & ~_umask())
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    except Exception as error:
        _say_what_the_system_says(error, path)
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def refuse_used(path: Path) -> None:
    """Raises where something lies already, except for an empty folder.

    Raises:
        VoxelFMError: it does.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise VoxelFMError(f"{path} exists already: name a new or empty folder")


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made; the lock goes with the process, however it ends.

    Raises:
        StoreError: another run has it, or it cannot be written.
    """
    import fcntl

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "w")  # noqa: SIM115 (held open for the whole run)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or type(error).__name__}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise StoreError(f"{folder} cannot be locked: {error.strerror}") from None
            raise StoreError(f"another run is writing to {folder}: wait for it, or name another folder") from None
        yield


def _say_what_the_system_says(error: Exception, path: Path) -> None:
    """Raises the sentence for an error of the operating system; other errors are let be."""
    if isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
    else:
        # safetensors puts it into an error of its own: "... I/O error: No space left on device (os error 28)"
        found = re.search(r"I/O error: (.+) \(os error \d+\)", str(error))
        if found is None or type(error).__name__ != "SafetensorError":
            return
        reason = found[1]
    raise VoxelFMError(f"{path} cannot be written: {reason}") from None


def _umask() -> int:
    """The process's umask, which temporary files ignore."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def state_of(files: Iterable[Path]) -> str:
    """A short text that changes with files: of the SHA-256 of their names, sizes and times."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
