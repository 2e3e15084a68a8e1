"""Places and patches lead to each other, and a map of similarity lies where the patches lie."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from voxelfm_hf.features.likeness import likeness, on_scan_grid, patch_at, patch_box, patch_centre
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.volumes import Volume


@pytest.fixture(scope="module")
def geometry():
    """Of a body off the middle of its air: the patches begin and end inside the scan."""
    hu = np.full((40, 90, 80), -1000, np.int16)
    hu[6:33, 21:66, 11:53] = 20
    processor = VoxelFMImageProcessor(patch_size=4, max_patches=200, background_kernel=3)
    return processor(hu, spacing=(2.0, 1.0, 1.25), return_geometry=True)["geometry"][0]


def test_a_patch_is_found_again_at_its_centre_and_up_to_its_edges(geometry):
    box, grid = patch_box(geometry), geometry.grid
    assert min(box[0]) > 1
    size = (np.array(box[1]) - box[0]) / grid
    for patch in np.ndindex(*grid):
        centre = patch_centre(patch, grid, box)
        np.testing.assert_allclose(centre, geometry.patch_centres()[patch])
        assert patch_at(centre, grid, box) == patch
        for edge in (-0.49, 0.49):
            assert patch_at(tuple(centre + edge * size), grid, box) == patch


def test_outside_the_patches_there_is_none():
    box = ((2.0, 4.0, 6.0), (10.0, 12.0, 14.0))
    assert patch_at((2, 4, 6), (2, 2, 2), box) == (0, 0, 0) and patch_at((9, 11, 13), (2, 2, 2), box) == (1, 1, 1)
    assert patch_at((5, 8, 9), (2, 2, 2), box) == (0, 1, 0)  # voxel 5 ends where the second half begins
    # Voxel i spans i to i + 1: a border at its middle is the patches' on one side only.
    assert patch_at((1.5, 4, 6), (2, 2, 2), box) == (0, 0, 0) and patch_at((9.5, 4, 6), (2, 2, 2), box) is None
    for axis in range(3):
        for outside in (box[0][axis] - 1, box[1][axis]):
            voxel = [5.0, 7.0, 9.0]
            voxel[axis] = outside
            assert patch_at(tuple(voxel), (2, 2, 2), box) is None


def test_likeness_is_the_cosine_about_the_mean_patch():
    patches = np.random.default_rng(0).normal(3, 1, (2, 3, 4, 6))
    vector = np.random.default_rng(1).normal(3, 1, 6)
    rows, mean = patches.reshape(-1, 6), patches.reshape(-1, 6).mean(0)
    expected = cosine_similarity(rows - mean, (vector - mean)[None]).reshape(2, 3, 4)
    np.testing.assert_allclose(likeness(patches, vector), expected)
    assert likeness(patches, patches[1, 2, 0])[1, 2, 0] == pytest.approx(1)
    assert (likeness(np.ones((2, 2, 2, 3)), np.ones(3)) == 0).all()  # patches that are all alike: no NaN


def test_a_map_is_linear_between_patch_centres_and_zero_where_there_are_none(geometry):
    box, centres = patch_box(geometry), geometry.patch_centres()
    volume = Volume.from_array(np.zeros((40, 90, 80), np.int16), spacing=(2.0, 1.0, 1.25))
    for axis in range(3):
        on_grid = on_scan_grid(centres[..., axis], box, volume)
        assert on_grid.shape == volume.hu.shape and on_grid.dtype == np.float32
        index = np.indices(volume.hu.shape)
        inside = np.all([(i + 0.5 >= a) & (i + 0.5 <= b) for i, a, b in zip(index, *box, strict=True)], axis=0)
        assert 0 < inside.mean() < 0.9 and (on_grid[~inside] == 0).all()
        low, high = centres[..., axis].min(), centres[..., axis].max()
        np.testing.assert_allclose(on_grid[inside], np.clip(index[axis][inside], low, high), rtol=1e-5)
