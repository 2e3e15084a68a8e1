"""Intensity statistics: what Hounsfield units alone tell, without any shape."""

from typing import Any

import numpy as np

from voxelfm_hf.eval.encoders.base import Encoded, EncoderSetup, VolumeEncoder
from voxelfm_hf.eval.encoders.cubes import Preparation
from voxelfm_hf.scan_list import Region
from voxelfm_hf.volumes import Volume

HISTOGRAM_EDGES_HU = np.linspace(-1000, 1000, 33)
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
# Air, lung, fat, soft tissue, contrast and calcium, bone.
BAND_EDGES_HU = (-950.0, -500.0, -20.0, 150.0, 400.0)


class IntensityEncoder(VolumeEncoder):
    """Histogram, moments and percentiles of the voxels; for patches their local counterparts."""

    gives_patches = True
    is_baseline = True

    def __init__(self, preparation: Preparation):
        self.preparation = preparation
        self.preprocessing = f"{preparation.sentence}; then HU histogram, moments and percentiles, also by patch"

    def settings(self) -> dict[str, Any]:
        return {**self.preparation.settings(), "percentiles": PERCENTILES, "bands_hu": BAND_EDGES_HU}

    def encode(self, volume: Volume, region: Region | None) -> Encoded:
        cube = self.preparation(volume, region)
        p = self.preparation.patch_size
        return Encoded(intensity_vector(cube.hu), cube.geometry, p, patch_statistics(cube.hu, p))


def intensity_vector(hu: np.ndarray) -> np.ndarray:
    """(45,): the histogram, skewness, kurtosis and nine percentiles."""
    deviation = (hu - hu.mean()) / max(float(hu.std()), 1e-6)
    moments = [(deviation**3).mean(), (deviation**4).mean()]
    return np.array([*histogram(hu), *moments, *np.percentile(hu, PERCENTILES)])


def histogram(hu: np.ndarray) -> np.ndarray:
    """(34,): the square roots of the shares of 32 bins in [-1000, 1000] HU, mean and standard deviation in HU.

    Values beyond count in the outer bins; roots bring the many small shares to one scale.
    """
    counts, _ = np.histogram(np.clip(hu, HISTOGRAM_EDGES_HU[0], HISTOGRAM_EDGES_HU[-1]), HISTOGRAM_EDGES_HU)
    return np.array([*np.sqrt(counts / hu.size), hu.mean(), hu.std()])


def patch_statistics(hu: np.ndarray, patch_size: int) -> np.ndarray:
    """(d, h, w, 16): of each patch mean, deviation, extremes, quartiles, mean gradient along z, y, x, shares of six
    bands of tissue; HU in units of 1000. The width is a multiple of 4, as heads with attention need.
    """
    p = patch_size
    d, h, w = (n // p for n in hu.shape)
    kilo = hu / 1000

    def blocks(values: np.ndarray) -> np.ndarray:
        return values.reshape(d, p, h, p, w, p).transpose(0, 2, 4, 1, 3, 5).reshape(d, h, w, p**3)

    voxels = blocks(kilo)
    columns = [voxels.mean(-1), voxels.std(-1), voxels.min(-1), voxels.max(-1)]
    columns += list(np.percentile(voxels, (25, 50, 75), axis=-1))
    columns += [blocks(np.abs(np.gradient(kilo, axis=axis))).mean(-1) for axis in range(3)]
    band = np.digitize(voxels * 1000, BAND_EDGES_HU)
    columns += [(band == number).mean(-1) for number in range(len(BAND_EDGES_HU) + 1)]
    return np.stack(columns, axis=-1).astype(np.float32)


def make(setup: EncoderSetup) -> IntensityEncoder:
    """Statistics of the cubes that the setup's model sees."""
    return IntensityEncoder(Preparation.of_setup(setup))
