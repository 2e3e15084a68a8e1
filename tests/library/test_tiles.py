"""Scans in overlapping tiles: every patch covered, features those of the tiles, geometry and settings kept."""

import numpy as np
import pytest
import torch

from voxelfm_hf import VoxelFMConfig, VoxelFMImageProcessor, VoxelFMModel
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.features.tiles import encode, tile_places, tile_starts, tile_weights
from voxelfm_hf.scan_list import list_scans
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes.errors import ModelError, StoreError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = VoxelFMConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, patch_size=4, image_size=12, layerscale_value=1.0
    )
    return VoxelFMModel(config).eval()


@pytest.mark.parametrize("length", range(1, 30))
@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
def test_windows_cover_an_axis_and_overlap_by_half(length, window):
    starts = tile_starts(length, window)
    covered = np.zeros(length, int)
    for start in starts:
        assert 0 <= start <= max(0, length - window)
        covered[start : start + window] += 1
    assert covered.min() >= 1 and starts == sorted(set(starts))
    if length > window:
        assert max(np.diff(starts)) <= (window + 1) // 2


def test_a_scan_of_one_tile_is_as_without_tiles(model):
    voxels = torch.randn(1, 1, 12, 8, 12)
    for whole, tiled in zip(encode(model, voxels), encode(model, voxels, tile=12), strict=True):
        torch.testing.assert_close(tiled, whole)


def test_features_are_the_weighted_means_of_the_tiles_that_hold_a_patch(model):
    voxels = torch.randn(1, 1, 20, 12, 16)
    cls, grid = encode(model, voxels, tile=12)
    assert grid.shape == (1, 5, 3, 4, 24)
    for patch in [(0, 0, 0), (2, 1, 1), (4, 2, 3), (2, 0, 2)]:
        total, weight = torch.zeros(24), 0.0
        for z, y, x in [(z, y, x) for z in (0, 2) for y in (0,) for x in (0, 1)]:
            local = patch[0] - z, patch[1] - y, patch[2] - x
            if all(0 <= i < 3 for i in local):
                tile = voxels[:, :, 4 * z : 4 * z + 12, 4 * y : 4 * y + 12, 4 * x : 4 * x + 12]
                share = float(np.prod([(1, 2, 1)[i] for i in local]))
                total += share * encode(model, tile)[1][0][local]
                weight += share
        torch.testing.assert_close(grid[0][patch], total / weight)
    places = tile_places((5, 3, 4), 3)
    tiles = [voxels[:, :, *(slice(4 * s.start, 4 * s.stop) for s in place)] for place in places]
    torch.testing.assert_close(cls[0], torch.cat([encode(model, tile)[0] for tile in tiles]).mean(0))


@pytest.mark.parametrize("patches", [1, 60])
def test_how_many_tiles_go_together_changes_nothing(model, monkeypatch, patches):
    """Also where a single tile has more patches than go together."""
    voxels = torch.randn(1, 1, 20, 12, 16)
    expected = encode(model, voxels, tile=12)
    monkeypatch.setattr("voxelfm_hf.features.tiles.PATCHES_A_BATCH", patches)
    for found, whole in zip(encode(model, voxels, tile=12), expected, strict=True):
        torch.testing.assert_close(found, whole)


def test_weights_are_symmetric_positive_and_highest_in_the_middle():
    weights = tile_weights((5, 4, 3))
    assert weights.min() > 0 and weights.max() == 1
    torch.testing.assert_close(weights, weights.flip(0, 1, 2))


def test_a_store_of_tiles_has_one_fine_grid_a_scan_and_says_how(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    VoxelFMImageProcessor(patch_size=4, crop_background=False, max_patches=8).save_pretrained(tmp_path / "model")
    (tmp_path / "scans").mkdir()
    hu = np.random.default_rng(0).integers(-900, 900, (10, 20, 30)).astype(np.int16)
    np.save(tmp_path / "scans" / "a.npy", hu)
    tasks = [Task(scan) for scan in list_scans([tmp_path / "scans"])]
    options = EmbedOptions(patches=True, spacing=(4.0, 2.0, 2.0), dtype="float32", voxel_mm=2.5, tile=12)
    assert embed_scans(tasks, tmp_path / "model", tmp_path / "store", options).failures == {}
    store = FeatureStore(tmp_path / "store")
    assert store.patches("a.npy").shape == (4, 4, 6, 24)  # 40 x 40 x 60 mm in patches of 10 mm, beyond the budget of 8
    assert store.table["effective_spacing_mm"].to_pylist() == [[2.5, 2.5, 2.5]]
    np.testing.assert_allclose(np.reshape(store.table["patch_affine"].to_pylist()[0], (4, 4))[:3, :3].sum(0), 10.0)
    assert store.run["processor"]["tile"] == 12 and store.run["processor"]["voxel_mm"] == 2.5
    with pytest.raises(StoreError, match="tile, voxel_mm"):
        plain = EmbedOptions(patches=True, spacing=(4.0, 2.0, 2.0), dtype="float32", max_patches=100_000)
        embed_scans(tasks, tmp_path / "model", tmp_path / "store", plain)
    with pytest.raises(ModelError, match="multiple of the model's patch size 4"):
        embed_scans(tasks, tmp_path / "model", tmp_path / "other", EmbedOptions(tile=10))


def test_a_fixed_voxel_size_resamples_cubic_scans_too():
    processor = VoxelFMImageProcessor(patch_size=4, crop_background=False, voxel_mm=2.0)
    found = processor(np.zeros((8, 12, 16), np.int16), spacing=(4.0, 4.0, 4.0), return_geometry=True)
    assert found["pixel_values"].shape == (1, 1, 16, 24, 32)
    assert found["geometry"][0].spacing_mm == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="voxel_mm must be a positive number"):
        processor(np.zeros((8, 12, 16), np.int16), spacing=(4.0, 4.0, 4.0), voxel_mm=-1.0)
