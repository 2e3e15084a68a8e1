"""Any vision encoder of the Hugging Face Hub, slice by slice: three neighbouring slices are the three channels."""

from typing import Any

import numpy as np
import torch

from voxelfm_hf.eval.encoders.base import Encoded, EncoderSetup, VolumeEncoder
from voxelfm_hf.eval.encoders.cubes import Preparation
from voxelfm_hf.eval.encoders.peer import weights_digest
from voxelfm_hf.hub import EMBEDDED
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry
from voxelfm_hf.scan_list import Region
from voxelfm_hf.volumes import Volume
from voxelfm_hf.volumes.errors import ModelError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SLICES_A_BATCH = 8


class Hub2DEncoder(VolumeEncoder):
    """Axial slices through a 2D encoder; the vector is the mean over slices, patches are the slices' own tokens.

    Args:
        model: Folder or Hub repository of a vision model of transformers.
        preparation: How scans are made isotropic.
        slices: Slices at even distances.
        window_hu: Mapped to the range of a picture.
    """

    def __init__(self, model: str, preparation: Preparation, *, slices: int, window_hu: tuple[float, float]):
        from transformers import AutoImageProcessor, AutoModel

        try:
            network = AutoModel.from_pretrained(model, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{model} cannot be loaded as a vision model: {str(error).splitlines()[0]}") from None
        self.network = getattr(network, "vision_model", network).eval()
        try:
            processor: Any = AutoImageProcessor.from_pretrained(model)
        except (OSError, ValueError, KeyError):
            processor = None
        config = self.network.config
        edge = getattr(config, "image_size", None) or 224
        self.edge = int(edge if isinstance(edge, int) else edge[0])
        self.mean = tuple(getattr(processor, "image_mean", None) or IMAGENET_MEAN)
        self.std = tuple(getattr(processor, "image_std", None) or IMAGENET_STD)
        self.patch = int(getattr(config, "patch_size", 0) or 0)
        self.gives_patches = self.patch > 0
        self.preparation, self.slices, self.window_hu = preparation, slices, tuple(window_hu)
        self.preprocessing = (
            f"{preparation.sentence}; then {slices} axial slices with their neighbours as three channels, "
            f"{window_hu[0]:g} to {window_hu[1]:g} HU, resized to {self.edge} pixels, mean over slices"
        )
        self.weights = weights_digest(self.network)

    def settings(self) -> dict[str, Any]:
        own = {"weights": self.weights, "slices": self.slices, "window_hu": self.window_hu, "edge": self.edge}
        return {**self.preparation.settings(), **own, "mean": self.mean, "std": self.std}

    @torch.inference_mode()
    def encode(self, volume: Volume, region: Region | None) -> Encoded:
        cube = self.preparation(volume, region)
        pictures = self._pictures(cube.hu)
        outputs = [self.network(pixel_values=part) for part in pictures.split(SLICES_A_BATCH)]
        vectors = torch.cat([self._vector(output) for output in outputs])
        geometry, patches = cube.geometry, None
        if self.gives_patches:
            side = self.edge // self.patch
            tokens = torch.cat([output.last_hidden_state[:, -side * side :] for output in outputs])
            patches = tokens.reshape(len(tokens), side, side, -1).numpy()
        grid = patches.shape[:3] if patches is not None else (1, 1, 1)
        extent = np.array(geometry.grid) * self.preparation.patch_size * geometry.spacing_mm
        spacing = tuple((extent / grid).tolist())
        own = VoxelFMGeometry(grid, geometry.region_start, geometry.region_stop, spacing, geometry.notes)
        return Encoded(vectors.mean(0).numpy(), own, 1, patches)

    def _pictures(self, hu: np.ndarray) -> torch.Tensor:
        """(slices, 3, edge, edge), normalised."""
        low, high = self.window_hu
        scaled = torch.from_numpy(hu).sub(low).div(high - low).clamp(0, 1)
        depth = len(scaled)
        middle = ((np.arange(self.slices) + 0.5) * depth / self.slices).astype(int)
        beside = [np.clip(middle + step, 0, depth - 1) for step in (-1, 0, 1)]
        pictures = torch.stack([scaled[rows] for rows in beside], dim=1)
        size = (self.edge, self.edge)
        pictures = torch.nn.functional.interpolate(pictures, size, mode="bilinear", antialias=True)
        return (pictures - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    @staticmethod
    def _vector(output: Any) -> torch.Tensor:
        """(b, C): the pooled output, or else the first token."""
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)


def make(
    setup: EncoderSetup, slices: int = 16, window_hu: tuple[float, float] = (-1000.0, 1000.0), prepare: str = EMBEDDED
) -> Hub2DEncoder:
    """The model of the setup.

    Args:
        setup: Its model is the 2D encoder.
        slices: Slices at even distances.
        window_hu: Mapped to the range of a picture.
        prepare: The VoxelFM model whose preparation is shared.
    """
    if not setup.model:
        raise ModelError("hub2d needs a model: a folder or Hub repository of a vision encoder")
    preparation = Preparation.of_setup(setup, model=prepare)
    return Hub2DEncoder(setup.model, preparation, slices=slices, window_hu=(float(window_hu[0]), float(window_hu[1])))
