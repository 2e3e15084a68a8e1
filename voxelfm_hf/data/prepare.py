"""Any scans -> a data set for pre-training: checked, cropped, resampled, shuffled into Parquet shards, described.

    out/data/train-00000-of-00012.parquet ...   the scans (columns: shards.SCHEMA)
    out/README.md, description.json, pictures/  what is in it (characterise.py)
    out/failures.csv, duplicates.csv            what is not in it, and why
    out/prepare.json                            how it was made; a later run with other settings is refused
    out.salt (beside it, never inside)          the secret behind patient codes

Compression: zstd level 3. Measured on four real scans (139 MB prepared, one thread): zstd-3 shrinks to 0.56 and reads
at 436 MB/s, zstd-1 0.64 and 403, zstd-9 0.51 and 415 (but writes four times slower), lz4 0.84 and 630, none 755. Disk
and network are the scarcer resource of a training run, so zstd-3 it is; `compression="lz4"` is there for fast disks.
"""

import csv
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.data import prepare_job
from voxelfm_hf.data.prepare_job import Job, JobResult, JobSettings
from voxelfm_hf.data.rows import ColumnMap
from voxelfm_hf.data.shards import SCHEMA, SHARD_BYTES, read_small, read_volumes, shard_files, volume_row, write_shards
from voxelfm_hf.data.skips import SkipLog
from voxelfm_hf.data.stream_sources import OpenSource, StreamSource, open_source
from voxelfm_hf.files import written_file
from voxelfm_hf.modeling.resampling_voxelfm import HU_RANGE, MIN_SPACING_MM
from voxelfm_hf.volumes import StoreError, find_scans

logger = logging.getLogger(__name__)

_UNKNOWN_BYTES = 50_000_000
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
    with _alone_in(out):
        summary = _prepare(out, settings, _sources(sources, columns, name), seed, workers, progress)
        if describe and summary.scans:
            from voxelfm_hf.data.characterise import describe as characterise

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
    _check_settings(out, settings)
    for leftover in (out / "data").glob(".train-*"):  # of a run that was killed while it wrote
        leftover.unlink()
    skips = SkipLog()
    opened = [open_source(source, skips) for source in sources]
    for source in opened:
        if getattr(source, "prepared", False):
            raise StoreError(f"{source.name}: it is a prepared data set already; train on it as it is.")
    known, duplicates = _known(out)
    done = known | set(duplicates)
    jobs, total = _jobs(opened, settings, done, seed)
    result = JobResult()
    if jobs:
        processes = _worker_count(workers, jobs)
        result = prepare_job.run_jobs(jobs, opened, settings, done, workers=processes, total=total, progress=progress)
    failed = {entry["id"]: entry["reason"] for entry in skips.entries()} | result.failed
    duplicates |= _drop_repeated(out, failed, settings.compression)
    shards = _rename(out / "data")
    if not shards and not failed:
        raise StoreError(f"{out}: no scans were found to prepare.")
    _write_csv(out / "failures.csv", ["id", "reason"], failed.items())
    _write_csv(out / "duplicates.csv", ["id", "duplicate_of"], duplicates.items())
    if settings.anonymous_ids:
        _write_names(out.with_name(out.name + ".ids.csv"), result.names)
    ids = {row["id"] for shard in shards for row in read_small(shard, ["id"])}
    return PrepareSummary(len(ids), len(ids - known), len(shards), failed, duplicates)


def _sources(sources: Any, columns: Any, name: str | None) -> list[StreamSource]:
    """Paths of scans become one source with ids from their common root; everything else stays what it is."""
    listed = list(sources) if isinstance(sources, (list, tuple)) else [sources]
    if not listed:
        raise StoreError("no scans are given; name a folder, a file or a data set.")
    if all(isinstance(s, (str, os.PathLike)) for s in listed) and len(listed) > 1:
        paths = [os.fspath(s) for s in listed]
        if all(not p.endswith(".parquet") and os.path.exists(p) for p in paths):
            found = [str(path) for p in paths for path in find_scans(p)]
            return [StreamSource(list(dict.fromkeys(found)), name=name or "scans")]
    made = []
    for item in listed:
        source = StreamSource.of(item)
        changes = {"columns": columns} if columns is not None and source.columns is None else {}
        changes |= {"name": name} if name is not None and source.name is None else {}
        made.append(StreamSource(**{**vars(source), **changes}))
    return made


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder; the lock goes with the process, however it ends."""
    import fcntl

    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = open(out / ".lock", "w")  # noqa: SIM115 (held open for the whole run)
    except OSError as error:
        raise StoreError(f"{out}: it cannot be written ({error.strerror}); name another folder.") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(
                f"{out}: another run is preparing data there; wait for it or name another folder."
            ) from None
        yield


def _check_inside(out: Path, salt: Path) -> None:
    if salt.resolve().is_relative_to(out.resolve()):
        raise StoreError(f"{salt}: the secret of the patient codes must lie outside the data set folder {out}.")


def _check_settings(out: Path, settings: JobSettings) -> None:
    """Refuse to mix scans that were prepared differently; note the settings of a new folder."""
    if settings.compression not in ("zstd", "lz4", "none"):
        raise StoreError(f'compression must be "zstd", "lz4" or "none", got {settings.compression!r}.')
    file = out / "prepare.json"
    mine: dict[str, Any] = {
        "crop_background": settings.crop_background,
        "hu_range": list(settings.hu_range),
        "min_spacing_mm": settings.min_spacing_mm,
        "anonymous_ids": settings.anonymous_ids,
    }
    if file.exists():
        try:
            theirs = json.loads(file.read_text())["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise StoreError(f"{file}: it is damaged; delete it or prepare into a new folder.") from None
        for key, value in mine.items():
            if theirs.get(key) != value:
                raise StoreError(
                    f"{out}: it was prepared with {key} = {theirs.get(key)}, now it is {value}; use the same settings "
                    "or a new folder."
                )
        return
    if shard_files(out / "data"):
        raise StoreError(f"{out}: it holds Parquet files but no prepare.json; name a new folder.")
    with written_file(file) as temporary:
        facts = {"settings": mine, "voxelfm_hf": _version(), "columns": SCHEMA.names}
        temporary.write_text(json.dumps(facts, indent=2))


def _known(out: Path) -> tuple[set[str], dict[str, str]]:
    """(ids in the shards, duplicates named by earlier runs); broken shards are removed, their scans are done again."""
    known: set[str] = set()
    for shard in shard_files(out / "data"):
        try:
            known |= {row["id"] for row in read_small(shard, ["id"])}
        except StoreError as error:
            logger.warning("%s", error)
            os.replace(shard, shard.with_suffix(".broken"))
    duplicates = {}
    file = out / "duplicates.csv"
    if file.exists():
        with open(file, newline="", encoding="utf-8") as handle:
            duplicates = {row["id"]: row["duplicate_of"] for row in csv.DictReader(handle)}
    return known, {one: other for one, other in duplicates.items() if other in known}


def _jobs(opened: list[OpenSource], settings: JobSettings, done: set[str], seed: int) -> tuple[list[Job], int]:
    """Cut the shuffled units into groups of about one shard; (jobs, number of units or scans to do)."""
    todo = []
    for index, source in enumerate(opened):
        for unit in range(source.units):
            item = source.unit_id(unit)
            if item is None or prepare_job.stored_id(item, settings) not in done:
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
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
        workers = max(1, min(cores, memory // (3 << 30)))
    return max(1, min(int(workers), len(jobs)))


def _drop_repeated(out: Path, failed: dict[str, str], compression: str) -> dict[str, str]:
    """Drop scans whose content (or id) is in the data set already, the later one; id -> id of the one that is kept."""
    first_of: dict[str, str] = {}
    ids: set[str] = set()
    duplicates: dict[str, str] = {}
    shards = sorted(shard_files(out / "data"), key=_age)
    rows = [
        (shard, position, row)
        for shard in shards
        for position, row in enumerate(read_small(shard, ["id", "content_hash"]))
    ]
    older = [entry for entry in rows if "-of-" in entry[0].name]
    # Scans of earlier runs stay; among new ones the first id in alphabetical order does, whatever the shuffle.
    newer = sorted((entry for entry in rows if "-of-" not in entry[0].name), key=lambda entry: entry[2]["id"])
    drop: dict[Path, list[int]] = {}
    for shard, position, row in older + newer:
        item, content = row["id"], row["content_hash"]
        if item in ids:
            failed[item] = "its id occurs more than once; make ids unique"
        elif content in first_of:
            duplicates[item] = first_of[content]
            logger.warning("%s was dropped: it has the same content as %s", item, first_of[content])
        else:
            first_of[content] = item
            ids.add(item)
            continue
        drop.setdefault(shard, []).append(position)
    for shard, positions in drop.items():
        _rewrite(shard, positions, compression)
    return duplicates


def _rewrite(shard: Path, drop: list[int], compression: str) -> None:
    """Write a shard again without the rows of these positions; remove it if none is left."""

    def kept() -> Iterable[dict[str, Any]]:
        for position, row in enumerate(read_volumes(shard)):
            if position not in drop:
                hu, spacing = row.pop("hu"), row.pop("spacing")
                row.pop("shape")
                yield volume_row(hu, spacing, **row)

    if not write_shards([shard], kept(), compression=compression):
        shard.unlink()


def _age(shard: Path) -> tuple[bool, str]:
    return ("-of-" not in shard.name, shard.name)


def _rename(folder: Path) -> list[Path]:
    """Number the shards as the Hub does; a crash in between leaves odd names, which the next run puts right."""
    files = sorted(shard_files(folder), key=_age)
    wanted = [folder / f"train-{index:05d}-of-{len(files):05d}.parquet" for index in range(len(files))]
    free = [path for path in wanted if path not in set(files)]
    for file in files:
        if file not in set(wanted):
            os.replace(file, free.pop(0))
    return wanted


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[tuple[str, str]]) -> None:
    with written_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(sorted(rows))


def _write_names(path: Path, names: dict[str, str]) -> None:
    """The list behind anonymous ids, for its owner only; it grows over runs."""
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            names = {row["id"]: row["original"] for row in csv.DictReader(file)} | names
    _write_csv(path, ["id", "original"], names.items())
    os.chmod(path, 0o600)


def _version() -> str:
    try:
        return metadata.version("voxelfm-hf")
    except metadata.PackageNotFoundError:
        from voxelfm_hf import __version__

        return __version__
