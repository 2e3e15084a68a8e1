"""Merlin (Blankemeier et al. 2024): the image embedding of its abdominal vision-language model, package merlin-vlm."""

import torch

from voxelfm_hf.eval.encoders.base import EncoderSetup
from voxelfm_hf.eval.encoders.peer import PeerEncoder, PeerInput, required
from voxelfm_hf.volumes.errors import ModelError


def _features(network: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    found = network(pixels)
    return (found[0] if isinstance(found, (tuple, list)) else found)[0]


def make(setup: EncoderSetup) -> PeerEncoder:
    """The published weights, which the package downloads by itself (about 1 GB)."""
    package = required("merlin", "pip install merlin-vlm", encoder="merlin")
    try:
        network = package.Merlin(ImageEmbedding=True)
    except Exception as error:
        raise ModelError(f"the encoder merlin cannot get its weights ({type(error).__name__}): download them") from None
    wanted = PeerInput((160, 224, 224), (3.0, 1.5, 1.5), order=(2, 1, 0), to_ras=True)
    return PeerEncoder("Merlin", network, _features, wanted)
