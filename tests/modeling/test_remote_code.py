"""A saved folder loads with `trust_remote_code=True` where this package cannot be imported, with equal outputs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMBackbone, VoxelFMModel

# Run by an isolated interpreter in which `import voxelfm_hf` fails even if it is installed.
STRANGER = """
import sys
sys.modules["voxelfm_hf"] = None
from pathlib import Path
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.modeling_auto import MODEL_MAPPING

torch.set_num_threads(1)
work = Path(sys.argv[1])
inputs = load_file(work / "inputs.safetensors")
outputs = {}

def load(folder, name):
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    pixel_values = processor(inputs["hu"], spacing=[float(s) for s in inputs["spacing"]])["pixel_values"]
    with torch.no_grad():
        tokens = model(pixel_values).last_hidden_state
    outputs.update({f"{name}.pixel_values": pixel_values, f"{name}.tokens": tokens})
    return model, processor

model, processor = load(work / "saved", "saved")
model.save_pretrained(work / "again")
processor.save_pretrained(work / "again")
load(work / "again", "again")

config = AutoConfig.from_pretrained(work / "saved", trust_remote_code=True)
backbone_class = get_class_from_dynamic_module(config.auto_map["AutoBackbone"], str(work / "saved"))
backbone = backbone_class.from_pretrained(work / "saved").eval()
with torch.no_grad():
    outputs["backbone.feature_map"] = backbone(outputs["saved.pixel_values"]).feature_maps[0]
    fresh = AutoBackbone.from_config(config, trust_remote_code=True).eval()
    fresh.load_state_dict(model.state_dict())
    outputs["from_config.feature_map"] = fresh(outputs["saved.pixel_values"]).feature_maps[0]
save_file({name: value.contiguous() for name, value in outputs.items()}, work / "outputs.safetensors")

print(type(model).__module__.split(".")[0], config.model_type)
try:
    AutoModel.from_pretrained(work / "saved", trust_remote_code=False)
except ValueError as error:
    print("refused without trust")
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a saved model and processor, and the inputs for it."""
    folder = tmp_path_factory.mktemp("remote")
    torch.manual_seed(0)
    config = VoxelFMConfig(
        hidden_size=48, num_attention_heads=2, num_hidden_layers=2, patch_size=4, layerscale_value=1.0
    )
    model = VoxelFMModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "saved")
    VoxelFMImageProcessor(patch_size=4, max_patches=60, background_kernel=5).save_pretrained(folder / "saved")
    hu = np.random.default_rng(0).integers(-1100, 2000, (20, 30, 40)).astype(np.int16)
    inputs = {"hu": torch.from_numpy(hu), "spacing": torch.tensor([2.0, 1.0, 1.0])}
    save_file(inputs, folder / "inputs.safetensors")
    return folder


@pytest.fixture(scope="module")
def stranger(work, tmp_path_factory) -> tuple[str, dict[str, torch.Tensor]]:
    """What the process without the package printed and computed."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(elsewhere / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", STRANGER, str(work)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=elsewhere, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, load_file(work / "outputs.safetensors")


def test_the_code_comes_from_the_folder_and_only_with_consent(stranger):
    assert stranger[0].splitlines() == ["transformers_modules voxelfm", "refused without trust"]


@torch.no_grad()
def test_outputs_are_those_of_the_installed_package_bit_for_bit(work, stranger):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inputs = load_file(work / "inputs.safetensors")
        processor = VoxelFMImageProcessor.from_pretrained(work / "saved")
        pixel_values = processor(inputs["hu"], spacing=inputs["spacing"].tolist())["pixel_values"]
        tokens = VoxelFMModel.from_pretrained(work / "saved")(pixel_values).last_hidden_state
        feature_map = VoxelFMBackbone.from_pretrained(work / "saved")(pixel_values).feature_maps[0]
    finally:
        torch.set_num_threads(threads)
    _, theirs = stranger
    for name in ("saved", "again"):
        assert torch.equal(theirs[f"{name}.pixel_values"], pixel_values)
        assert torch.equal(theirs[f"{name}.tokens"], tokens)
    for name in ("backbone", "from_config"):
        assert torch.equal(theirs[f"{name}.feature_map"], feature_map)


def test_saved_folders_hold_the_code_they_load_with(work, stranger):
    names = ("configuration_voxelfm", "modeling_voxelfm", "image_processing_voxelfm", "background_voxelfm")
    code = {f"{name}.py" for name in (*names, "resampling_voxelfm")}
    for name in ("saved", "again"):
        assert code <= {path.name for path in (work / name).iterdir()}
        assert all("voxelfm_hf" not in line for file in code for line in imports_of(work / name / file))


def imports_of(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith(("from ", "import "))]


def test_a_folder_saved_as_backbone_loads_as_model_too(tmp_path):
    backbone = VoxelFMBackbone(VoxelFMConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=1, patch_size=4))
    backbone.save_pretrained(tmp_path)
    assert VoxelFMConfig.from_pretrained(tmp_path).auto_map == VoxelFMConfig().auto_map
