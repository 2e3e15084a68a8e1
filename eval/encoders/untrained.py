"""The architecture of a VoxelFM model with weights as they are before any training."""

from voxelfm_hf.eval.encoders.base import EncoderSetup
from voxelfm_hf.eval.encoders.voxelfm import VoxelFMEncoder
from voxelfm_hf.eval.learned.features import untrained_model
from voxelfm_hf.hub import resolve_model


def make(setup: EncoderSetup, each_seed: bool = True) -> VoxelFMEncoder:
    """The untrained twin of the setup's model.

    Args:
        setup: Its seed fixes the weights.
        each_seed: Fresh weights for every seed of a benchmark; otherwise one draw serves all.
    """
    folder = untrained_model(resolve_model(setup.model or "tiny"), setup.work / "untrained", seed=setup.seed)
    return VoxelFMEncoder(setup, folder=folder, seeded=each_seed)
