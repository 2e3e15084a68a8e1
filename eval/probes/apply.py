"""From a scan to a clinical answer: the backbone that a probe names, the probe, and what it says in words and units."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.answer import Answer, EncodedScan
from voxelfm_hf.eval.tasks.fitting import said_extents
from voxelfm_hf.features.likeness import patch_box
from voxelfm_hf.features.tiles import encode
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry
from voxelfm_hf.probe_model import load_with_probe
from voxelfm_hf.scan_list import Region
from voxelfm_hf.volumes import Volume

# Patients and tables differ by less in size than this; a crop of a nodule and a whole chest by more.
UNLIKE_TIMES = 2


class ProbeReader:
    """A probe with its backbone and image processor, ready for scans.

    Args:
        probe: Folder or Hub repository of the probe, or of a `VoxelFMForImageClassification`.
        model: Folder or Hub repository of the backbone; by default the one the probe names.
        device: Where to compute.

    Raises:
        ModelError: the backbone cannot be found, or has other weights than the probe was fitted on.
    """

    def __init__(self, probe: str | Path, *, model: str | Path | None = None, device: str = "cpu"):
        self.probe, network, self.processor = load_with_probe(probe, model=model)
        self.network = network.to(device)
        self.probe.to(device)  # type: ignore[arg-type]
        self.device = device
        settings = self.probe.config.processor or {}
        self.region_size: int | None = settings.get("region_size")
        self.tile: int | None = settings.get("tile")

    @torch.inference_mode()
    def answer(self, volume: Volume, *, region: Region | None = None) -> Answer:
        """What the probe says about a scan, or about a region of it for a probe that was fitted on regions.

        Args:
            volume: The scan.
            region: The cube to look at.

        Raises:
            ValueError: a scan that cannot be prepared; a region for a probe of whole scans, or none for one of regions.
        """
        if region is None and self.region_size:
            raise ValueError("the probe was fitted on regions: say where to look (--regions, or --point X,Y,Z,EDGE)")
        if region is None:
            prepared = self.processor(volume, return_geometry=True)
            voxels, geometry = prepared["pixel_values"][0], prepared["geometry"][0]
        elif self.region_size is None:
            raise ValueError("the probe was fitted on whole scans: leave the region out")
        else:
            voxels, geometry = self.processor.prepare_region(
                volume, region.centre_lps, region.edge_mm, self.region_size
            )
        cls, patches = encode(self.network, voxels[None].to(self.device), tile=None if region else self.tile)
        scan = EncodedScan(volume, cls, patches, volume.affine @ geometry.patch_to_voxel())
        answer: Answer = load_task(self.probe.config.task).answer(self.probe, scan)
        asked = None if region is None else patch_box(geometry)
        return replace(answer, region=asked, notes=(*geometry.notes, *self._unlike_training(geometry), *answer.notes))

    def _unlike_training(self, geometry: VoxelFMGeometry) -> list[str]:
        """A note where the scan shows much less or much more than the scans that the probe was fitted on."""
        known = (self.probe.config.fit or {}).get("field_of_view_mm")
        if known is None:
            return []
        extent = np.array(geometry.grid) * self.processor.patch_size * np.array(geometry.spacing_mm)
        low, high = np.array(known)
        if (extent >= low / UNLIKE_TIMES).all() and (extent <= high * UNLIKE_TIMES).all():
            return []
        return [f"it covers {said_extents(extent)}, the scans that the probe was fitted on {said_extents(low, high)}"]
