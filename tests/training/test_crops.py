"""Views of pre-training: the published crops and windows, geometry, and draws that follow from their names."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from voxelfm_hf.training.pretrain import crops

SETTINGS = crops.CropSettings(global_size=16, local_size=8, num_locals=3)


@pytest.fixture(scope="module")
def tensors(parity: Path) -> dict[str, torch.Tensor]:
    return load_file(parity / "pretraining" / "augmentation.safetensors")


@pytest.fixture(scope="module")
def draws(parity: Path) -> dict:
    return json.loads((parity / "pretraining" / "augmentation.json").read_text())


@pytest.mark.parametrize("number", range(5))
def test_published_crops(tensors, draws, number):
    volume, case = tensors["crop.input.volume"].numpy(), draws["crop"][number]
    permutation, target = tuple(case["perm"]), tuple(case["target"])
    size = crops.crop_size(volume.shape, permutation, target, case["scale"])
    assert list(size) == case["crop"]
    view = crops.ViewDraw(permutation, tuple(case["start"]), size, target)
    torch.testing.assert_close(crops.crop(volume, view), tensors[f"crop.output.case{number}"], atol=2e-3, rtol=0)


@pytest.mark.parametrize("number", range(3))
def test_published_windows(tensors, draws, number):
    case = draws["window"][number]
    assert case["level_taken"] == pytest.approx(case["median"])
    window = crops.WindowDraw(level_shift=0.0, width_factor=case["width_taken"] / case["iqr"])
    image = tensors[f"window.input.image{number}"].float()
    torch.testing.assert_close(
        crops.apply_window(image, window), tensors[f"window.output.image{number}"], atol=1e-3, rtol=0
    )


def test_window_of_a_flat_image_is_at_least_10_hu_wide(draws):
    case = draws["window"][3]
    image = torch.full((6, 6, 6), 37.0)
    image[0, 0, 0], image[0, 0, 1] = -900.0, 900.0  # too few to reach the 1 and 99 percentiles
    windowed = crops.apply_window(image, crops.WindowDraw(level_shift=1.0, width_factor=2.0))
    level = case["median"] + case["level_std"]
    assert windowed.min().item() == pytest.approx(level - 5)
    assert windowed.max().item() == pytest.approx(level + 5)


def test_window_of_an_image_out_of_range_changes_nothing():
    image = torch.full((4, 4, 4), -2048.0)
    assert torch.equal(crops.apply_window(image, crops.WindowDraw(0.3, 1.0)), image)


def test_published_normalisation(tensors):
    normalised = crops.normalise(tensors["norm.input"], crops.CropSettings())
    torch.testing.assert_close(normalised, tensors["norm.output"], atol=1e-5, rtol=0)


def test_an_uninterpolated_view_is_a_permuted_flipped_box():
    volume = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    view = crops.ViewDraw((2, 0, 1), (1, 2, 3), (4, 4, 4), (4, 4, 4), flips=(True, False, True))
    box = volume[1:5, 2:6, 3:7]
    # axis 0 of the volume is axis 2 of the view, 1 is 0, 2 is 1
    expected = np.einsum("zyx->yxz", box)[::-1, :, ::-1]
    np.testing.assert_array_equal(crops.crop(volume, view).numpy(), expected)


def test_globals_come_in_48_orientations_and_locals_in_6():
    seen: dict[str, Counter] = {"global": Counter(), "local": Counter()}
    for sample in range(1500):
        drawn = crops.draw_views((20, 30, 25), SETTINGS, (16, 8), seed=0, epoch=0, sample_id=str(sample))
        for name, view in (("global", drawn[1]), ("local", drawn[2])):
            seen[name][(view.permutation, view.flips)] += 1
    assert len(seen["global"]) == 48 and min(seen["global"].values()) > 10
    assert len(seen["local"]) == 6 and min(seen["local"].values()) > 200


def test_draws_stay_inside_and_cover_their_ranges():
    shape = (20, 60, 41)
    drawn = [
        crops.draw_views(shape, SETTINGS, (16, 8), seed=1, epoch=2, sample_id=str(sample)) for sample in range(600)
    ]
    for view in itertools.chain.from_iterable(drawn):
        assert all(
            first >= 0 and first + edge <= n for first, edge, n in zip(view.start, view.size, shape, strict=True)
        )
    global_edges = [min(views[0].size) for views in drawn]
    local_edges = [min(views[3].size) for views in drawn]
    assert min(global_edges) in (6, 7) and max(global_edges) in (19, 20)
    assert min(local_edges) == 1 and max(local_edges) == 6
    windows = [views[0].window for views in drawn]
    assert 0.4 < np.mean([window is not None for window in windows]) < 0.6
    assert all(views[1].window is None and views[2].window is None for views in drawn)
    factors = [window.width_factor for window in windows if window]
    assert min(factors) < 0.6 and max(factors) > 1.9
    assert np.std([window.level_shift for window in windows if window]) == pytest.approx(1.0, abs=0.15)


def test_views_follow_from_seed_epoch_sample_and_view():
    volume = np.random.default_rng(0).integers(-1000, 1000, (14, 15, 16)).astype(np.int16)

    def make(**changes):
        return crops.make_views(volume, SETTINGS, (16, 8), **({"seed": 1, "epoch": 0, "sample_id": "a"} | changes))

    first = make()
    assert first.global_crops.shape == (2, 1, 16, 16, 16) and first.local_crops.shape == (3, 1, 8, 8, 8)
    assert first.global_crops.dtype == torch.float32
    again = make()
    assert torch.equal(first.global_crops, again.global_crops) and torch.equal(first.local_crops, again.local_crops)
    for change in ({"seed": 2}, {"epoch": 1}, {"sample_id": "b"}):
        assert not torch.equal(first.local_crops, make(**change).local_crops)
    # a view does not depend on how many others there are
    fewer = crops.make_views(volume, replace(SETTINGS, num_locals=1), (16, 8), seed=1, epoch=0, sample_id="a")
    assert torch.equal(fewer.local_crops, first.local_crops[:1])


def test_values_stay_in_the_normalised_range():
    volume = np.random.default_rng(0).integers(-3000, 4000, (14, 15, 16)).astype(np.int16)
    views = crops.make_views(volume, SETTINGS, (16, 8), seed=1, epoch=0, sample_id="a")
    for image in (views.global_crops, views.local_crops):
        assert image.min() >= (-1000 + 573.8) / 461.3 - 1e-6 and image.max() <= (1900 + 573.8) / 461.3 + 1e-6


def test_size_pairs_are_drawn_per_micro_batch_with_their_probabilities():
    settings = replace(SETTINGS, global_size=[16, 32], local_size=[8, 16], size_probabilities=[0.25, 0.75])
    drawn = [crops.draw_size_pair(settings, seed=5, micro_batch=number) for number in range(1000)]
    assert set(drawn) == {(16, 8), (32, 16)}
    assert drawn.count((32, 16)) / 1000 == pytest.approx(0.75, abs=0.05)
    assert drawn[17] == crops.draw_size_pair(settings, seed=5, micro_batch=17)
    assert crops.draw_size_pair(SETTINGS, seed=5, micro_batch=3) == (16, 8)
