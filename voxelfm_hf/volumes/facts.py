"""What `voxelfm info` tells of a scan: geometry, HU, orientation, notes; nothing from free header text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.volumes.read import read_with_series

_LARGE = 1 << 22  # voxels from which percentiles are those of every 16th: spares sorting hundreds of millions


def scan_facts(path: str | Path, **options) -> dict[str, Any]:
    """Facts of one scan, JSON-ready.

    Args:
        path: scan file or DICOM folder.
        **options: `series`, `assume_hu`, `spacing` of `read_volume`.

    Returns:
        Shape (z, y, x) in voxels, spacing and extent in mm, the file's orientation letters, HU range and
        percentiles, notes, and the series of a DICOM folder that holds several.

    Raises:
        ScanError: the scan cannot be read or must not be trusted.
    """
    volume, series = read_with_series(path, **options)
    hu, spacing = volume.hu, volume.spacing
    sample = hu[:, ::4, ::4] if hu.size > _LARGE else hu
    middle = volume.affine @ [*((np.array(hu.shape) - 1) / 2), 1.0]
    facts: dict[str, Any] = {
        "shape_zyx": list(hu.shape),
        "spacing_zyx_mm": [round(s, 4) for s in spacing],
        "extent_zyx_mm": [round(n * s, 1) for n, s in zip(hu.shape, spacing, strict=True)],
        "centre_lps_mm": [round(float(c), 1) for c in middle[:3]],
        "file_orientation": volume.grid.orientation,
        "read_as": "LPS+ (z up to the head, y to the back, x to the patient's left)",
        "dtype": str(hu.dtype),
        "hu_min": float(hu.min()),
        "hu_max": float(hu.max()),
        "hu_percentiles_1_50_99": [round(float(v), 1) for v in np.percentile(sample, (1, 50, 99))],
        "notes": list(volume.notes),
    }
    if len(series) > 1:
        facts["series"] = [str(entry) for entry in series]
    return facts
