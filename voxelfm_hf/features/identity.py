"""Whether what is stored under an id was made of the very scan and place that are asked for now."""

import glob
import hashlib
from pathlib import Path

from voxelfm_hf.scan_list import Task
from voxelfm_hf.volumes.formats import HEADERS

SAMPLE_BYTES = 65536


def input_hashes(
    task: Task, *, assume_hu: bool = False, spacing: tuple[float, float, float] | None = None
) -> dict[str, str | None]:
    """What tells one input from another under the same id, at the cost of a few reads a scan.

    Args:
        task: The scan, of whose files sizes and samples count, not their names; and its regions.
        assume_hu, spacing: How it is read.

    Returns:
        32 hex digits for each id of the task; None where the files cannot be read.
    """
    try:
        seen = _seen(task.scan.path)
    except OSError:
        return dict.fromkeys(task.identifiers)
    hashes: dict[str, str | None] = {}
    for identifier, region in zip(task.identifiers, task.regions or (None,), strict=True):
        place = None if region is None else [*map(float, region.centre_lps), float(region.edge_mm)]
        read_as = repr((place, bool(assume_hu), spacing and [*map(float, spacing)])).encode()
        hashes[identifier] = hashlib.sha256(read_as + seen).hexdigest()[:32]
    return hashes


def is_other(stored: str | None, asked: str | None) -> bool:
    """Whether two hashes are of different inputs; what is not known counts as the same."""
    return None not in (stored, asked) and stored != asked


def other_input(identifier: str, where: Path, *, is_region: bool) -> str:
    """The sentence for an id that stands for something else in a folder of results."""
    ids = "use --regions with ids" if is_region else "give ids"
    column = "column id" if is_region else "column id of a CSV list"
    return (
        f"{identifier}: {where} holds what was made of another scan, place or way of reading under this id: name a new "
        f"--out, or {ids} of your own ({column})"
    )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    ending = next((ending for ending in HEADERS if path.name.lower().endswith(ending)), None)
    if ending is None:
        return [path]
    # The voxels lie beside it.
    return sorted(path.parent.glob(f"{glob.escape(path.name[: -len(ending)])}.*"))


def _seen(path: Path) -> bytes:
    """Sizes of a scan's files, and samples: of every file of a pair; of a series, whose slices share most of their
    header, of three."""
    files = _files(path)
    sizes = repr([file.stat().st_size for file in files]).encode()
    sampled = files if len(files) <= 3 else (files[0], files[len(files) // 2], files[-1])
    return sizes + b"".join(map(_sample, sampled))


def _sample(path: Path) -> bytes:
    """Beginning, middle and end."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        parts = []
        for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
            file.seek(start)
            parts.append(file.read(SAMPLE_BYTES))
    return b"".join(parts)
