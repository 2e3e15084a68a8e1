"""One shard's worth of scans, read, prepared and written by one process; and several such processes side by side."""

import itertools
import logging
import multiprocessing
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxelfm_hf.data.fingerprint import content_hash
from voxelfm_hf.data.isotropic import prepare_volume
from voxelfm_hf.data.measure import measure_volume
from voxelfm_hf.data.prepare.dicom_facts import Pseudonyms, dicom_patient, scanner_facts
from voxelfm_hf.data.rows import row_id, row_volume
from voxelfm_hf.data.shards import volume_row, write_shards
from voxelfm_hf.data.stream.sources import OpenSource
from voxelfm_hf.read_ahead import WorkerCrash, read_ahead
from voxelfm_hf.volumes import ScanError, StoreError

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_DIED = "the process that read it died (not enough memory, or a crash in a decoder); check the scan"


@dataclass(frozen=True)
class JobSettings:
    """How scans are prepared and where they go; the same for all jobs of a run."""

    data_folder: str
    work_folder: str
    salt_file: str
    compression: str
    shard_bytes: int
    crop_background: bool
    hu_range: tuple[float, float]
    min_spacing_mm: float
    assume_hu: bool
    anonymous_ids: bool


@dataclass(frozen=True)
class Job:
    """Units (source, unit) that make about one shard."""

    name: str
    units: list[tuple[int, int]]


@dataclass
class JobResult:
    """What became of a job's scans."""

    written: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # anonymous id -> original

    def add(self, other: "JobResult") -> None:
        """Take over another job's results."""
        self.written += other.written
        self.failed |= other.failed
        self.names |= other.names


def stored_id(item: str, settings: JobSettings) -> str:
    """The id that goes into the data set."""
    return f"scan-{Pseudonyms(settings.salt_file).code(item)}" if settings.anonymous_ids else item


def run_job(
    job: Job,
    sources: list[OpenSource],
    settings: JobSettings,
    done: set[str],
    count: Callable[[], None],
) -> JobResult:
    """Read, prepare and write the scans of a job; scans that fail are named and left out.

    Args:
        job: what to do.
        sources: the opened sources that the job's units belong to.
        settings: how.
        done: ids that are in the data set already, or must not be read.
        count: called once a unit.
    """
    result = JobResult()
    marker = Path(settings.work_folder) / job.name
    marker.parent.mkdir(parents=True, exist_ok=True)
    rows = _prepared_rows(job, sources, settings, done, count, result, marker)
    folder = Path(settings.data_folder)
    paths = (folder / f"train-new-{job.name}-{part:03d}.parquet" for part in itertools.count())
    result.written = write_shards(paths, rows, compression=settings.compression, max_bytes=settings.shard_bytes)
    marker.unlink(missing_ok=True)
    return result


def _prepared_rows(
    job: Job,
    sources: list[OpenSource],
    settings: JobSettings,
    done: set[str],
    count: Callable[[], None],
    result: JobResult,
    marker: Path,
) -> Iterator[dict[str, Any]]:
    for index, unit in job.units:
        source = sources[index]
        label = source.unit_id(unit) or source.label(unit)
        if stored_id(label, settings) in done:
            count()
            continue
        marker.write_text(stored_id(label, settings), encoding="utf-8")
        for position, row in enumerate(_readable_rows(source, unit, stored_id(label, settings), result)):
            original = row_id(row, source.columns, f"{label} row {position}")
            item = stored_id(original, settings)
            if item in done:
                continue
            if settings.anonymous_ids:
                result.names[item] = original
            marker.write_text(item, encoding="utf-8")
            try:
                yield _prepared_row(row, source, settings, item=item, original=original)
            except ScanError as error:
                result.failed[item] = _plain_reason(str(error), row, source, original=original, item=item)
                logger.warning("%s failed: %s", item, result.failed[item])
        count()


def _readable_rows(source: OpenSource, unit: int, label: str, result: JobResult) -> Iterator[Mapping[str, Any]]:
    """The rows of a unit, as far as its reader gets; where it gives up is named as failed."""
    try:
        rows = iter(source.read(unit))
    except Exception as error:  # readers of foreign formats raise anything
        _give_up(label, error, result)
        return
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # as above
            _give_up(label, error, result)
            return
        if row is None:
            return
        yield row


def _give_up(label: str, error: Exception, result: JobResult) -> None:
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    result.failed[label] = f"it cannot be read ({reason})"
    logger.warning("%s failed: %s", label, result.failed[label])


def _prepared_row(
    row: Mapping[str, Any], source: OpenSource, settings: JobSettings, *, item: str, original: str
) -> dict[str, Any]:
    columns = source.columns
    volume = row_volume(row, columns, name=original, assume_hu=settings.assume_hu or source.assume_hu)
    try:
        prepared = prepare_volume(
            volume,
            crop_background=settings.crop_background,
            hu_range=settings.hu_range,
            min_spacing_mm=settings.min_spacing_mm,
        )
    except (MemoryError, RuntimeError):  # torch raises RuntimeError where memory ends
        raise ScanError(
            f"{original}: there is not enough memory to resample it; crop it or use fewer workers."
        ) from None
    path = row.get(columns.volume)
    local = path if isinstance(path, str) and "://" not in path else None
    patient = row.get(columns.patient) if columns.patient else dicom_patient(local) if local else None
    scanner = scanner_facts(local) if local else {"manufacturer": None, "kernel": None}
    return volume_row(
        prepared.hu,
        prepared.spacing,
        id=item,
        patient=None if patient in (None, "") else Pseudonyms(settings.salt_file).code(str(patient)),
        source=source.name,
        original_shape=list(volume.hu.shape),
        original_spacing=list(volume.spacing),
        original_orientation=volume.grid.orientation,
        box=[edge for side in prepared.box for edge in side],
        notes=list(prepared.notes),
        content_hash=content_hash(volume.hu, volume.spacing),
        facts=measure_volume(volume.hu, volume.spacing) | scanner,
    )


def _plain_reason(reason: str, row: Mapping[str, Any], source: OpenSource, *, original: str, item: str) -> str:
    """The reason without the user's folders (the file may be published with the data set)."""
    value = row.get(source.columns.volume)
    for text in (value if isinstance(value, str) else "", original):
        if text:
            reason = reason.replace(text, item)
    return reason.removeprefix(f"{item}: ")


# What a worker process keeps between jobs; set once by `_start_worker`.
_worker: dict[str, Any] = {}


def _start_worker(sources: list[OpenSource], settings: JobSettings, done: set[str], counter: Any) -> None:
    import torch

    torch.set_num_threads(1)  # one process a core
    _worker.update(sources=sources, settings=settings, done=done, counter=counter)


def _work(job: Job) -> JobResult:
    def count() -> None:
        with _worker["counter"].get_lock():
            _worker["counter"].value += 1

    return run_job(job, _worker["sources"], _worker["settings"], _worker["done"], count)


def run_jobs(
    jobs: list[Job],
    sources: list[OpenSource],
    settings: JobSettings,
    done: set[str],
    *,
    workers: int,
    total: int,
    progress: Callable[[int, int], None] | None = None,
) -> JobResult:
    """Run jobs in this process (one worker) or in several.

    Where a worker is killed (out of memory, a crash in a decoder), the scan that it was reading is named as failed and
    left out, and its job runs again.
    """
    reported = 0

    def report(now: int) -> None:
        nonlocal reported
        reported = max(reported, min(now, total))
        if progress is not None:
            progress(reported, total)

    try:
        if workers > 1:
            return _run_in_processes(jobs, sources, settings, done, workers, report)
        result = JobResult()
        for job in jobs:
            result.add(run_job(job, sources, settings, done, lambda: report(reported + 1)))
        return result
    except OSError as error:
        raise StoreError(
            f"{settings.data_folder}: it cannot be written ({error.strerror or 'input/output error'}); what is written "
            "so far stays, run it again to go on."
        ) from None
    finally:
        shutil.rmtree(settings.work_folder, ignore_errors=True)


def _run_in_processes(
    jobs: list[Job],
    sources: list[OpenSource],
    settings: JobSettings,
    done: set[str],
    workers: int,
    report: Callable[[int], None],
) -> JobResult:
    result = JobResult()
    counter = multiprocessing.get_context("spawn").Value("q", 0)
    dead: set[str] = set()
    with _polled(counter, report):
        while jobs:
            setup = (sources, settings, done | dead, counter)
            again = []
            for job, outcome in read_ahead(_work, jobs, workers=workers, setup=_start_worker, setup_args=setup):
                if not isinstance(outcome, WorkerCrash):
                    result.add(outcome)
                    continue
                marker = Path(settings.work_folder) / job.name
                item = marker.read_text(encoding="utf-8") if marker.exists() else None
                if item is None or item in dead:
                    result.failed[f"job {job.name}"] = _DIED
                else:
                    dead.add(item)
                    again.append(job)
            jobs = again
    result.failed |= dict.fromkeys(sorted(dead), _DIED)
    return result


@contextmanager
def _polled(counter: Any, report: Callable[[int], None]) -> Iterator[None]:
    """Reports what the workers have counted, now and then: a job alone may take minutes."""
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.wait(_POLL_SECONDS):
            report(counter.value)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        report(counter.value)
