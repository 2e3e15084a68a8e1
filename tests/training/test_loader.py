"""Micro-batches of views: complete, the same for any number of workers, resumed at the very next sample."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.npy_stream import NpyStream, write_volumes
from voxelfm_hf.training.crops import CropSettings, make_views
from voxelfm_hf.training.loader import load_position, make_loader, save_position

SETTINGS = CropSettings(global_size=8, local_size=4, num_locals=2)


def loader(folder: Path, *, num_workers: int = 0, settings: CropSettings = SETTINGS, batch_size: int = 2, **rank):
    return make_loader(NpyStream(folder, **rank), settings, batch_size=batch_size, seed=3, num_workers=num_workers)


def test_a_batch_holds_the_views_of_its_samples_view_major(tmp_path: Path):
    folder = write_volumes(tmp_path / "volumes")
    batch = next(iter(loader(folder)))
    assert batch.global_crops.shape == (4, 1, 8, 8, 8) and batch.local_crops.shape == (4, 1, 4, 4, 4)
    hu = {sample["id"]: sample["hu"] for sample in itertools.islice(NpyStream(folder), 7)}
    for place, name in enumerate(batch.ids):
        views = make_views(hu[name], SETTINGS, (8, 4), seed=3, epoch=0, sample_id=name)
        assert torch.equal(batch.global_crops[place::2], views.global_crops)
        assert torch.equal(batch.local_crops[place::2], views.local_crops)


def test_views_do_not_depend_on_the_number_of_workers(tmp_path: Path):
    folder = write_volumes(tmp_path / "volumes", number=8)
    views = []
    for num_workers in (0, 2):
        made = {}
        for batch in itertools.islice(loader(folder, num_workers=num_workers), 8):
            for place, name in enumerate(batch.ids):
                made[batch.epoch, name] = batch.global_crops[place::2]
        views.append(made)
    assert views[0].keys() == views[1].keys() and len(views[0]) == 16
    for key, crops in views[0].items():
        assert torch.equal(crops, views[1][key])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 5])
def test_resume_goes_on_at_the_very_next_sample(tmp_path: Path, num_workers: int, taken: int):
    folder = write_volumes(tmp_path / "volumes")
    settings = replace(SETTINGS, global_size=[8, 12], local_size=[4, 4])
    whole = list(itertools.islice(loader(folder, num_workers=num_workers, settings=settings), 9))
    assert len({batch.global_crops.shape for batch in whole}) == 2
    first = loader(folder, num_workers=num_workers, settings=settings)
    list(itertools.islice(iter(first), taken))
    save_position(first, tmp_path / "position.json")
    second = loader(folder, num_workers=num_workers, settings=settings)
    load_position(second, tmp_path / "position.json")
    for wanted, batch in zip(whole[taken:], second, strict=False):
        assert batch.ids == wanted.ids and batch.epoch == wanted.epoch
        assert torch.equal(batch.global_crops, wanted.global_crops)
        assert torch.equal(batch.local_crops, wanted.local_crops)


def test_making_a_loader_leaves_the_global_generator_alone(tmp_path: Path):
    folder = write_volumes(tmp_path / "volumes")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(loader(folder)))
    assert torch.equal(torch.get_rng_state(), before)
