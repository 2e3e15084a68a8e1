"""What a scanner does to the anatomy: blur by the kernel, correlated noise, limited HU range."""

import numpy as np

from voxelfm_hf.data.phantom.facts import Acquisition

HU_RANGE = (-1024, 3071)
_SLICES_AT_ONCE = 32
_MARGIN = 8  # the Fourier transform joins opposite edges; the margin keeps that out of the picture


def slice_profile(hu: np.ndarray, *, acquisition: Acquisition) -> np.ndarray:
    """Average neighbouring slices as slices thicker than their spacing do: a box of the slice thickness along z."""
    overlap = 1 - acquisition.spacing_mm[0] / acquisition.slice_thickness_mm
    if overlap <= 0 or len(hu) < 2:
        return hu
    out = hu * np.float32(1 - overlap)
    out[1:] += hu[:-1] * np.float32(overlap / 2)
    out[:-1] += hu[1:] * np.float32(overlap / 2)
    out[0] += hu[0] * np.float32(overlap / 2)
    out[-1] += hu[-1] * np.float32(overlap / 2)
    return out


def add_scanner(hu: np.ndarray, *, acquisition: Acquisition, rng: np.random.Generator) -> np.ndarray:
    """Blur and add noise slice by slice, in the plane.

    The transfer function is Gaussian; the sharp kernel lifts the middle frequencies. The noise has the spectrum of
    filtered back-projection: a ramp times the squared transfer function, scaled to the acquisition's noise_hu.

    Args:
        hu: Noiseless volume (D, H, W), float32 HU.
        acquisition: Kernel, noise level and spacing.
        rng: Draws the noise.

    Returns:
        The scan, (D, H, W) int16 within HU_RANGE.
    """
    height, width = (n + 2 * _MARGIN for n in hu.shape[1:])
    fy = np.fft.fftfreq(height, acquisition.spacing_mm[1])[:, None]
    fx = np.fft.rfftfreq(width, acquisition.spacing_mm[2])[None, :]
    frequency = np.sqrt(fy**2 + fx**2)  # cycles per mm
    sharp = acquisition.kernel == "sharp"
    transfer = np.exp(-2 * (np.pi * (0.38 if sharp else 0.75) * frequency) ** 2)
    if sharp:
        transfer = transfer * (1 + 0.5 * np.exp(-(((frequency - 0.3) / 0.15) ** 2)))
    noise_filter = np.sqrt(frequency) * transfer
    # Variance of filtered white noise: the mean of the squared filter over the full (two-sided) spectrum.
    twice = np.full(fx.shape, 2.0)
    twice[0, 0] = 1
    if width % 2 == 0:
        twice[0, -1] = 1
    variance = (noise_filter**2 * twice).sum() / (height * width)
    noise_filter *= acquisition.noise_hu / np.sqrt(variance) if variance > 0 else 0.0
    transfer, noise_filter = transfer.astype(np.float32), noise_filter.astype(np.float32)
    out = np.empty(hu.shape, np.int16)
    for start in range(0, len(hu), _SLICES_AT_ONCE):
        block = np.pad(hu[start : start + _SLICES_AT_ONCE], ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)), "edge")
        white = rng.standard_normal(block.shape, dtype=np.float32)
        spectrum = np.fft.rfft2(block) * transfer
        spectrum += np.fft.rfft2(white) * noise_filter
        scan = np.fft.irfft2(spectrum, s=(height, width))
        out[start : start + _SLICES_AT_ONCE] = np.clip(np.rint(scan[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]), *HU_RANGE)
    return out
