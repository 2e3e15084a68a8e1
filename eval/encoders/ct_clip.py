"""CT-CLIP (Hamamci et al. 2024): the CT-ViT image encoder, mean over its tokens.

Needs the repository's `transformer_maskgit` package and a GPU (the published code asks for "cuda" inside). Chest CT of
480x480x240 voxels of 0.75x0.75x1.5 mm in HU / 1000. The orientation of its training files is not documented: slices are
fed from feet to head, rows to the back, columns to the patient's left.
"""

import torch

from voxelfm_hf.eval.encoders.base import EncoderSetup
from voxelfm_hf.eval.encoders.peer import PeerEncoder, PeerInput, loaded, required

HOW = "install it from https://github.com/ibrahimethemhamamci/CT-CLIP (folder transformer_maskgit)"
SIZES = {"dim": 512, "codebook_size": 8192, "image_size": 480, "patch_size": 30, "temporal_patch_size": 15}
DEPTHS = {"spatial_depth": 4, "temporal_depth": 4, "dim_head": 32, "heads": 8}


def _features(network: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return network(pixels, return_encoded_tokens=True).flatten(1, 3).mean(1)  # (1, t, h, w, C)


def make(setup: EncoderSetup, weights: str | None = None) -> PeerEncoder:
    """The image encoder of a CT-CLIP checkpoint.

    Args:
        setup: Not used.
        weights: CT-CLIP_v2.pt, from the data set ibrahimhamamci/CT-RATE on the Hub.
    """
    network = required("transformer_maskgit", HOW, encoder="ct_clip").CTViT(**SIZES, **DEPTHS)
    network = loaded(network, weights, encoder="ct_clip", prefix="visual_transformer.")
    wanted = PeerInput((240, 480, 480), (1.5, 0.75, 0.75), values=(-1.0, 1.0))
    return PeerEncoder("CT-CLIP", network, _features, wanted)
