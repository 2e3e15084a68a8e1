"""Small models and scans for the tests of the library."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A folder with a random two-layer model and its processor (patch 8, at most 60 patches)."""
    import torch

    from voxelfm_hf import VoxelFMConfig, VoxelFMImageProcessor, VoxelFMModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small_model")
    config = VoxelFMConfig(
        hidden_size=36, num_hidden_layers=2, num_attention_heads=1, patch_size=8, image_size=16, layerscale_value=0.5
    )
    VoxelFMModel(config).save_pretrained(folder)
    VoxelFMImageProcessor(patch_size=8, max_patches=60).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def phantom_volume():
    """A small synthetic chest CT."""
    from voxelfm_hf.data.phantom import make_phantom

    return make_phantom(3, shape=(30, 40, 40)).volume


@pytest.fixture
def scan_folder(tmp_path, phantom_volume) -> Path:
    """Three readable scans (two formats, one in a subfolder) and one that is none."""
    from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti

    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    write_nifti(phantom_volume, folder / "a.nii.gz")
    write_nifti(phantom_volume, folder / "sub" / "b.nii.gz")
    write_dicom_series(phantom_volume, folder / "series")
    np.save(folder / "bad.npy", np.zeros((4, 4)))
    return folder
