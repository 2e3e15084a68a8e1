"""COLIPRI (Wald et al. 2026): package colipri, the pooled image embedding of a chest vision-language model."""

from typing import Any

import torch

from voxelfm_hf.eval.encoders.base import EncoderSetup
from voxelfm_hf.eval.encoders.peer import PeerEncoder, PeerInput, required
from voxelfm_hf.volumes.errors import ModelError


def _features(network: Any, pixels: torch.Tensor) -> torch.Tensor:
    return network.encode_image(pixels, pool=True, project=True)[0]


def make(setup: EncoderSetup, pretrained: bool = True) -> PeerEncoder:
    """192 voxels of 2 mm an edge, axes S, A, R, HU mapped to -1 to 1, as its processor does.

    Args:
        setup: Its seed fixes random weights.
        pretrained: Load the published weights; random ones otherwise.
    """
    package = required("colipri", "pip install colipri", encoder="colipri")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)
            network = package.get_model(pretrained=pretrained, image_only=True)
    except Exception as error:
        raise ModelError(f"the encoder colipri cannot be made ({type(error).__name__}: {error})") from None
    wanted = PeerInput((192, 192, 192), (2.0, 2.0, 2.0), values=(-1.0, 1.0), to_ras=True)
    return PeerEncoder("COLIPRI", network, _features, wanted)
