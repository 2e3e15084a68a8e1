"""The Auto classes know VoxelFM after `import voxelfm_hf`, in any order of imports and without loading torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import voxelfm_hf
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel

ROOT = Path(__file__).parents[2]

USE = """
import json, sys
folder = sys.argv[1]
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel
config = AutoConfig.from_pretrained(folder)
classes = [
    config, AutoModel.from_pretrained(folder), AutoModel.from_config(config), AutoBackbone.from_config(config),
    AutoImageProcessor.from_pretrained(folder), AutoConfig.for_model("voxelfm"),
]
print(json.dumps([f"{type(c).__module__}.{type(c).__name__}" for c in classes]))
"""
EXPECTED = [
    "voxelfm_hf.modeling.configuration_voxelfm.VoxelFMConfig",
    "voxelfm_hf.modeling.modeling_voxelfm.VoxelFMModel",
    "voxelfm_hf.modeling.modeling_voxelfm.VoxelFMModel",
    "voxelfm_hf.modeling.modeling_voxelfm.VoxelFMBackbone",
    "voxelfm_hf.modeling.image_processing_voxelfm.VoxelFMImageProcessor",
    "voxelfm_hf.modeling.configuration_voxelfm.VoxelFMConfig",
]


def run_python(code: str, *arguments) -> str:
    """Standard output of a fresh process that can import the package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    config = VoxelFMConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=1, patch_size=4)
    VoxelFMModel(config).save_pretrained(path)
    VoxelFMImageProcessor(patch_size=4).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "imports",
    [
        "import importlib, voxelfm_hf\nimportlib.reload(voxelfm_hf)",
        "from transformers import AutoModel, AutoConfig, AutoBackbone, AutoImageProcessor, pipeline\nimport voxelfm_hf",
        "import voxelfm_hf.modeling.image_processing_voxelfm",
        # It imports Auto classes while another module that is registered with them imports it.
        "import voxelfm_hf.modeling.parts_voxelfm_report",
    ],
    ids=["before (twice)", "after", "one of its modules", "a part of the report model"],
)
def test_auto_classes_find_the_package_whatever_is_imported_first(folder, imports):
    assert json.loads(run_python(imports + USE, folder).splitlines()[-1]) == EXPECTED


def test_import_loads_none_of_the_heavy_libraries():
    code = """
import sys
import voxelfm_hf
heavy = {"torch", "transformers", "SimpleITK", "datasets", "nibabel", "pydicom", "matplotlib", "numpy"}
print(sorted(heavy & set(sys.modules)), voxelfm_hf.__version__)
"""
    assert run_python(code).startswith("[] 0.")


def test_every_export_resolves_and_others_do_not():
    assert {"VoxelFMModel", "VoxelFMImageProcessor", "load", "read_volume"} <= set(dir(voxelfm_hf))
    assert all(getattr(voxelfm_hf, name) is not None for name in voxelfm_hf.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        voxelfm_hf.no_such_name  # noqa: B018
