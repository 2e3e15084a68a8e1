"""What `voxelfm info` tells of a scan: geometry, HU, orientation, notes; nothing from free header text."""

from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.volumes import list_series, read_volume

HU_PERCENTILES = (1, 50, 99)


def scan_facts(path: str | Path, **options) -> dict[str, Any]:
    """Facts of one scan, JSON-ready.

    Args:
        path: Scan file or DICOM folder.
        **options: `series`, `assume_hu`, `spacing` of `read_volume`.

    Returns:
        Shape (z, y, x) in voxels, spacing and extent in mm, the file's orientation letters, HU range and
        percentiles, notes, and the series of a DICOM folder that holds several.

    Raises:
        ScanError: the scan cannot be read or must not be trusted.
    """
    volume = read_volume(path, **options)
    # every 8th voxel is enough for percentiles and spares sorting hundreds of millions
    sample = volume.hu[:, ::4, ::4] if volume.hu.size > 1 << 22 else volume.hu
    facts: dict[str, Any] = {
        "shape_zyx": list(volume.hu.shape),
        "spacing_zyx_mm": [round(s, 4) for s in volume.spacing],
        "extent_zyx_mm": [round(n * s, 1) for n, s in zip(volume.hu.shape, volume.spacing, strict=True)],
        "centre_lps_mm": [round(float(c), 1) for c in _centre(volume)],
        "file_orientation": volume.grid.orientation,
        "read_as": "LPS+ (z up to the head, y to the back, x to the patient's left)",
        "dtype": str(volume.hu.dtype),
        "hu_min": float(volume.hu.min()),
        "hu_max": float(volume.hu.max()),
        "hu_percentiles_1_50_99": [round(float(v), 1) for v in np.percentile(sample, HU_PERCENTILES)],
        "notes": list(volume.notes),
    }
    if Path(path).is_dir():
        series = list_series(path)
        if len(series) > 1:
            facts["series"] = [str(entry) for entry in series]
    return facts


def _centre(volume) -> np.ndarray:
    """The middle of the grid in LPS mm."""
    return (volume.affine @ [*((np.array(volume.hu.shape) - 1) / 2), 1.0])[:3]
