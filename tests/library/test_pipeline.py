"""`transformers.pipeline` over scan files: same features as processor and model by hand, and no questions asked."""

import builtins

import nibabel as nib
import numpy as np
import pytest
import torch
from transformers import pipeline

from voxelfm_hf import VoxelFMConfig, VoxelFMImageProcessor, VoxelFMModel, read_volume
from voxelfm_hf.volumes.errors import ScanError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = VoxelFMConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=1, patch_size=4)
    VoxelFMModel(config).save_pretrained(path)
    VoxelFMImageProcessor(patch_size=4, max_patches=60).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    hu = np.random.default_rng(0).integers(-700, 1000, (30, 40, 20)).astype(np.int16)
    path = tmp_path_factory.mktemp("scans") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(hu, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    return path


@pytest.fixture()
def extract(folder, monkeypatch):
    def no_question(*prompt):
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr(builtins, "input", no_question)
    return pipeline("ct-feature-extraction", model=str(folder))


@torch.no_grad()
def test_files_give_the_features_of_processor_and_model(extract, folder, scan):
    processor = VoxelFMImageProcessor.from_pretrained(folder)
    outputs = VoxelFMModel.from_pretrained(folder)(processor(read_volume(scan))["pixel_values"])
    assert torch.equal(extract(str(scan), pool=True, return_tensors=True), outputs.pooler_output)
    assert torch.equal(extract(scan, return_tensors=True), outputs.last_hidden_state)
    assert torch.equal(extract(read_volume(scan), return_tensors=True), outputs.last_hidden_state)
    first, second = extract([str(scan), str(scan)], pool=True)
    assert first == second and np.shape(first) == (1, 24)


def test_processor_options_pass_through(extract, scan):
    tokens = extract(str(scan), return_tensors=True, image_processor_kwargs={"max_patches": 20})
    assert 1 + 4 < tokens.shape[1] <= 1 + 4 + 20


def test_a_missing_file_is_one_sentence(extract, tmp_path):
    with pytest.raises(ScanError, match="missing.nii.gz"):
        extract(str(tmp_path / "missing.nii.gz"))
