"""A model folder that loads and runs in no time."""

from pathlib import Path

import torch

from voxelfm_hf import VoxelFMConfig, VoxelFMImageProcessor, VoxelFMModel


def save_small_model(folder: Path, *, patch_size: int = 4, max_patches: int = 100, seed: int = 0) -> None:
    """Writes a one-block model and its processor, which takes whole scans as they are."""
    torch.manual_seed(seed)
    config = VoxelFMConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=patch_size,
        image_size=2 * patch_size,
        layerscale_value=1.0,
    )
    VoxelFMModel(config).save_pretrained(folder)
    processor = VoxelFMImageProcessor(patch_size=patch_size, crop_background=False, max_patches=max_patches)
    processor.save_pretrained(folder)
