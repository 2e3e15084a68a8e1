"""From a stream of volumes to micro-batches of views: made in worker processes, resumed at the very next sample."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from voxelfm_hf.training.crops import CropSettings, draw_size_pair, make_views


class Stream(Protocol):
    """Samples of this rank and loader worker, pass after pass without end (`voxelfm_hf.data.stream.SampleStream`).

    A sample is `{"id": str, "hu": int16 (D, H, W), "epoch": int, ...}`; epoch counts the passes over its source. A
    worker that has nothing to read ends at once. After `load_state_dict` the next iteration goes on where the state
    was taken.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank.

    Args:
        global_crops: (2B, 1, g, g, g) fp32, view-major.
        local_crops: (L * B, 1, l, l, l) fp32, view-major.
        ids: names of the B samples.
        epoch: pass over the data the last sample belongs to.
    """

    global_crops: Tensor
    local_crops: Tensor
    ids: list[str]
    epoch: int

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; called by the loader."""
        return Batch(self.global_crops.pin_memory(), self.local_crops.pin_memory(), self.ids, self.epoch)


class ViewBatches(IterableDataset):
    """Endless micro-batches of views.

    Loader workers take strict turns, which makes the number of a micro-batch known in the worker, and with it the pair
    of crop sizes that all ranks use for it. (Where a worker has no data at all the turns shift; then ranks may differ
    in the sizes of a micro-batch, which costs time but changes no result.)

    Args:
        stream: samples of this rank; copied into every worker.
        settings: how views are drawn.
        batch_size: volumes of a micro-batch.
        seed: seed of the run.
    """

    def __init__(self, stream: Stream, settings: CropSettings, *, batch_size: int, seed: int):
        self.stream = stream
        self.settings = settings
        self.batch_size = batch_size
        self.seed = seed
        self.num_batches = 0

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)
        samples = iter(self.stream)
        while chosen := list(itertools.islice(samples, self.batch_size)):
            if len(chosen) < self.batch_size:
                return
            pair = draw_size_pair(self.settings, seed=self.seed, micro_batch=self.num_batches * turns + turn)
            views = [
                make_views(
                    sample["hu"], self.settings, pair, seed=self.seed, epoch=sample["epoch"], sample_id=sample["id"]
                )
                for sample in chosen
            ]
            self.num_batches += 1
            yield Batch(
                # view-major: all samples of the first view, then all of the second, ...
                torch.stack([view.global_crops for view in views], dim=1).flatten(0, 1),
                torch.stack([view.local_crops for view in views], dim=1).flatten(0, 1),
                [sample["id"] for sample in chosen],
                chosen[-1]["epoch"],
            )

    def state_dict(self) -> dict:
        """Position in the data: micro-batches made by this worker and the state of its stream."""
        return {"num_batches": self.num_batches, "stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on at the next sample after `state_dict` was taken."""
        self.num_batches = state["num_batches"]
        self.stream.load_state_dict(state["stream"])


def make_loader(
    stream: Stream, settings: CropSettings, *, batch_size: int, seed: int, num_workers: int, pin_memory: bool = False
) -> StatefulDataLoader:
    """Loader of `Batch`es that can be saved and resumed with any number of workers (the same at both times).

    Args:
        stream: samples of this rank.
        settings: how views are drawn.
        batch_size: volumes of a micro-batch.
        seed: seed of the run.
        num_workers: worker processes; 0 makes views in this one.
        pin_memory: page-locked memory, for copies to a GPU that do not wait.

    Returns:
        An endless loader.
    """
    return StatefulDataLoader(
        ViewBatches(stream, settings, batch_size=batch_size, seed=seed),
        batch_size=None,
        num_workers=num_workers,
        # Without its own generator the loader draws from the global one, and a resumed run would differ.
        generator=torch.Generator().manual_seed(seed),
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )


def save_position(loader: StatefulDataLoader, path: Path) -> None:
    """Write where a loader stands as JSON."""
    path.write_text(json.dumps(loader.state_dict()))


def load_position(loader: StatefulDataLoader, path: Path) -> None:
    """Let the next iteration of a loader go on from a saved position."""
    loader.load_state_dict(json.loads(path.read_text()))
