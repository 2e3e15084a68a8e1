"""RadFM (Wu et al. 2023): the 3D ViT of the radiology generalist, mean over its tokens.

Needs the repository's `src` on the Python path (module `Model.RadFM.vit_3d`). The CT channel is repeated to three. The
published code picks a size for each image; here a scan is stretched over 64 slices of 256x256 pixels, values 0 to 1.
"""

import torch

from voxelfm_hf.eval.encoders.base import EncoderSetup
from voxelfm_hf.eval.encoders.peer import PeerEncoder, PeerInput, loaded, required

HOW = "clone https://github.com/chaoyi-wu/RadFM and put its folder src on PYTHONPATH"
SIZES = {"image_size": 512, "frames": 512, "image_patch_size": 32, "frame_patch_size": 4}
DEPTHS = {"dim": 768, "depth": 12, "heads": 8, "mlp_dim": 2048, "dropout": 0.1, "emb_dropout": 0.1}


def _features(network: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    tokens, _ = network(pixels.expand(-1, 3, -1, -1, -1))  # (1, 3, H, W, D) -> (1, patches, C), positions
    return tokens.mean(1)


def make(setup: EncoderSetup, weights: str | None = None) -> PeerEncoder:
    """The vision encoder of a RadFM checkpoint.

    Args:
        setup: Not used.
        weights: pytorch_model.bin of RadFM.
    """
    network = required("Model.RadFM.vit_3d", HOW, encoder="radfm").ViT(**SIZES, **DEPTHS)
    network = loaded(network, weights, encoder="radfm", prefix="embedding_layer.vision_encoder.")
    return PeerEncoder("RadFM", network, _features, PeerInput((64, 256, 256), None, order=(1, 2, 0)))
