"""M3D-CLIP (Bai et al. 2024): the image side of a 3D vision-language model on the Hub, code of its own repository."""

import torch

from voxelfm_hf.eval.encoders.base import EncoderSetup
from voxelfm_hf.eval.encoders.peer import PeerEncoder, PeerInput
from voxelfm_hf.volumes.errors import ModelError

REPOSITORY = "GoodBaiBai88/M3D-CLIP"


def _features(network: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return network.encode_image(pixels)[:, 0]  # type: ignore[operator]  # the first token of (1, 1 + patches, C)


def make(setup: EncoderSetup, trust_remote_code: bool = False) -> PeerEncoder:
    """The whole scan stretched over 32x256x256 voxels and mapped to 0 to 1, as its model card says.

    Args:
        setup: Its model may name a local copy.
        trust_remote_code: Has to be set: the repository brings its own code, which is run.
    """
    from transformers import AutoModel

    model = setup.model or REPOSITORY
    if not trust_remote_code:
        raise ModelError(f"the encoder m3d runs code of {model}: read it, then set options.trust_remote_code: true")
    try:
        network = AutoModel.from_pretrained(model, trust_remote_code=True)
    except Exception as error:
        raise ModelError(f"the encoder m3d cannot load {model} ({type(error).__name__}): download it first") from None
    return PeerEncoder("M3D-CLIP", network, _features, PeerInput((32, 256, 256), None))
