"""A small world to train and judge report models in: an encoder, a language model, features that tell the findings."""

import csv
from pathlib import Path

import numpy as np
import torch

from tests.modeling.small_language_models import byte_tokenizer, small_llama
from voxelfm_hf.hub import weight_hash
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.store import StoreWriter

WIDTH = 24
SENTENCES = ("Left pleural effusion.", "Emphysema in both lungs.")
TRAINING = """
data: {reports: none.csv, store: none}
model:
  language_model: LANGUAGE
  vision_model: ENCODER
  num_image_tokens: 2
  resampler_hidden_size: 16
  resampler_num_heads: 2
  projector_hidden_size: 16
  request: Report?
output_dir: none
stage1: {epochs: 1, batch_size: 4, total_batch: 4, learning_rate: 1.0e-2}
stage2: {epochs: 1, batch_size: 4, total_batch: 4, learning_rate: 1.0e-2}
run: {mixed_precision: "no", gradient_checkpointing: false}
"""


def write_bases(folder: Path) -> None:
    """encoder/ and language/."""
    torch.manual_seed(0)
    encoder = VoxelFMModel(VoxelFMConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=1, patch_size=4))
    encoder.save_pretrained(folder / "encoder")
    VoxelFMImageProcessor(patch_size=4, background_kernel=5).save_pretrained(folder / "encoder")
    tokenizer = byte_tokenizer()
    small_llama(len(tokenizer)).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    text = TRAINING.replace("LANGUAGE", str(folder / "language")).replace("ENCODER", str(folder / "encoder"))
    (folder / "training.yaml").write_text(text)


def write_data(folder: Path, *, scans: int = 40) -> None:
    """labels.csv and store/: the first channels tell effusion and emphysema; half of the scans are test."""
    run = {"model": "encoder", "weight_hash": weight_hash(folder / "encoder"), "patches": True, "processor": {}}
    draws = np.random.default_rng(0)
    rows, grids, lines = [], {}, []
    for number in range(scans):
        identifier = f"scan-{number}.nii.gz"
        findings = (number % 2, number // 2 % 2)
        grid = draws.normal(size=(2, 1 + number % 2, 2, WIDTH))
        grid[..., :16] += np.tile(6 * np.array(findings) - 3, 8)
        grids[identifier] = grid
        rows.append(
            {"id": identifier, "source": identifier, "cls": grid.mean((0, 1, 2)), "grid": list(grid.shape[:3]),
             "spacing_mm": [1.0] * 3, "effective_spacing_mm": [1.0] * 3, "field_of_view_mm": [8.0] * 3,
             "patch_affine": np.eye(4).ravel().tolist(), "notes": []}
        )  # fmt: skip
        text = " ".join(s for s, there in zip(SENTENCES, findings, strict=True) if there) or "Clear lungs."
        split = ("train", "test", "val", "test")[number // 4 % 4]
        lines.append([f"scan-{number}", text, split, f"patient-{number // 2}"])
    StoreWriter(folder / "store", run).add(rows, grids)
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "report", "split", "patient_id"])
        writer.writerows(lines)
