"""What the adapters of other CT models share: a fixed input grid, its layout, a sentence where something is missing."""

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from voxelfm_hf.eval.encoders.base import Encoded, VolumeEncoder
from voxelfm_hf.eval.encoders.cubes import fixed_cube
from voxelfm_hf.scan_list import Region
from voxelfm_hf.volumes import Volume
from voxelfm_hf.volumes.errors import ModelError


@dataclass(frozen=True)
class PeerInput:
    """What a peer's network is fed with.

    Attributes:
        shape: (D, H, W) voxels; None keeps the grid of the scan.
        spacing_mm: (z, y, x); None keeps the scan's, or spreads the whole scan over the shape.
        hu_range: Clipped to, then mapped to `values`.
        values: Range of the network's input.
        order: Axes of the input in terms of (z, y, x): (2, 1, 0) is x, y, z.
        to_ras: Turn the y and x axes from LPS to RAS.
    """

    shape: tuple[int, int, int] | None
    spacing_mm: tuple[float, float, float] | None
    hu_range: tuple[float, float] = (-1000.0, 1000.0)
    values: tuple[float, float] = (0.0, 1.0)
    order: tuple[int, int, int] = (0, 1, 2)
    to_ras: bool = False


class PeerEncoder(VolumeEncoder):
    """Another CT model.

    Args:
        title: For messages and tables.
        network: Its torch module.
        features: (network, input (1, 1, ...)) -> (C,) vector of the scan.
        wanted: What it is fed with.
        region_shape: Grid of a region where `wanted.shape` is None.
    """

    def __init__(
        self,
        title: str,
        network: torch.nn.Module,
        features: Callable[[Any, torch.Tensor], torch.Tensor],
        wanted: PeerInput,
        *,
        region_shape: tuple[int, int, int] = (64, 128, 128),
    ):
        self.title, self.network, self.features, self.wanted = title, network.eval(), features, wanted
        self.region_shape = region_shape
        self.weights = weights_digest(network)
        shape = "the scan's own grid" if wanted.shape is None else "x".join(map(str, wanted.shape)) + " voxels"
        spacing = "" if wanted.spacing_mm is None else f" of {'x'.join(f'{s:g}' for s in wanted.spacing_mm)} mm"
        self.preprocessing = (
            f"{title}: {wanted.hu_range[0]:g} to {wanted.hu_range[1]:g} HU mapped to {wanted.values[0]:g} to "
            f"{wanted.values[1]:g}, {shape}{spacing} (z, y, x) round the centre; a region fills the grid"
        )

    def settings(self) -> dict[str, Any]:
        return {"title": self.title, "weights": self.weights, "input": repr(self.wanted), "region": self.region_shape}

    @torch.inference_mode()
    def encode(self, volume: Volume, region: Region | None) -> Encoded:
        wanted = self.wanted
        shape: Sequence[int] = wanted.shape or (volume.hu.shape if region is None else self.region_shape)
        extent = np.array(volume.spacing) * volume.hu.shape
        spacing = wanted.spacing_mm or tuple((extent / shape).tolist())
        cube = fixed_cube(volume, region, shape=shape, spacing_mm=spacing)
        hu = cube.hu[:, ::-1, ::-1] if wanted.to_ras else cube.hu
        (low, high), (first, last) = wanted.hu_range, wanted.values
        values = (np.clip(hu, low, high) - low) / (high - low) * (last - first) + first
        tensor = torch.from_numpy(np.ascontiguousarray(values.transpose(wanted.order), dtype=np.float32))[None, None]
        vector = self.features(self.network, tensor).float().flatten().cpu().numpy()
        return Encoded(vector, cube.geometry, 1)


def required(module: str, how: str, *, encoder: str) -> Any:
    """A peer's package, or a ModelError that says where to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) or module
        raise ModelError(f"the encoder {encoder} needs the package {missing}: {how}") from None


def loaded(network: torch.nn.Module, weights: str | None, *, encoder: str, prefix: str = "") -> torch.nn.Module:
    """Puts a state dict (safetensors, or a .pt read without unpickling objects) into a network.

    Args:
        network: The network.
        weights: Path of its weights.
        encoder: For messages.
        prefix: Only entries under it are used, without it.
    """
    if not weights:
        raise ModelError(f"the encoder {encoder} needs options.weights, the path of its published weights")
    try:
        if weights.endswith(".safetensors"):
            from safetensors.torch import load_file

            state: Any = load_file(weights)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state.get("model", state)) if isinstance(state, dict) else state
        chosen = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        network.load_state_dict(chosen)
    except FileNotFoundError:
        raise ModelError(f"the encoder {encoder}: {weights} does not exist") from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the encoder {encoder}: {weights} does not fit its network: {reason}") from None
    return network


def weights_digest(network: torch.nn.Module) -> str:
    """SHA-256 of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        data = value.detach().cpu().contiguous().flatten()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(memoryview(data.view(torch.uint8).numpy()) if data.numel() else b"")
    return digest.hexdigest()
