"""Random windows of a segmentation, the soft Dice loss, and a decoder that learns from them."""

import numpy as np
import pytest
import torch

from voxelfm_hf.eval.tasks.segmentation import decoded_chances
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.modeling.probe_heads_voxelfm import patch_positions
from voxelfm_hf.modeling.probe_losses_voxelfm import dice_loss
from voxelfm_hf.training.probe import fit_probes, make_probe
from voxelfm_hf.training.probe.data import ProbeFeatures, ProbeJob
from voxelfm_hf.training.probe.settings import ProbeSettings
from voxelfm_hf.training.probe.voxel_windows import random_window


def test_a_window_is_one_place_of_features_positions_and_labels():
    grid, v = (6, 5, 9), 2
    features = patch_positions(grid, torch.zeros(())) * 100
    index = torch.arange(6 * 5 * 9).reshape(grid)
    labels = index.repeat_interleave(v, 0).repeat_interleave(v, 1).repeat_interleave(v, 2)
    for seed in range(20):
        window = random_window(features, labels, edge=3, generator=torch.Generator().manual_seed(seed))
        assert window.features.shape == (3, 3, 3, 3) and window.labels.shape == (6, 6, 6)
        torch.testing.assert_close(window.features, window.positions * 100)
        place = np.unravel_index(window.labels[::v, ::v, ::v].numpy(), grid)
        expected = np.stack([(axis + 0.5) / n for axis, n in zip(place, grid, strict=True)], axis=-1)
        np.testing.assert_allclose(window.positions.numpy(), expected, rtol=1e-6)


def test_two_windows_of_three_hold_a_class_however_small():
    labels = torch.zeros((40, 40, 40), dtype=torch.int16)
    labels[3, 30, 17] = 2
    generator = torch.Generator().manual_seed(0)
    features = torch.zeros(20, 20, 20, 1)
    found = [random_window(features, labels, edge=4, generator=generator).labels.max() == 2 for _ in range(300)]
    assert 0.58 < np.mean([bool(f) for f in found]) < 0.76


def test_whole_scans_where_they_are_small_or_no_edge_is_given():
    features, labels = torch.zeros(3, 2, 4, 5), torch.zeros(6, 4, 8, dtype=torch.int16)
    for edge in (None, 4):
        assert random_window(features, labels, edge=edge).features.shape == (3, 2, 4, 5)
    with pytest.raises(ValueError, match="no whole number of voxels"):
        random_window(torch.zeros(9, 9, 9, 1), torch.zeros(10, 9, 9), edge=2)


def test_dice_loss_against_its_formula_and_its_limits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 50, 4, generator=generator)
    targets = torch.randint(-1, 4, (1, 50, 1), generator=generator)
    scored = torch.tensor([False, True, False, True])
    chances, known = logits.softmax(-1)[0].numpy(), targets[0, :, 0].numpy() >= 0
    terms = []
    for label in (1, 3):
        p, t = chances[known, label], targets[0, known, 0].numpy() == label
        terms.append((2 * (p * t).sum() + 5) / ((p**2).sum() + t.sum() + 5))
    assert dice_loss(logits, targets, scored).item() == pytest.approx(1 - np.mean(terms), abs=1e-6)
    sure = 100.0 * torch.nn.functional.one_hot(targets.clamp_min(0)[..., 0], 4)
    assert dice_loss(sure, targets, scored).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(logits, targets, torch.zeros(4, dtype=torch.bool)).item() == 0


def test_windows_of_a_grid_decode_to_what_the_whole_grid_decodes_to_inside():
    torch.manual_seed(0)
    names = {0: "background", 1: "organ"}
    config = {"task": "segmentation", "head": "subpatch", "feature_size": 6, "head_hidden_size": 16, "id2label": names}
    probe = VoxelFMProbe(VoxelFMProbeConfig(**config, voxels_per_patch=2, decoded_patches=40)).eval()
    patches = torch.randn(9, 12, 7, 6)
    whole = decoded_chances(probe, patches)
    probe.config.decoded_patches = 6
    windows = decoded_chances(probe, patches)
    assert whole.shape == windows.shape == (2, 18, 24, 14)
    torch.testing.assert_close(windows.sum(0), torch.ones(18, 24, 14))
    # Only voxels near the face of some window can differ: a patch decides with its 26 neighbours.
    assert ((windows - whole).abs().amax(0) < 1e-6).float().mean() > 0.2
    assert (windows - whole).abs().mean() < 0.1


def test_the_quick_decoder_learns_two_organs_smaller_than_a_patch_left_and_right():
    """The features tell what is in each eighth of a patch; left and right differ by their place alone."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, 16)).astype(np.float32)
    grids, maps = [], []
    for _ in range(12):
        grid = np.array(rng.integers(6, 9, 3))
        labels = np.zeros(2 * grid, dtype=np.int16)
        for value, side in ((1, 0.25), (2, 0.75)):
            z, y, x = (int(n * s) for n, s in zip(2 * grid, (rng.uniform(0.3, 0.7), 0.5, side), strict=True))
            labels[z - 2 : z + 1, y - 1 : y + 2, x - 1 : x + 2] = value
        d, h, w = grid
        seen = (labels > 0).reshape(d, 2, h, 2, w, 2).transpose(0, 2, 4, 1, 3, 5).reshape(d, h, w, 8)
        grids.append(seen @ mixing + 0.05 * rng.normal(size=(d, h, w, 16)).astype(np.float32))
        maps.append(labels)
    config = VoxelFMProbeConfig(
        task="segmentation",
        head="subpatch",
        feature_size=16,
        head_hidden_size=32,
        voxels_per_patch=2,
        id2label=dict(enumerate(("background", "right", "left"))),
    )
    features = ProbeFeatures(patches=lambda row: grids[row]).standardised(np.arange(8))
    job = ProbeJob("organs", lambda row: maps[row], np.arange(8), np.arange(8, 10))
    settings = ProbeSettings(
        epochs=30, batch_size=2, learning_rate=1e-2, evaluate_every=10, schedule="cosine", window=5, dice=1.0
    )
    (fit,) = fit_probes(features, [job], config, settings=settings)
    probe = make_probe(config, [fit], features)
    probe.config.decoded_patches = 5
    overlap = np.zeros((2, 2))
    for row in (10, 11):
        found = decoded_chances(probe, torch.from_numpy(grids[row]).float()).argmax(0).numpy()
        for value in (1, 2):
            a, b = found == value, maps[row] == value
            overlap[value - 1] += 2 * (a & b).sum(), a.sum() + b.sum()
    assert (overlap[:, 0] / overlap[:, 1]).min() > 0.8
