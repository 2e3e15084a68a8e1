"""SPECTRE (Claessens et al. 2025): package spectre-fm, the scan vector of its crop encoder and feature combiner."""

import torch

from voxelfm_hf.eval.encoders.base import EncoderSetup
from voxelfm_hf.eval.encoders.peer import PeerEncoder, PeerInput, required
from voxelfm_hf.volumes.errors import ModelError


def _features(network: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return network(pixels[0])[0]  # a raw scan (1, H, W, D) in HU -> (1 + crops, C); the first token is the scan's


def make(setup: EncoderSetup, preset: str = "spectre-large", pretrained: bool = True) -> PeerEncoder:
    """A named SPECTRE model, on the scan's own grid in RAS; it windows and cuts crops of 128x128x64 by itself.

    Args:
        setup: Its seed fixes random weights.
        preset: Name of the architecture.
        pretrained: Load the published weights; random ones otherwise.
    """
    package = required("spectre", "pip install spectre-fm", encoder="spectre")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)
            network = package.SpectreImageFeatureExtractor.from_pretrained(preset, pretrained=pretrained)
    except Exception as error:
        raise ModelError(f"the encoder spectre cannot make {preset} ({type(error).__name__}: {error})") from None
    raw = PeerInput(None, None, hu_range=(-1000.0, 1000.0), values=(-1000.0, 1000.0), order=(2, 1, 0), to_ras=True)
    return PeerEncoder("SPECTRE", network, _features, raw)
