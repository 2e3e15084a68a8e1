"""Voxel spacing and field of view only: nothing of the patient, all of the acquisition."""

from typing import Any

import numpy as np

from voxelfm_hf.eval.encoders.base import Encoded, EncoderSetup, VolumeEncoder
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry
from voxelfm_hf.scan_list import Region
from voxelfm_hf.volumes import Volume


class SpacingEncoder(VolumeEncoder):
    """Logarithms of spacing, size and extent of the file that a scan or region lies in."""

    is_baseline = True
    preprocessing = "no voxel is looked at: logarithms of voxel spacing, grid size and field of view of the file"

    def settings(self) -> dict[str, Any]:
        return {"features": "log spacing, log size, log extent"}

    def encode(self, volume: Volume, region: Region | None) -> Encoded:
        spacing, size = np.array(volume.spacing), np.array(volume.hu.shape)
        extent = spacing * size
        depth, height, width = map(float, size)
        z, y, x = extent.tolist()
        geometry = VoxelFMGeometry((1, 1, 1), (0.0, 0.0, 0.0), (depth, height, width), (z, y, x))
        return Encoded(np.log([*spacing, *size, *extent, extent.prod()]), geometry, 1)


def make(setup: EncoderSetup) -> SpacingEncoder:
    """The same for every setup."""
    return SpacingEncoder()
