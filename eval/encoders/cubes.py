"""What baselines and peers see of a scan: the very cube that a VoxelFM model gets, or a grid of fixed spacing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from voxelfm_hf.eval.encoders.base import EncoderSetup
from voxelfm_hf.features.tiles import TILED_BUDGET
from voxelfm_hf.hub import EMBEDDED, load
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry, VoxelFMImageProcessor
from voxelfm_hf.scan_list import Region
from voxelfm_hf.volumes import Volume

# Beyond a scan, in grids of fixed shape.
OUTSIDE_HU = -1000.0


@dataclass(frozen=True, eq=False)
class Cube:
    """Prepared voxels in HU (D, H, W) float32, and where they lie in the scan."""

    hu: np.ndarray
    geometry: VoxelFMGeometry


@dataclass(frozen=True)
class Preparation:
    """Scans prepared as one model gets them.

    Attributes:
        processor: Its image processor, with the benchmark's patch budget.
        region_size: Edge in voxels of a region's cube.
        title: The model's name, for the sentence on preprocessing.
    """

    processor: VoxelFMImageProcessor
    region_size: int
    title: str

    @classmethod
    def of_setup(cls, setup: EncoderSetup, *, model: str | None = None) -> "Preparation":
        """How a benchmark prepares scans like a model: that of the setup, or another one."""
        model = model or setup.model or EMBEDDED
        network, processor = load(model)
        processor.max_patches = setup.max_patches or (TILED_BUDGET if setup.tile else processor.max_patches)
        processor.voxel_mm = setup.voxel_mm or processor.voxel_mm
        size = setup.region_size or network.config.image_size
        return cls(processor, size, model.rstrip("/").rsplit("/", 1)[-1])

    @property
    def patch_size(self) -> int:
        """Edge of a patch in voxels."""
        return self.processor.patch_size

    @property
    def sentence(self) -> str:
        """What becomes of a scan."""
        p = self.processor
        size = f"voxels of {p.voxel_mm:g} mm" if p.voxel_mm else "isotropic"
        return (
            f"as for {self.title}: clipped to {p.hu_range[0]:g} to {p.hu_range[1]:g} HU, whole scans cropped to the "
            f"body, {size}, at most {p.max_patches} patches of {p.patch_size} voxels; regions resampled to "
            f"{self.region_size} voxels an edge"
        )

    def settings(self) -> dict:
        """What changes the voxels."""
        p = self.processor
        names = ("hu_range", "patch_size", "max_patches", "min_spacing_mm", "crop_background", "background_hu")
        fixed = {"voxel_mm": p.voxel_mm} if p.voxel_mm else {}
        return {**{name: getattr(p, name) for name in names}, **fixed, "region_size": self.region_size}

    def __call__(self, volume: Volume, region: Region | None) -> Cube:
        """The voxels in HU of a scan, or of a region."""
        p = self.processor
        if region is None:
            found = p(volume, return_geometry=True)
            values, geometry = found["pixel_values"][0], found["geometry"][0]
        else:
            values, geometry = p.prepare_region(volume, region.centre_lps, region.edge_mm, self.region_size)
        return Cube(values[0].numpy() * p.image_std + p.image_mean, geometry)


def fixed_cube(volume: Volume, region: Region | None, *, shape: Sequence[int], spacing_mm: Sequence[float]) -> Cube:
    """A grid of fixed shape and spacing round the centre of a scan; a region fills it with its own edge instead.

    Args:
        volume: The scan.
        region: A region, or None.
        shape: (D, H, W) voxels of the result.
        spacing_mm: (z, y, x) mm of a voxel, for whole scans.

    Returns:
        Trilinearly sampled voxels, air beyond the scan; the geometry has one patch, the whole grid.
    """
    size = np.array(shape, dtype=float)
    if region is None:
        centre, step = (np.array(volume.hu.shape) - 1) / 2, np.array(spacing_mm, dtype=float)
    else:
        centre, step = np.linalg.solve(volume.affine, [*region.centre_lps, 1.0])[:3], region.edge_mm / size
    half = size * step / 2 / np.array(volume.spacing)  # in voxels of the scan
    starts, stops = centre + 0.5 - half, centre + 0.5 + half
    axes = [
        torch.from_numpy(2 * (start + (np.arange(int(n)) + 0.5) * (stop - start) / n) / length - 1)
        for start, stop, n, length in zip(starts, stops, size, volume.hu.shape, strict=True)
    ]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    source = torch.from_numpy(volume.hu.astype(np.float32))[None, None] - OUTSIDE_HU
    places = torch.stack([x, y, z], dim=-1)[None].float()
    values = torch.nn.functional.grid_sample(source, places, padding_mode="zeros", align_corners=False)
    geometry = VoxelFMGeometry((1, 1, 1), tuple(starts.tolist()), tuple(stops.tolist()), tuple(step.tolist()))
    return Cube(values[0, 0].numpy() + OUTSIDE_HU, geometry)


def one_patch(geometry: VoxelFMGeometry) -> VoxelFMGeometry:
    """The same field of view as a single patch, for encoders that have no grid."""
    z, y, x = (n * mm for n, mm in zip(geometry.grid, geometry.spacing_mm, strict=True))
    return VoxelFMGeometry((1, 1, 1), geometry.region_start, geometry.region_stop, (z, y, x), geometry.notes)
