"""Prepared or raw scans as an endless, shuffled, resumable stream of samples for pre-training.

Reading goes through Hugging Face `datasets` streaming (`stream_sources.py`). Sharing out, order and position are kept
here as plain counters, because three things are needed that `split_dataset_by_node` and `interleave_datasets` do not
give together: shares without overlap for any number of ranks and workers, a resume that goes on at the very next
sample, and a reader that survives a broken shard. A pass is one reading of a source; sources of a mix advance
independently, each with its own passes, so a small source that is drawn often does not repeat a pass's order.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch.utils.data

from voxelfm_hf.data.skips import SkipLog
from voxelfm_hf.data.stream_sources import OpenSource, StreamSource, open_source
from voxelfm_hf.volumes import RecipeError, ScanError, StoreError

logger = logging.getLogger(__name__)

_ORDER, _ROWS, _MIX = 1, 2, 3
_EMPTY_PASSES_AT_START, _EMPTY_PASSES_LATER = 10, 100


class SampleStream(torch.utils.data.IterableDataset):
    """Samples of one or several data sets, shared out among ranks and loader workers.

    Every sample is a dict: "id" (str), "hu" (np.int16 (D, H, W), LPS+), "spacing" ((z, y, x) mm), "source" (str) and
    "epoch" (int, the pass over its source; with the id it seeds whatever is drawn for the sample).

    In each pass every unit (row group, row or shard) goes to exactly one reader; a new permutation shares them out in
    the next pass, so unequal shares even out. Where there are fewer units than readers, several readers share a unit
    row by row. The order is fixed by (seed, pass) and the number of readers. Nothing is buffered, so `state_dict`
    is exact.

    What cannot be used (a broken shard or row group, a truncated row, a scan the readers refuse, a side under
    `min_side`) is skipped, named once in the log, and listed by `summary()`.

    Args:
        sources: a data set, or several: anything `StreamSource.data` takes, `StreamSource` objects, or mappings of
            their fields.
        rank, world_size: this process among those that train.
        seed: fixes order and mix.
        min_side: scans with a side of fewer voxels are skipped; the default is half the published global crop.
        passes: stop after so many passes over each source; None streams without end.
        skip_log: file that lists what was skipped (JSON lines); by default a temporary one.

    Raises:
        StoreError: a source does not exist or cannot be opened; while iterating: this rank finds nothing to read.
        RecipeError: impossible weights, ranks or columns.
    """

    def __init__(
        self,
        sources: Any,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        min_side: int = 56,
        passes: int | None = None,
        skip_log: str | os.PathLike | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= rank < world_size:
            raise RecipeError(f"rank must lie in 0..world_size - 1, got {rank} of {world_size}.")
        if passes is not None and passes < 1:
            raise RecipeError(f"passes must be at least 1 or None (endless), got {passes}.")
        listed = _listed(sources)
        if not listed:
            raise RecipeError("no data source is given; name at least one folder, file, URL or data set.")
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.min_side, self.passes = min_side, passes
        self.skips = SkipLog(skip_log)
        self.sources = [open_source(source, self.skips) for source in listed]
        self.weights = _weights(listed, self.sources)
        self._epoch = 0
        self._loaded: list[dict[str, Any]] | None = None
        self._first_worker = 0
        self._live: dict[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at this pass; a loaded position is forgotten."""
        self._epoch = int(epoch)
        self._loaded = self._live = None
        self._first_worker = 0

    def state_dict(self) -> dict[str, Any]:
        """The position of this process's reader: after the last sample it gave. Plain numbers and strings (JSON)."""
        if self._live is not None:
            return _copied(self._live)
        if self._loaded is not None and len(self._loaded) == 1:
            return _copied(self._loaded[0])
        return self.start_state(0, 1)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the sample at which the state was taken, with the same data, seed, ranks and workers.

        Args:
            state: from `state_dict()`, or {"workers": [state of worker 0, 1, ...], "first_worker": the worker whose
                batch comes next} from `StreamLoader`.

        Raises:
            StoreError: the state belongs to other data or another number of ranks or workers.
        """
        states = list(state["workers"]) if "workers" in state else [state]
        for one in states:
            self._check_state(one)
        self._loaded = [_copied(one) for one in states]
        self._first_worker = int(state.get("first_worker", 0))
        self._live = None

    def summary(self) -> str:
        """What was skipped so far by all readers that share the skip log, in one paragraph."""
        return self.skips.summary()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = torch.utils.data.get_worker_info()
        workers = info.num_workers if info else 1
        # After a resume the loader asks its worker 0 first, which therefore plays the worker whose turn it is.
        worker = ((info.id if info else 0) + self._first_worker) % workers
        state = self._take_loaded(worker, workers) or self.start_state(worker, workers)
        self._live = state
        readers = [
            _Reader(
                source,
                self,
                state["sources"][index],
                index=index,
                reader=self.rank + self.world_size * worker,
                readers=self.world_size * workers,
            )
            for index, source in enumerate(self.sources)
        ]
        alive = [not reader.done for reader in readers]
        resumed = state["step"] > 0
        while any(alive):
            index = self._draw(state["step"], worker, alive)
            sample = readers[index].next()
            if sample is None:
                alive[index] = False
                continue
            state["step"] += 1
            yield sample
        self._finish(state, worker, resumed, readers)

    def _draw(self, step: int, worker: int, alive: list[bool]) -> int:
        """Which source gives the sample of this step; a counter-based draw, so that no generator has to be saved."""
        if sum(alive) == 1:
            return alive.index(True)
        weights = np.where(alive, self.weights, 0.0)
        if not weights.sum():
            return alive.index(True)
        draw = np.random.default_rng([self.seed, _MIX, self.rank, worker, step]).random()
        return int(np.searchsorted(np.cumsum(weights) / weights.sum(), draw, side="right"))

    def _finish(self, state: dict[str, Any], worker: int, resumed: bool, readers: list["_Reader"]) -> None:
        vanished = any(reader.vanished for reader in readers)
        if vanished or (state["step"] == 0 and worker == 0 and not resumed):
            names = ", ".join(source.name for source in self.sources)
            raise StoreError(
                f"rank {self.rank} of {self.world_size} finds no usable scan in {names}: use fewer ranks or more data. "
                f"{self.summary()}"
            )
        if self.passes is None:
            logger.info("loader worker %d of rank %d has nothing to read and rests", worker, self.rank)

    def start_state(self, worker: int, workers: int) -> dict[str, Any]:
        """The position of a reader that has read nothing yet."""
        position = {"pass": self._epoch, "first": self._epoch, "unit": 0, "row": 0, "given": 0, "empty": 0}
        return {
            "seed": self.seed,
            "rank": self.rank,
            "world_size": self.world_size,
            "worker": worker,
            "num_workers": workers,
            "units": [source.units for source in self.sources],
            "step": 0,
            "sources": [dict(position) for _ in self.sources],
        }

    def _check_state(self, state: Mapping[str, Any]) -> None:
        expected = {
            "seed": self.seed,
            "rank": self.rank,
            "world_size": self.world_size,
            "units": [source.units for source in self.sources],
        }
        for key, value in expected.items():
            if state.get(key) != value:
                raise StoreError(
                    f"the saved data position belongs to {key} {state.get(key)}, but this run has {value}; resume with "
                    "the same data, seed and number of processes, or start the data from the beginning."
                )

    def _take_loaded(self, worker: int, workers: int) -> dict[str, Any] | None:
        if self._loaded is None:
            return None
        loaded, self._loaded = self._loaded, None
        if len(loaded) == 1 and loaded[0]["worker"] == worker:
            state = loaded[0]
        elif len(loaded) == workers:
            state = loaded[worker]
        else:
            state = {"num_workers": loaded[0]["num_workers"]}
        if state["num_workers"] != workers:
            raise StoreError(
                f"the saved data position was taken with {max(1, state['num_workers'])} loader readers, but this run "
                f"has {workers}; resume with the same number of workers."
            )
        return state


class _Reader:
    """One reader's way through one source; its position lives in the stream's state."""

    def __init__(
        self,
        source: OpenSource,
        stream: SampleStream,
        position: dict[str, int],
        *,
        index: int,
        reader: int,
        readers: int,
    ) -> None:
        self.source, self.stream, self.position = source, stream, position
        self.index, self.reader, self.readers = index, reader, readers
        self.stripes = -(-readers // source.units) if source.units < readers else 1
        self.done = self._over()
        self.vanished = False  # it had a share, but for many passes nothing in it could be used
        self._share: np.ndarray | None = None
        self._rows: Iterator[tuple[int, Mapping[str, Any]]] | None = None

    def next(self) -> dict[str, Any] | None:
        """The next usable sample, or None when this source is over for this reader."""
        while not self.done:
            if self._rows is None:
                self._open_unit()
                continue
            sample = self._next_in_unit()
            if sample is not None:
                self.position["given"] += 1
                return sample
        return None

    def _open_unit(self) -> None:
        share = self._current_share()
        if self.position["unit"] >= len(share):
            self._end_pass()
            return
        unit, stripe = divmod(int(share[self.position["unit"]]), self.stripes)
        self._unit = unit
        mine = self._own_rows(unit)
        if mine is not None and not len(mine):
            self._next_unit()
            return
        try:
            rows = self.source.read(unit)
        except Exception as error:  # readers of foreign formats raise anything; every unit that fails is named
            self._skip_unit(error)
            return
        if mine is None:
            self._rows = self._striped(iter(rows), stripe)
            return
        generator = np.random.default_rng([self.stream.seed, _ROWS, self.index, self.position["pass"], unit])
        mine = generator.permutation(mine[mine < len(rows)])[self.position["row"] :]  # type: ignore[arg-type]
        self._rows = iter([(int(i), rows[i]) for i in mine])  # type: ignore[index]

    def _own_rows(self, unit: int) -> np.ndarray | None:
        """This reader's rows of a unit, or None where rows can only be counted while they pass."""
        if self.source.first_rows is None:
            return None
        first, end = self.source.first_rows[unit : unit + 2]
        rows = np.arange(end - first)
        return rows if self.stripes == 1 else rows[(rows + first) % self.readers == self.reader]

    def _striped(self, rows: Iterator[Mapping[str, Any]], stripe: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
        start = self.position["row"]  # counted in rows of this stripe
        seen = 0
        for index, row in enumerate(rows):
            if index % self.stripes == stripe:
                seen += 1
                if seen > start:
                    yield index, row

    def _next_in_unit(self) -> dict[str, Any] | None:
        assert self._rows is not None
        try:
            item = next(self._rows, None)
        except Exception as error:  # as above
            self._skip_unit(error)
            return None
        if item is None:
            self._next_unit()
            return None
        index, row = item
        self.position["row"] += 1
        fallback = f"{self.source.label(self._unit)} row {index}"
        try:
            sample = self.source.sample(row, fallback, min_side=self.stream.min_side)
        except ScanError as error:
            name = _named(row, fallback)
            self.stream.skips.record(self.source.name, name, str(error).removeprefix(f"{name}: "))
            return None
        return {**sample, "source": self.source.name, "epoch": self.position["pass"]}

    def _skip_unit(self, error: Exception) -> None:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        self.stream.skips.record(self.source.name, self.source.label(self._unit), f"bad shard: {reason}")
        self._next_unit()

    def _next_unit(self) -> None:
        self._rows = None
        self.position["unit"] += 1
        self.position["row"] = 0

    def _end_pass(self) -> None:
        position = self.position
        position["empty"] = 0 if position["given"] else position["empty"] + 1
        limit = 1 if self.stripes > 1 else _EMPTY_PASSES_LATER if position.get("ever") else _EMPTY_PASSES_AT_START
        if position["given"]:
            position["ever"] = 1
        position.update({"pass": position["pass"] + 1, "unit": 0, "row": 0, "given": 0})
        self._share = None
        self.done = self._over()
        if not self.done and position["empty"] >= limit:
            self.done = True
            self.vanished = self.stripes == 1
            logger.warning(
                "reader %d of %d finds nothing usable in %s and leaves it", self.reader, self.readers, self.source.name
            )

    def _over(self) -> bool:
        passes = self.stream.passes
        return passes is not None and self.position["pass"] - self.position["first"] >= passes

    def _current_share(self) -> np.ndarray:
        """Which units this reader reads in this pass, in order; times the stripes, plus the stripe."""
        if self._share is None:
            if self.stripes > 1 and self.source.first_rows is None:
                # Fixed over the passes, so that a reader without rows is known after the first one; first stripes
                # go to first workers, so that a rank whose worker 0 has nothing has nothing at all.
                pieces = np.arange(self.reader, self.source.units * self.stripes, self.readers)
                self._share = pieces % self.source.units * self.stripes + pieces // self.source.units
            else:
                generator = np.random.default_rng([self.stream.seed, _ORDER, self.index, self.position["pass"]])
                order = generator.permutation(self.source.units)
                # With stripes every reader visits all units, for the rows whose number is its own.
                order = order[self.reader :: self.readers] if self.stripes == 1 else order
                self._share = order * self.stripes
        return self._share


def _listed(sources: Any) -> list[StreamSource]:
    if isinstance(sources, (list, tuple)):
        if sources and all(isinstance(s, (str, os.PathLike)) and str(s).endswith(".parquet") for s in sources):
            return [StreamSource(list(sources))]
        return [StreamSource.of(source) for source in sources]
    return [StreamSource.of(sources)]


def _weights(listed: list[StreamSource], opened: list[OpenSource]) -> np.ndarray:
    given = [source.weight for source in listed]
    if all(weight is None for weight in given):
        counts = [source.count for source in opened]
        if any(count is None for count in counts):
            return np.ones(len(opened))
        return np.array(counts, float)
    if any(weight is None for weight in given):
        raise RecipeError("either every data source has a weight, or none.")
    weights = np.array(given, float)
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum():
        raise RecipeError(f"weights must be non-negative and not all zero, got {given}.")
    return weights


def _named(row: Mapping[str, Any], fallback: str) -> str:
    name = row.get("id")
    return str(name) if name else fallback


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {**state, "units": list(state["units"]), "sources": [dict(s) for s in state["sources"]]}
