"""Batches from a `SampleStream` with loader workers, resumable at the very next batch whatever was prefetched."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.data

from voxelfm_hf.data.stream import SampleStream
from voxelfm_hf.volumes import StoreError, VoxelFMError


class StreamLoader:
    """A `torch` DataLoader over a stream whose position is that of the batches handed out, not of those prefetched.

    Every batch carries its reader's position after it, so saving needs no question to a worker. Iterating again goes
    on where the last iteration stopped; `stream.set_epoch` through `set_epoch` starts a pass.

    Args:
        stream: the samples.
        batch_size: samples a batch.
        num_workers: loader processes; 0 reads in this one.
        transform: called on each sample where it is read, for example to cut crops.
        collate: makes a batch of a list of samples, where they are read; by default the list itself.
        prefetch_factor: batches read ahead by a worker.
        pin_memory: copy batches to page-locked memory for a GPU.
        drop_last: leave out a last batch that is smaller (only in a stream with `passes`).
        multiprocessing_context: how workers start ("fork", "spawn", "forkserver"); the default is torch's.
    """

    def __init__(
        self,
        stream: SampleStream,
        *,
        batch_size: int,
        num_workers: int = 0,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        collate: Callable[[Sequence[Any]], Any] = list,
        prefetch_factor: int = 2,
        pin_memory: bool = False,
        drop_last: bool = True,
        multiprocessing_context: str | None = None,
    ) -> None:
        self.stream = stream
        self.batch_size, self.num_workers = batch_size, num_workers
        self._dataset = _Batches(stream, batch_size, transform, collate, drop_last)
        self._options: dict[str, Any] = {"pin_memory": pin_memory}
        if num_workers:
            self._options |= {
                "prefetch_factor": prefetch_factor,
                "multiprocessing_context": multiprocessing_context,
            }
        self._states: list[dict[str, Any]] | None = None
        self._next_worker = 0

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at this pass over the data."""
        self.stream.set_epoch(epoch)
        self._states = None
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
            **self._options,
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
        transform: Callable[[dict[str, Any]], Any] | None,
        collate: Callable[[Sequence[Any]], Any],
        drop_last: bool,
    ) -> None:
        super().__init__()
        self.stream, self.batch_size, self.drop_last = stream, batch_size, drop_last
        self.transform, self.collate = transform, collate

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
                break
            samples.append(sample if self.transform is None else self.transform(sample))
            if len(samples) == self.batch_size:
                yield self._batch(samples)
                samples = []
        if samples and not self.drop_last:
            yield self._batch(samples)

    def _batch(self, samples: list[Any]) -> tuple[Any, int, dict[str, Any]]:
        state = self.stream.state_dict()
        return self.collate(samples), state["worker"], state


def _unchanged(value: Any) -> Any:
    return value
