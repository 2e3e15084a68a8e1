"""Speed and memory of preparing a scan: the background box and the whole processor against the published way."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from voxelfm_hf.eval.speed.reading import noisy_ct
from voxelfm_hf.eval.speed.timing import in_fresh_process, interleaved_seconds
from voxelfm_hf.memory import peak_memory_bytes
from voxelfm_hf.modeling.background_voxelfm import background_box
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.resampling_voxelfm import budget_size, isotropic_size

Triple = tuple[int, int, int]
SPACING_MM = (1.0, 0.7, 0.7)


def dense_box(hu: np.ndarray, threshold: float = -800.0, kernel: int = 21) -> list[tuple[int, int]]:
    """The background box by a dense k^3 convolution, as published."""
    mask = torch.from_numpy(hu > threshold).float()[None, None]
    counts = F.conv3d(mask, torch.ones(1, 1, kernel, kernel, kernel), padding=kernel // 2)[0, 0]
    body = counts > kernel**3 / 2
    box = []
    for axis, n in enumerate(hu.shape):
        planes = body.amax([a for a in range(3) if a != axis]).nonzero()
        box.append((max(0, int(planes[0]) - kernel // 2), min(n, int(planes[-1]) + kernel // 2 + 1)))
    return box


def published_preparation(hu: np.ndarray, spacing: tuple[float, float, float], processor) -> torch.Tensor:
    """Dense box, one interpolation to cubic voxels, another to the patch budget, centre crop, normalisation."""
    hu = np.clip(hu, *processor.hu_range)
    hu = hu[tuple(slice(*side) for side in dense_box(hu, processor.background_hu, processor.background_kernel))]
    values = torch.from_numpy(hu).float()[None, None]
    isotropic = isotropic_size(hu.shape, spacing)
    values = F.interpolate(values, size=isotropic, mode="trilinear", align_corners=False)
    budget = budget_size(isotropic, processor.patch_size, processor.max_patches)
    if budget != isotropic:
        values = F.interpolate(values, size=budget, mode="trilinear", align_corners=False)
    z, y, x = (slice(n % processor.patch_size // 2, n - (n % processor.patch_size + 1) // 2) for n in budget)
    return (values[..., z, y, x] - processor.image_mean) / processor.image_std


@dataclass(frozen=True)
class PreparationSpeed:
    """Median seconds of ours and of the published way on the same volume."""

    name: str
    shape: Triple
    seconds: float
    published_seconds: float
    largest_difference: float

    def __str__(self) -> str:
        return (
            f"{self.name}, {'x'.join(map(str, self.shape))}: {self.seconds:.3f} s, published way "
            f"{self.published_seconds:.2f} s, ratio {self.published_seconds / self.seconds:.0f}, "
            f"largest difference {self.largest_difference:.1e}"
        )


def background_speed(shape: Triple, *, rounds: int = 3) -> PreparationSpeed:
    """Time the background box against the dense convolution.

    Args:
        shape: (D, H, W) of a synthetic CT.
        rounds: Alternating repetitions; the medians count.
    """
    hu = noisy_ct(shape)
    difference = np.abs(np.subtract(background_box(hu) or [], dense_box(hu) or [])).max()
    actions = {"ours": lambda: background_box(hu), "published": lambda: dense_box(hu)}
    seconds = interleaved_seconds(actions, rounds=rounds, warm_up=False)
    return PreparationSpeed("background box", shape, seconds["ours"], seconds["published"], float(difference))


def processor_speed(shape: Triple, *, rounds: int = 3) -> PreparationSpeed:
    """Time crop, resampling, patch budget and normalisation together against the published way.

    Args:
        shape: (D, H, W) of a synthetic CT of 1.0 x 0.7 x 0.7 mm.
        rounds: Alternating repetitions; the medians count.
    """
    hu, processor = noisy_ct(shape), VoxelFMImageProcessor()
    actions = {
        "ours": lambda: processor(hu, spacing=SPACING_MM)["pixel_values"],
        "published": lambda: published_preparation(hu, SPACING_MM, processor),
    }
    difference = (actions["ours"]() - actions["published"]()).abs().max().item()
    seconds = interleaved_seconds(actions, rounds=rounds, warm_up=False)
    return PreparationSpeed("whole preparation", shape, seconds["ours"], seconds["published"], difference)


def _peaks(shape: Triple) -> tuple[int, int, int]:
    """Peak bytes of this process: with the volume alone, after the background box, after the whole preparation."""
    hu = noisy_ct(shape)
    start = peak_memory_bytes()
    background_box(hu)
    box = peak_memory_bytes()
    VoxelFMImageProcessor()(hu, spacing=SPACING_MM)
    return start, box, peak_memory_bytes()


def preparation_memory(shape: Triple) -> tuple[int, int]:
    """Bytes needed beyond the volume by the background box, and by the whole preparation (its output included)."""
    start, box, whole = in_fresh_process(_peaks, shape)
    return box - start, whole - start
