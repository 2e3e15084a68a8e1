"""Prepared or raw scans as an endless, shuffled, resumable stream of samples for pre-training.

Reading goes through Hugging Face `datasets` streaming (`sources.py`). Sharing out, order and position are kept
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
from voxelfm_hf.data.stream.opening import open_source
from voxelfm_hf.data.stream.reader import MIX, SourceReader
from voxelfm_hf.data.stream.sources import OpenSource, StreamSource
from voxelfm_hf.volumes import RecipeError, StoreError

logger = logging.getLogger(__name__)


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
        self._loaded: list[dict[str, Any]] | None = None
        self._first_worker = 0
        self._live: dict[str, Any] | None = None

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
            SourceReader(
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
        draw = np.random.default_rng([self.seed, MIX, self.rank, worker, step]).random()
        return int(np.searchsorted(np.cumsum(weights) / weights.sum(), draw, side="right"))

    def _finish(self, state: dict[str, Any], worker: int, resumed: bool, readers: list[SourceReader]) -> None:
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
        position = {"pass": 0, "unit": 0, "row": 0, "given": 0, "empty": 0}
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


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {**state, "units": list(state["units"]), "sources": [dict(s) for s in state["sources"]]}
