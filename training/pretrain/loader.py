"""From a stream of volumes to micro-batches of views: made in worker processes, resumed at the very next sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxelfm_hf.data.stream import SampleStream, StreamLoader
from voxelfm_hf.training.pretrain.crops import CropSettings, draw_size_pair, make_views
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank.

    Args:
        global_crops: (2B, 1, g, g, g) fp32, view-major.
        local_crops: (L * B, 1, l, l, l) fp32, view-major.
        ids: names of the B samples.
        epoch: pass over its source of the last sample.
    """

    global_crops: Tensor
    local_crops: Tensor
    ids: list[str]
    epoch: int

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; called by the loader."""
        return Batch(self.global_crops.pin_memory(), self.local_crops.pin_memory(), self.ids, self.epoch)


class ViewCollator:
    """Turns the samples of a micro-batch into views, in whichever process they were read.

    Loader workers take strict turns, which makes the number of a micro-batch known where it is made, and with it the
    pair of crop sizes that all ranks use for it. (Where a worker has no data at all the turns shift; then ranks may
    differ in the sizes of a micro-batch, which costs time but changes no result.)

    Args:
        stream: the stream the samples come from, for the position in it.
        settings: how views are drawn.
        batch_size: volumes of a micro-batch.
        seed: seed of the run.
    """

    def __init__(self, stream: SampleStream, settings: CropSettings, *, batch_size: int, seed: int):
        self.stream = stream
        self.settings = settings
        self.batch_size = batch_size
        self.seed = seed

    def __call__(self, samples: Sequence[dict[str, Any]]) -> Batch:
        """Make the views of a micro-batch from samples with `id`, `hu` and `epoch`."""
        position = self.stream.state_dict()
        turn = position["step"] // self.batch_size - 1
        micro_batch = turn * max(1, position["num_workers"]) + position["worker"]
        pair = draw_size_pair(self.settings, seed=self.seed, micro_batch=micro_batch)
        views = [
            make_views(sample["hu"], self.settings, pair, seed=self.seed, epoch=sample["epoch"], sample_id=sample["id"])
            for sample in samples
        ]
        return Batch(
            # view-major: all samples of the first view, then all of the second, ...
            torch.stack([view.global_crops for view in views], dim=1).flatten(0, 1),
            torch.stack([view.local_crops for view in views], dim=1).flatten(0, 1),
            [sample["id"] for sample in samples],
            samples[-1]["epoch"],
        )


def make_loader(
    stream: SampleStream,
    settings: CropSettings,
    *,
    batch_size: int,
    seed: int,
    num_workers: int,
    pin_memory: bool = False,
) -> StreamLoader:
    """Loader of `Batch`es; `state_dict` and `load_state_dict` make it go on at the very next sample.

    Args:
        stream: samples of this rank.
        settings: how views are drawn.
        batch_size: volumes of a micro-batch.
        seed: seed of the run.
        num_workers: worker processes; 0 makes views in this one.
        pin_memory: page-locked memory, for copies to a GPU that do not wait.

    Returns:
        An endless loader (where the stream is).
    """
    return StreamLoader(
        stream,
        batch_size=batch_size,
        num_workers=num_workers,
        collate=ViewCollator(stream, settings, batch_size=batch_size, seed=seed),
        pin_memory=pin_memory,
    )


def open_stream(recipe: PretrainRecipe, *, rank: int, world_size: int) -> SampleStream:
    """The samples of one rank of a run.

    What cannot be used is listed in `skipped.jsonl` of the run folder.
    """
    return SampleStream(
        recipe.sources,
        rank=rank,
        world_size=world_size,
        seed=recipe.seed,
        min_side=recipe.shortest_side,
        skip_log=Path(recipe.output_dir) / "skipped.jsonl",
    )
