"""Micro-batches of views: complete, the same for any number of workers, resumed at the very next sample."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.small_shards import write_shards
from voxelfm_hf.data.stream import SampleStream
from voxelfm_hf.training.pretrain.crops import CropSettings, make_views
from voxelfm_hf.training.pretrain.loader import make_loader

SETTINGS = CropSettings(global_size=8, local_size=4, num_locals=2)


def loader(folder: Path, *, num_workers: int = 0, settings: CropSettings = SETTINGS, **rank):
    stream = SampleStream(str(folder), seed=3, min_side=4, **rank)
    return make_loader(stream, settings, batch_size=2, seed=3, num_workers=num_workers)


def test_a_batch_holds_the_views_of_its_samples_view_major(tmp_path: Path):
    volumes = write_shards(tmp_path / "shards")
    batch = next(iter(loader(tmp_path / "shards")))
    assert batch.global_crops.shape == (4, 1, 8, 8, 8) and batch.local_crops.shape == (4, 1, 4, 4, 4)
    for place, name in enumerate(batch.ids):
        views = make_views(volumes[name], SETTINGS, (8, 4), seed=3, epoch=0, sample_id=name)
        assert torch.equal(batch.global_crops[place::2], views.global_crops)
        assert torch.equal(batch.local_crops[place::2], views.local_crops)


def test_views_do_not_depend_on_the_number_of_workers(tmp_path: Path):
    write_shards(tmp_path / "shards")
    views = []
    for num_workers in (0, 2):
        made = {}
        for batch in itertools.islice(loader(tmp_path / "shards", num_workers=num_workers), 4):
            for place, name in enumerate(batch.ids):
                made[batch.epoch, name] = batch.global_crops[place::2]
        views.append(made)
    assert views[0].keys() == views[1].keys() and len(views[0]) == 8
    for key, crops in views[0].items():
        assert torch.equal(crops, views[1][key])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 5])
def test_resume_goes_on_at_the_very_next_sample(tmp_path: Path, num_workers: int, taken: int):
    write_shards(tmp_path / "shards", number=7)
    settings = replace(SETTINGS, global_size=[8, 12], local_size=[4, 4])

    def fresh():
        return loader(tmp_path / "shards", num_workers=num_workers, settings=settings)

    whole = list(itertools.islice(fresh(), 9))
    assert len({batch.global_crops.shape for batch in whole}) == 2
    first = fresh()
    list(itertools.islice(iter(first), taken))
    state = json.loads(json.dumps(first.state_dict()))
    second = fresh()
    second.load_state_dict(state)
    for wanted, batch in zip(whole[taken:], second, strict=False):
        assert batch.ids == wanted.ids and batch.epoch == wanted.epoch
        assert torch.equal(batch.global_crops, wanted.global_crops)
        assert torch.equal(batch.local_crops, wanted.local_crops)


def test_all_ranks_and_workers_use_the_same_sizes_at_the_same_time(tmp_path: Path):
    write_shards(tmp_path / "shards", number=16)
    settings = replace(SETTINGS, global_size=[8, 12, 16], local_size=[4, 4, 8])
    sizes = []
    for rank in range(2):
        for num_workers in (0, 2):
            made = loader(tmp_path / "shards", num_workers=num_workers, settings=settings, rank=rank, world_size=2)
            sizes.append([batch.global_crops.shape[-1] for batch in itertools.islice(made, 8)])
    assert sizes[0] == sizes[1] == sizes[2] == sizes[3]
    assert len(set(sizes[0])) == 3


def test_making_a_loader_leaves_the_global_generator_alone(tmp_path: Path):
    write_shards(tmp_path / "shards")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(loader(tmp_path / "shards", num_workers=1)))
    assert torch.equal(torch.get_rng_state(), before)
