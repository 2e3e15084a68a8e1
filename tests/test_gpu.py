"""On an NVIDIA GPU: the published tokens, features and training steps as on the CPU, exact resume, sharded training.

Most other tests compute on a GPU too where there is one, as the commands do.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import voxelfm_hf
from tests.modeling.published_tokens import VARIANTS, published_tokens
from tests.training.killed_run import KILLED_RUN
from tests.training.small_shards import write_shards
from voxelfm_hf.convert import convert_checkpoint
from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe
from voxelfm_hf.training.run_folder import LOG_FILE, RunLog

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

FSDP2 = Path(sys.modules[PretrainRecipe.__module__].__file__).parents[1] / "launchers" / "fsdp2.yaml"


def command(*words: object, device: str = "cuda") -> None:
    """Runs a Python module of the package on a device, in a process of its own."""
    settings = {"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=VARIANTS)
def published(request, parity, tmp_path_factory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A converted checkpoint, a volume, and the tokens [CLS, registers, patches] the published code makes of it."""
    source = parity / "backbone" / request.param
    folder = tmp_path_factory.mktemp("converted") / request.param
    convert_checkpoint(source / "checkpoint.pth", source / "config.yaml", folder)
    tensors = load_file(source / "case.safetensors")
    case = {name.removeprefix("case0."): tensor for name, tensor in tensors.items() if name.startswith("case0.")}
    return folder, case["input.volume"].float(), published_tokens(case, "output")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_every_token_is_the_published_one(published, implementation):
    folder, volume, tokens = published
    model = VoxelFMModel.from_pretrained(folder, attn_implementation=implementation).cuda()
    torch.testing.assert_close(model(volume.cuda()).last_hidden_state.cpu(), tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", ["weights", "autocast"])
@torch.no_grad()
def test_bf16_features_point_the_published_way(published, how):
    folder, volume, tokens = published
    model = VoxelFMModel.from_pretrained(folder, dtype=torch.bfloat16 if how == "weights" else torch.float32).cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=how == "autocast"):
        ours = model(volume.cuda()).last_hidden_state
    assert torch.nn.functional.cosine_similarity(ours.float().cpu(), tokens, dim=-1).min() >= 0.9999


def test_gradients_are_those_of_the_cpu(published):
    folder, volume, _ = published
    gradients = {}
    for device in ("cpu", "cuda"):
        model = VoxelFMModel.from_pretrained(folder).to(device)
        model(volume.to(device)).last_hidden_state.square().mean().backward()
        gradients[device] = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    assert gradients["cpu"].keys() == gradients["cuda"].keys()
    for name, gradient in gradients["cpu"].items():
        torch.testing.assert_close(gradients["cuda"][name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_a_store_made_on_the_gpu_is_that_of_the_cpu(tmp_path, dtype, bound):
    write_nifti(make_phantom(0, shape=(48, 64, 64)).volume, tmp_path / "chest.nii.gz")
    stores = []
    for device, used in (("cpu", "float32"), ("cuda", dtype)):
        store = tmp_path / f"store-{device}"
        command(
            "voxelfm_hf.cli",
            "embed",
            tmp_path / "chest.nii.gz",
            "--patches",
            "--dtype",
            used,
            "--out",
            store,
            device=device,
        )
        stores.append(FeatureStore(store))
    np.testing.assert_allclose(stores[1].cls, stores[0].cls, atol=bound, rtol=0)
    grids = [store.patches("chest.nii.gz").astype(np.float32) for store in stores]
    assert grids[0].shape == grids[1].shape
    norms = [np.linalg.norm(grid, axis=-1) for grid in grids]
    assert ((grids[0] * grids[1]).sum(-1) / (norms[0] * norms[1])).min() > 0.999


def pretrain_words(folder: Path, output: str, *more: object) -> tuple[object, ...]:
    return ("smoke", "--data", folder / "shards", "--output_dir", folder / output, "--min_side", 4, *more)


def test_pretraining_goes_on_where_it_was(tmp_path):
    write_shards(tmp_path / "shards", number=10, side=32)
    launch = ("accelerate.commands.launch", "-m", "voxelfm_hf.training.pretrain")
    precision = ("--run.mixed_precision", "bf16", "--run.checkpoint_every", 2, "--run.log_every", 1)
    command(*launch, *pretrain_words(tmp_path, "whole", *precision, "--run.total_steps", 4))
    words = [*map(str, pretrain_words(tmp_path, "resumed", *precision, "--run.total_steps", 4))]
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, *words], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    command(*launch, *words)
    whole, resumed = (load_file(tmp_path / name / "teacher" / "model.safetensors") for name in ("whole", "resumed"))
    # Equal bit for bit on an H100; the backward pass of fused attention may add in another order elsewhere.
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, atol=1e-3, rtol=0)
    losses = [RunLog(tmp_path / name / LOG_FILE).entries() for name in ("whole", "resumed")]
    assert [entry["step"] for entry in losses[0]] == [entry["step"] for entry in losses[1]] == [1, 2, 3, 4]
    for first, second in zip(*losses, strict=True):
        assert second["total"] == pytest.approx(first["total"], rel=0.02)


def test_sharded_training_makes_a_model(tmp_path):
    write_shards(tmp_path / "shards", number=10, side=32)
    launch = ("accelerate.commands.launch", "--config_file", FSDP2, "--num_processes", 1)
    words = pretrain_words(tmp_path, "run", "--run.total_steps", 4, "--run.checkpoint_every", 2, "--run.log_every", 1)
    command(*launch, "-m", "voxelfm_hf.training.pretrain", *words, "--run.mixed_precision", "bf16")
    model, processor = voxelfm_hf.load(tmp_path / "run" / "teacher")
    features = model(**processor(make_phantom(0, shape=(48, 64, 64)).volume)).pooler_output
    assert features.isfinite().all()
