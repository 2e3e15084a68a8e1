"""Batches from a `SampleStream` with loader workers, resumable at the very next batch whatever was prefetched."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.data

from voxelfm_hf.data.stream.samples import SampleStream
from voxelfm_hf.volumes import StoreError, VoxelFMError


class StreamLoader:
    """A `torch` DataLoader over a stream whose position is that of the batches handed out, not of those prefetched.

    Every batch carries its reader's position after it, so saving needs no question to a worker. Iterating again goes
    on where the last iteration stopped. Samples at the end of a stream with `passes` that fill no batch
    are dropped.

    Args:
        stream: the samples.
        batch_size: samples a batch.
        num_workers: loader processes; 0 reads in this one.
        collate: makes a batch of a list of samples, where they are read; by default the list itself.
        pin_memory: copy batches to page-locked memory for a GPU.
    """

    def __init__(
        self,
        stream: SampleStream,
        *,
        batch_size: int,
        num_workers: int = 0,
        collate: Callable[[Sequence[Any]], Any] = list,
        pin_memory: bool = False,
    ) -> None:
        self.stream = stream
        self.batch_size, self.num_workers = batch_size, num_workers
        self._dataset = _Batches(stream, batch_size, collate)
        self._pin_memory = pin_memory
        self._states: list[dict[str, Any]] | None = None
        self._next_worker = 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out; plain numbers and strings."""
        return {"workers": self._positions(), "first_worker": self._next_worker}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the batch after the one at which the state was taken.

        Raises:
            StoreError: the state belongs to other data, or to another number of processes or workers.
        """
        saved, wanted = len(state["workers"]), max(1, self.num_workers)
        if saved != wanted:
            raise StoreError(
                f"the saved data position was taken with {saved} loader worker(s), but this run has {wanted}; resume "
                "with the same number of workers."
            )
        self.stream.load_state_dict(state)
        self._states = [dict(one) for one in state["workers"]]
        self._next_worker = int(state["first_worker"])

    def __iter__(self) -> Iterator[Any]:
        readers = max(1, self.num_workers)
        states = self._states = self._positions()
        self.stream.load_state_dict(self.state_dict())
        loader = torch.utils.data.DataLoader(
            self._dataset,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            # Its own generator: otherwise every new iterator draws from the global one, and a resumed run diverges.
            generator=torch.Generator().manual_seed(self.stream.seed),
            pin_memory=self._pin_memory,
        )
        for batch, worker, state in loader:
            if isinstance(batch, _Failure):
                raise batch.kind(batch.message)
            states[worker] = state
            self._next_worker = (worker + 1) % readers
            yield batch

    def _positions(self) -> list[dict[str, Any]]:
        readers = max(1, self.num_workers)
        return self._states or [self.stream.start_state(worker, readers) for worker in range(readers)]


@dataclass(frozen=True)
class _Failure:
    """An error of the stream on its way out of a worker."""

    kind: type[VoxelFMError]
    message: str


class _Batches(torch.utils.data.IterableDataset):
    """(batch, worker, the worker's position after it), built in the worker."""

    def __init__(
        self,
        stream: SampleStream,
        batch_size: int,
        collate: Callable[[Sequence[Any]], Any],
    ) -> None:
        super().__init__()
        self.stream, self.batch_size, self.collate = stream, batch_size, collate

    def __iter__(self) -> Iterator[tuple[Any, int, dict[str, Any]]]:
        samples: list[Any] = []
        stream = iter(self.stream)
        while True:
            try:
                sample = next(stream, None)
            except VoxelFMError as error:  # a sentence for the user; torch would bury it in a worker's traceback
                yield _Failure(type(error), str(error)), 0, {}
                return
            if sample is None:
                return
            samples.append(sample)
            if len(samples) == self.batch_size:
                state = self.stream.state_dict()
                yield self.collate(samples), state["worker"], state
                samples = []


def _unchanged(value: Any) -> Any:
    return value
