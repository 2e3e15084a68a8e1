"""Radiomics-like descriptors: first order, co-occurrence texture, edges and the shape of the dense part.

Like radiomics, not the IBSI standard: there is no contour at prediction time, so shape is that of the central connected
part above a threshold (a nodule and what touches it, or the body of a whole scan).
"""

from typing import Any

import numpy as np
from scipy import ndimage

from voxelfm_hf.eval.encoders.base import Encoded, EncoderSetup, VolumeEncoder
from voxelfm_hf.eval.encoders.cubes import Preparation, one_patch
from voxelfm_hf.eval.encoders.intensity import intensity_vector
from voxelfm_hf.eval.encoders.texture import central_component, shape, texture
from voxelfm_hf.scan_list import Region
from voxelfm_hf.volumes import Volume

LEVELS, LEVEL_RANGE_HU, DISTANCES = 16, (-1000.0, 600.0), (1, 2)
# Denser than lung: a nodule, vessels, the wall; in a whole scan the body.
DENSE_HU = -400.0
BLOB_SIGMAS = (1.0, 2.0, 4.0)
SHELLS = 6


class RadiomicsEncoder(VolumeEncoder):
    """One vector of classical descriptors."""

    is_baseline = True

    def __init__(self, preparation: Preparation):
        self.preparation = preparation
        self.preprocessing = (
            f"{preparation.sentence}; then radiomics-like: first order, co-occurrence texture in {LEVELS} levels, "
            f"gradients, blobs, shells round the centre, shape of the central part above {DENSE_HU:g} HU"
        )

    def settings(self) -> dict[str, Any]:
        levels = {"levels": LEVELS, "range_hu": LEVEL_RANGE_HU, "distances": DISTANCES}
        others = {"dense_hu": DENSE_HU, "sigmas": BLOB_SIGMAS, "shells": SHELLS}
        return {**self.preparation.settings(), **levels, **others}

    def encode(self, volume: Volume, region: Region | None) -> Encoded:
        cube = self.preparation(volume, region)
        vector = radiomics_vector(cube.hu, cube.geometry.spacing_mm)
        size = self.preparation.patch_size
        return Encoded(vector, one_patch(cube.geometry), size)


def radiomics_vector(hu: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Descriptors of a volume (D, H, W) in HU with isotropic voxels."""
    gradient = ndimage.gaussian_gradient_magnitude(hu, 1.0)
    edges = [gradient.mean(), gradient.std(), *np.percentile(gradient, (50, 90, 99))]
    centre = tuple(n // 2 for n in hu.shape)
    blobs = []
    for sigma in BLOB_SIGMAS:
        response = sigma**2 * ndimage.gaussian_laplace(hu, sigma)
        blobs += [response[centre], np.abs(response).mean(), response.std(), response.min()]
    places = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in hu.shape), indexing="ij")
    shell = np.minimum((np.sqrt(sum(axis**2 for axis in places)) * SHELLS).astype(int), SHELLS - 1)
    counts = np.bincount(shell.ravel(), minlength=SHELLS)
    profile = np.bincount(shell.ravel(), hu.ravel(), SHELLS) / np.maximum(counts, 1)
    dense = shape(central_component(hu > DENSE_HU), spacing_mm)
    mixed = texture(hu, hu_range=LEVEL_RANGE_HU, levels=LEVELS, distances=DISTANCES)
    return np.array([*intensity_vector(hu), *mixed, *edges, *blobs, *profile, *dense])


def make(setup: EncoderSetup) -> RadiomicsEncoder:
    """Descriptors of the cubes that the setup's model sees."""
    return RadiomicsEncoder(Preparation.of_setup(setup))
