"""Any scans -> a data set for pre-training: checked, cropped, resampled, shuffled into Parquet shards, described.

    out/data/train-00000-of-00012.parquet ...   the scans (columns: data/shards.py)
    out/README.md, description.json, pictures/  what is in it (data/describe)
    out/failures.csv, duplicates.csv            what is not in it, and why
    out/prepare.json                            how it was made; a later run with other settings is refused
    out.salt (beside it, never inside)          the secret behind patient codes

Compression: zstd level 3. Measured on four real scans (139 MB prepared, one thread): zstd-3 shrinks to 0.56 and reads
at 436 MB/s, zstd-1 0.64 and 403, zstd-9 0.51 and 415 (but writes four times slower), lz4 0.84 and 630, none 755. Disk
and network are the scarcer resource of a training run, so zstd-3 it is; `compression="lz4"` is there for fast disks.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.data.prepare.folder import (
    add_names,
    check_settings,
    drop_repeated,
    known_scans,
    number_shards,
    write_table,
)
from voxelfm_hf.data.prepare.job import Job, JobResult, JobSettings, run_jobs, stored_id
from voxelfm_hf.data.rows import ColumnMap
from voxelfm_hf.data.shards import SHARD_BYTES, read_small
from voxelfm_hf.data.skips import SkipLog
from voxelfm_hf.data.stream.opening import open_source
from voxelfm_hf.data.stream.sources import OpenSource, StreamSource
from voxelfm_hf.failures import write_failures
from voxelfm_hf.files import only_writer
from voxelfm_hf.modeling.resampling_voxelfm import HU_RANGE, MIN_SPACING_MM
from voxelfm_hf.read_ahead import readers_that_fit
from voxelfm_hf.volumes import StoreError, find_scans

_UNKNOWN_BYTES = 50_000_000
# Among several paths; .json may be the sidecar of a scan there.
_LISTS = (".csv", ".tsv", ".jsonl")
Progress = Callable[[int, int], None]


@dataclass
class PrepareSummary:
    """What a run of `prepare` did.

    Attributes:
        scans: in the data set now.
        new: of them, added by this run.
        shards: files.
        failed: id -> reason, of this run.
        duplicates: id -> id of the scan with the same content that is kept; of all runs.
        seconds: of this run.
    """

    scans: int = 0
    new: int = 0
    shards: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    duplicates: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def prepare(
    sources: Any,
    out: str | os.PathLike,
    *,
    columns: ColumnMap | Mapping[str, str | None] | None = None,
    name: str | None = None,
    workers: int | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    compression: str = "zstd",
    crop_background: bool = True,
    hu_range: tuple[float, float] = HU_RANGE,
    min_spacing_mm: float = MIN_SPACING_MM,
    assume_hu: bool = False,
    anonymous_ids: bool = False,
    salt_file: str | os.PathLike | None = None,
    license: str | None = None,
    describe: bool = True,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Prepare scans for pre-training; run it again to go on, to retry what failed, or to add new scans.

    Args:
        sources: a folder or file of scans, or several; or any data set that `StreamSource` opens (Hub id, Parquet, CSV
            of paths, `datasets` object), or several `StreamSource` objects.
        out: the folder of the data set.
        columns: which column holds what, for data sets with columns (`ColumnMap`).
        name: of the data set the scans come from, stored with each; by default derived from the source.
        workers: processes; by default one a core as memory allows (about 3 GB each).
        seed: of the global shuffle.
        shard_bytes: about how large a shard becomes.
        compression: "zstd", "lz4" or "none".
        crop_background, hu_range, min_spacing_mm: see `prepare_volume`.
        assume_hu: take values as HU even if they do not look like it.
        anonymous_ids: replace ids by codes, for people whose file names hold names; the list lies beside the data set.
        salt_file: the secret behind codes of patients and ids; by default OUT.salt beside the data set.
        license: for the data set card (an identifier of the Hub, such as "cc-by-4.0").
        describe: characterise the data set at the end and write its card.
        progress: called with (scans done, scans in all) now and then.

    Returns:
        What was done; scans that failed are listed there and in failures.csv, and do not stop the rest.

    Raises:
        StoreError: nothing to read, a folder prepared with other settings, or a disk that cannot be written.
    """
    start = time.monotonic()
    out = Path(out)
    settings = JobSettings(
        data_folder=str(out / "data"),
        work_folder=str(out / ".prepare"),
        salt_file=str(salt_file or out.with_name(out.name + ".salt")),
        compression=compression,
        shard_bytes=shard_bytes,
        crop_background=crop_background,
        hu_range=(float(hu_range[0]), float(hu_range[1])),
        min_spacing_mm=min_spacing_mm,
        assume_hu=assume_hu,
        anonymous_ids=anonymous_ids,
    )
    _check_inside(out, Path(settings.salt_file))
    with only_writer(out):
        summary = _prepare(out, settings, _sources(sources, columns, name), seed, workers, progress)
        if describe and summary.scans:
            from voxelfm_hf.data.describe import describe as characterise

            characterise(out, license=license)
    summary.seconds = time.monotonic() - start
    return summary


def _prepare(
    out: Path,
    settings: JobSettings,
    sources: list[StreamSource],
    seed: int,
    workers: int | None,
    progress: Progress | None,
) -> PrepareSummary:
    """`prepare` without the description, while no other run writes to the folder."""
    check_settings(out, settings)
    for leftover in (out / "data").glob(".train-*"):  # of a run that was killed while it wrote
        leftover.unlink()
    skips = SkipLog()
    opened = [open_source(source, skips) for source in sources]
    for source in opened:
        if source.prepared:
            raise StoreError(f"{source.name}: it is a prepared data set already; train on it as it is.")
    known, duplicates = known_scans(out)
    done = known | set(duplicates)
    jobs, total = _jobs(opened, settings, done, seed)
    result = JobResult()
    if jobs:
        processes = _worker_count(workers, jobs)
        result = run_jobs(jobs, opened, settings, done, workers=processes, total=total, progress=progress)
    failed = {entry["id"]: entry["reason"] for entry in skips.entries()} | result.failed
    duplicates |= drop_repeated(out, failed, settings.compression)
    shards = number_shards(out / "data")
    if not shards and not failed:
        raise StoreError(f"{out}: no scans were found to prepare.")
    write_failures(out, failed)
    write_table(out / "duplicates.csv", ["id", "duplicate_of"], duplicates.items())
    if settings.anonymous_ids:
        add_names(out.with_name(out.name + ".ids.csv"), result.names)
    ids = {row["id"] for shard in shards for row in read_small(shard, ["id"])}
    return PrepareSummary(len(ids), len(ids - known), len(shards), failed, duplicates)


def _sources(sources: Any, columns: Any, name: str | None) -> list[StreamSource]:
    """Paths of scans become one source with ids from their common root; lists and data sets are one each."""
    listed = list(sources) if isinstance(sources, (list, tuple)) else [sources]
    if not listed:
        raise StoreError("no scans are given; name a folder, a file or a data set.")
    if all(isinstance(s, (str, os.PathLike)) for s in listed) and len(listed) > 1:
        paths = [os.fspath(s) for s in listed]
        if all(not p.endswith(".parquet") and os.path.exists(p) for p in paths):
            lists = [p for p in paths if p.lower().endswith(_LISTS)]
            # A scan may be named by a relative and by an absolute path.
            found = {os.path.abspath(scan): str(scan) for p in paths if p not in lists for scan in find_scans(p)}
            # Scans have no columns for `columns` to name.
            scans = [StreamSource(list(found.values()), columns={}, name=name or "scans")]
            listed = [*(scans if found or not lists else []), *lists]
    made = []
    for item in listed:
        source = StreamSource.of(item)
        changes = {"columns": columns} if columns is not None and source.columns is None else {}
        changes |= {"name": name} if name is not None and source.name is None else {}
        made.append(StreamSource(**{**vars(source), **changes}))
    return made


def _check_inside(out: Path, salt: Path) -> None:
    if salt.resolve().is_relative_to(out.resolve()):
        raise StoreError(f"{salt}: the secret of the patient codes must lie outside the data set folder {out}.")


def _jobs(opened: list[OpenSource], settings: JobSettings, done: set[str], seed: int) -> tuple[list[Job], int]:
    """Cut the shuffled units into groups of about one shard; (jobs, number of units or scans to do)."""
    todo = []
    for index, source in enumerate(opened):
        for unit in range(source.units):
            item = source.unit_id(unit)
            if item is None or stored_id(item, settings) not in done:
                todo.append((index, unit))
    if not todo:
        return [], 0
    run = 0  # an interrupted run leaves shards of its own
    while any(Path(settings.data_folder).glob(f"train-new-{run:05d}-*")):
        run += 1
    order = np.random.default_rng(seed).permutation(len(todo))
    jobs: list[Job] = []
    units: list[tuple[int, int]] = []
    size = 0
    for index, unit in (todo[i] for i in order):
        units.append((index, unit))
        size += _bytes_of(opened[index].unit_path(unit))
        if size >= settings.shard_bytes:
            jobs.append(Job(f"{run:05d}-{len(jobs):05d}", units))
            units, size = [], 0
    if units:
        jobs.append(Job(f"{run:05d}-{len(jobs):05d}", units))
    return jobs, len(todo)


def _bytes_of(path: str | None) -> int:
    """About how large a scan will be in a shard, from its size on disk."""
    if path is None or "://" in path:
        return _UNKNOWN_BYTES
    try:
        if os.path.isdir(path):
            size = sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
        else:
            size = os.path.getsize(path)
    except OSError:
        return 0
    return size if path.endswith(".gz") else size // 2


def _worker_count(workers: int | None, jobs: list[Job]) -> int:
    return max(1, min(readers_that_fit() if workers is None else workers, len(jobs)))
