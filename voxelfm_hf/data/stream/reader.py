"""One reader's way through one source of a stream: its share of the units, in the order of each pass."""

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from voxelfm_hf.data.stream.sources import OpenSource
from voxelfm_hf.volumes import ScanError

if TYPE_CHECKING:
    from voxelfm_hf.data.stream.samples import SampleStream

logger = logging.getLogger(__name__)

# Streams of draws that must not coincide for equal other numbers; the stream of samples draws the mix.
_ORDER, _ROWS, MIX = 1, 2, 3
_EMPTY_PASSES_AT_START, _EMPTY_PASSES_LATER = 10, 100


class SourceReader:
    """One reader's way through one source; its position lives in the stream's state."""

    def __init__(
        self,
        source: OpenSource,
        stream: "SampleStream",
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
        return passes is not None and self.position["pass"] >= passes

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


def _named(row: Mapping[str, Any], fallback: str) -> str:
    name = row.get("id")
    return str(name) if name else fallback
