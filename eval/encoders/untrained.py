"""The architecture of a VoxelFM model with weights as they are before any training."""

import hashlib
from pathlib import Path

import torch

from voxelfm_hf.eval.encoders.base import EncoderSetup
from voxelfm_hf.eval.encoders.voxelfm import VoxelFMEncoder
from voxelfm_hf.files import written_folder
from voxelfm_hf.hub import EMBEDDED, load, resolve_model


def make(setup: EncoderSetup, each_seed: bool = True) -> VoxelFMEncoder:
    """The untrained twin of the setup's model.

    Args:
        setup: Its seed fixes the weights.
        each_seed: Fresh weights for every seed of a benchmark; otherwise one draw serves all.
    """
    folder = untrained_model(resolve_model(setup.model or EMBEDDED), setup.work / "untrained", seed=setup.seed)
    return VoxelFMEncoder(setup, untrained=folder, seeded=each_seed)


def untrained_model(model: Path, out: Path, *, seed: int) -> Path:
    """A folder with the same architecture and image processor, and weights as they are before any training.

    Args:
        model: Folder of the trained model.
        out: Where the folder is made; one that is there already is used.
        seed: Fixes the weights.
    """
    from transformers import AutoModel

    network, processor = load(model, dtype=torch.float32)
    architecture = hashlib.sha256(repr(sorted(network.config.to_diff_dict().items())).encode()).hexdigest()[:8]
    folder = out / f"untrained-{architecture}-{seed}"
    if not (folder / "config.json").is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = AutoModel.from_config(network.config, dtype=torch.float32)
        with written_folder(folder) as part:
            fresh.save_pretrained(part)
            processor.save_pretrained(part)
    return folder
