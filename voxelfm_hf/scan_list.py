"""What to embed: files, folders and CSV lists become scans with ids, and regions of scans."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxelfm_hf.csv_rows import csv_rows
from voxelfm_hf.volumes import find_scans
from voxelfm_hf.volumes.errors import LabelError, ScanError
from voxelfm_hf.volumes.formats import READABLE

REGION_FIELDS = ("scan", "x", "y", "z", "edge_mm")


@dataclass(frozen=True)
class Scan:
    """One scan to read.

    Attributes:
        identifier: Its id in the store.
        path: File or DICOM folder.
        named: The id comes from a list and stands for the path, which may hold a name and is written nowhere.
    """

    identifier: str
    path: Path
    named: bool = False


@dataclass(frozen=True)
class Region:
    """A cube of a scan: centre (x, y, z) in LPS mm and edge length in mm."""

    identifier: str
    centre_lps: tuple[float, float, float]
    edge_mm: float


@dataclass(frozen=True)
class Task:
    """A scan to look at, whole or by regions."""

    scan: Scan
    regions: tuple[Region, ...] = ()

    @property
    def identifiers(self) -> list[str]:
        return [region.identifier for region in self.regions] or [self.scan.identifier]


def list_scans(inputs: Sequence[str | Path]) -> list[Scan]:
    """Every scan of the inputs once, in a fixed order.

    Args:
        inputs: Scan files, folders (searched for scans) and CSV lists with a column `path` (relative to the list) and
            an optional column `id`.

    Returns:
        Scans; the id of a path is the path relative to the inputs' common root, extension included.

    Raises:
        ScanError: a folder without scans.
        LabelError: a list that cannot be read or lacks a path (see `csv_rows`), ids given twice.
    """
    listed: list[Scan] = []
    found: dict[Path, None] = {}
    roots = []
    for entry in map(Path, inputs):
        if entry.suffix.lower() == ".csv":
            listed.extend(_read_list(entry))
            continue
        paths = list(find_scans(entry)) if entry.is_dir() else [entry]
        if not paths:
            raise ScanError(f"{entry} holds no scans: {READABLE} are looked for")
        # A folder that is itself one DICOM scan is named by its own name.
        roots.append(entry if entry.is_dir() and paths != [entry] else entry.parent)
        found.update(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
    root = os.path.commonpath([os.path.abspath(path) for path in roots]) if roots else ""
    scans = listed + [Scan(Path(os.path.relpath(path, root)).as_posix(), path) for path in found]
    _refuse_repeats([scan.identifier for scan in scans], "the inputs")
    return scans


def read_regions(path: str | Path, scans: Sequence[Scan]) -> dict[Scan, list[Region]]:
    """The regions of a CSV by scan.

    Args:
        path: CSV with the columns scan, x, y, z (centre in LPS mm), edge_mm and optionally id.
        scans: What `scan` may name, by id; where empty, `scan` is a path relative to the CSV.

    Raises:
        LabelError: missing columns or cells, numbers that are none, scans that are not among the inputs.
    """
    path = Path(path)
    known = {scan.identifier: scan for scan in scans}
    regions: dict[Scan, list[Region]] = {}
    for line, row in csv_rows(path, REGION_FIELDS):
        name = row["scan"]
        if scans and name not in known:
            raise LabelError(f"{path} line {line}: scan {name} is not among the inputs; it has to be one of their ids")
        scan = known.setdefault(name, Scan(Path(name).as_posix(), path.parent / name))
        try:
            x, y, z, edge = (float(row[field]) for field in REGION_FIELDS[1:])
        except ValueError:
            raise LabelError(
                f"{path} line {line}: x, y, z and edge_mm must be numbers in millimetres, such as 12.5"
            ) from None
        if not all(map(math.isfinite, (x, y, z, edge))) or edge <= 0:
            raise LabelError(f"{path} line {line}: x, y, z must be finite and edge_mm positive")
        of_scan = regions.setdefault(scan, [])
        of_scan.append(Region(row.get("id") or f"{name}#{len(of_scan)}", (x, y, z), edge))
    _refuse_repeats([region.identifier for of_scan in regions.values() for region in of_scan], str(path))
    return regions


def list_tasks(inputs: Sequence[str | Path], *, regions: str | Path | None = None) -> list[Task]:
    """The scans of the inputs, or with a CSV of regions those that it names, with their regions.

    Args:
        inputs: As in `list_scans`.
        regions: As in `read_regions`.

    Raises:
        ScanError, LabelError: as in these two.
    """
    scans = list_scans(inputs)
    if regions is None:
        return [Task(scan) for scan in scans]
    return [Task(scan, tuple(cubes)) for scan, cubes in read_regions(regions, scans).items()]


def _read_list(path: Path) -> list[Scan]:
    scans = []
    for _, row in csv_rows(path, ("path",)):
        target = path.parent / row["path"]
        scans.append(Scan(row.get("id") or Path(row["path"]).as_posix(), target, named=bool(row.get("id"))))
    return scans


def _refuse_repeats(identifiers: list[str], where: str) -> None:
    seen: set[str] = set()
    repeated = sorted({name for name in identifiers if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
    if repeated:
        raise LabelError(f"{where}: {len(repeated)} ids occur more than once, for example {repeated[0]}")
    unsafe = [name for name in identifiers if Path(name).is_absolute() or ".." in Path(name).parts]
    if unsafe:
        raise LabelError(
            f"{where}: the id {unsafe[0]} leaves the store's folder; use ids without '..' or a leading '/'"
        )
