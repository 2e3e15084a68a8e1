"""A saved report model loads with `trust_remote_code=True` where this package cannot be imported."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.modeling.small_language_models import byte_tokenizer, small_llama
from voxelfm_hf.modeling.configuration_voxelfm_report import VoxelFMReportConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.modeling.modeling_voxelfm_report import VoxelFMForReportGeneration
from voxelfm_hf.modeling.processing_voxelfm_report import VoxelFMReportProcessor

STRANGER = """
import sys
sys.modules["voxelfm_hf"] = None
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
work = Path(sys.argv[1])
hu = load_file(work / "scan.safetensors")["hu"]
outputs = {}
for name in ("light", "merged"):
    processor = AutoProcessor.from_pretrained(work / name, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(work / name, trust_remote_code=True)
    batch = processor(hu, spacing=(2.0, 2.0, 2.0))
    outputs[name] = model.generate(**batch, max_new_tokens=6, do_sample=False)
    print(type(model).__module__.split(".")[0], type(processor).__module__.split(".")[0])
save_file(outputs, work / "outputs.safetensors")
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A report model saved light and merged, its bases and a scan."""
    folder = tmp_path_factory.mktemp("remote")
    torch.manual_seed(0)
    images = VoxelFMImageProcessor(patch_size=4, max_patches=60, background_kernel=5)
    processor = VoxelFMReportProcessor(images, byte_tokenizer(), 2, request="?")
    language_model = small_llama(len(processor.tokenizer) - 1)
    language_model.save_pretrained(folder / "language")
    config = VoxelFMReportConfig(
        vision_config={"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 4},
        text_config=language_model.config.to_dict(),
        num_image_tokens=2,
        image_token_id=processor.image_token_id,
        resampler_hidden_size=16,
        resampler_num_heads=2,
        projector_hidden_size=16,
        base_text_model=str(folder / "language"),
        base_vision_model=str(folder / "encoder"),
    )
    encoder = VoxelFMModel(config.vision_config)
    encoder.save_pretrained(folder / "encoder")
    model = VoxelFMForReportGeneration.from_parts(config, language_model=language_model, vision_tower=encoder).eval()
    model.save_pretrained(folder / "light")
    processor.save_pretrained(folder / "light")
    model.save_pretrained(folder / "merged", merge=True)
    processor.save_pretrained(folder / "merged")
    hu = np.random.default_rng(0).integers(-1100, 2000, (16, 16, 16)).astype(np.int16)
    save_file({"hu": torch.from_numpy(hu)}, folder / "scan.safetensors")
    return folder


def test_strangers_get_the_same_report(work, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", STRANGER, str(work)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["transformers_modules transformers_modules"] * 2
    theirs = load_file(work / "outputs.safetensors")
    processor = VoxelFMReportProcessor.from_pretrained(work / "light")
    batch = processor(load_file(work / "scan.safetensors")["hu"], spacing=(2.0, 2.0, 2.0))
    model = VoxelFMForReportGeneration.from_pretrained(work / "light")
    ours = model.generate(**batch, max_new_tokens=6, do_sample=False)
    assert torch.equal(theirs["light"], ours) and torch.equal(theirs["merged"], ours)
