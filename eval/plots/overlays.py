"""Answers over the scan: a predicted label map beside the reference, and a predicted point beside the true one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from voxelfm_hf.pictures import save_figure, slice_image
from voxelfm_hf.pictures.layers import WINDOWS_HU, LabelLayer
from voxelfm_hf.pictures.sheet import PLANES, Sheet
from voxelfm_hf.volumes import ScanError, Volume

if TYPE_CHECKING:
    from voxelfm_hf.pictures.sheet import Panel, Plane

BODY_HU, MARGIN_MM = -500, 10.0
SURROUNDINGS_MM = 20.0
WIDTH_PX = 1200
TRUE_COLOUR, FOUND_COLOUR = "#56B4E9", "#E69F00"


def save_segmentation_overlay(
    path: str | Path,
    volume: Volume,
    reference: np.ndarray,
    predicted: np.ndarray,
    *,
    names: Mapping[int, str] | None = None,
    heading: str | None = None,
) -> Path:
    """Draws three planes twice: the reference above, the prediction below, through the middle of the reference.

    Args:
        path: The PNG.
        volume: The scan.
        reference: (D, H, W) classes on its grid.
        predicted: (D, H, W) classes on its grid.
        names: Class number -> name.
        heading: Title; no id of the scan is shown.

    Returns:
        The path.

    Raises:
        ScanError: a map of another shape than the volume.
    """
    rows = {"reference": reference, "prediction": predicted}
    for name, labels in rows.items():
        if labels.shape != volume.hu.shape:
            raise ScanError(f"the {name} has shape {labels.shape} but the scan {volume.hu.shape}: put it on its grid")
    volume, (reference, predicted) = _body_only(volume, reference, predicted)
    rows = {"reference": reference, "prediction": predicted}
    layers = {name: LabelLayer(np.asarray(labels), dict(names or {})) for name, labels in rows.items()}
    centre = layers["reference"].best_index() or layers["prediction"].best_index()
    centre = centre or (volume.hu.shape[0] // 2, volume.hu.shape[1] // 2, volume.hu.shape[2] // 2)
    sheet = Sheet(volume, rows=2, projections=False, width_px=WIDTH_PX, title=heading)
    for row, (name, layer) in enumerate(layers.items()):
        for column, plane in enumerate(PLANES):
            image = slice_image(volume, plane, centre[plane.axis], WINDOWS_HU["soft tissue"], [layer])
            sheet.panel(row, column, plane, image, caption=f"{name}\n{plane.name}" if column == 0 else plane.name)
    sheet.header(layers["reference"], None)
    return save_figure(sheet.figure, path)


def save_localization_overlay(
    path: str | Path,
    volume: Volume,
    true_lps: Sequence[float],
    found_lps: Sequence[float],
    *,
    window: str | None = None,
    heading: str | None = None,
) -> Path:
    """Draws three planes through the true point with both points; the predicted one is projected onto each plane.

    Args:
        path: The PNG.
        volume: The scan.
        true_lps: x, y, z in mm.
        found_lps: x, y, z in mm.
        window: Name from WINDOWS_HU; by default that of lung where the true point lies in lung, else of soft tissue.
        heading: Title; the distance is added.

    Returns:
        The path.
    """
    volume, _ = _body_only(volume)
    inverse = np.linalg.inv(volume.affine)
    true, found = (inverse[:3, :3] @ np.asarray(p, float) + inverse[:3, 3] for p in (true_lps, found_lps))
    distance = float(np.linalg.norm(np.subtract(true_lps, found_lps)))
    centre = np.clip(np.rint(true), 0, np.array(volume.hu.shape) - 1).astype(int)
    window = window or _window_round(volume, centre)
    title = f"{heading or 'localisation'}: {distance:.1f} mm apart (circle: true, cross: predicted)"
    sheet = Sheet(volume, rows=1, projections=False, width_px=WIDTH_PX, title=title)
    for column, plane in enumerate(PLANES):
        image = slice_image(volume, plane, int(centre[plane.axis]), WINDOWS_HU[window], [])
        off = (found - true)[plane.axis] * volume.spacing[plane.axis]
        panel = sheet.panel(
            0, column, plane, image, caption=f"{plane.name} through the true point\nprediction {abs(off):.0f} mm off it"
        )
        _point(panel, plane, volume, true, TRUE_COLOUR, "o")
        _point(panel, plane, volume, found, FOUND_COLOUR, "X")
    sheet.header(None, None)
    return save_figure(sheet.figure, path)


def _window_round(volume: Volume, index: np.ndarray) -> str:
    """The window that shows what lies round a voxel."""
    reach = np.ceil(SURROUNDINGS_MM / np.array(volume.spacing)).astype(int)
    place = tuple(slice(max(0, i - r), i + r + 1) for i, r in zip(index.tolist(), reach.tolist(), strict=True))
    return "lung" if np.median(volume.hu[place]) < BODY_HU else "soft tissue"


def _body_only(volume: Volume, *maps: np.ndarray) -> tuple[Volume, list[np.ndarray]]:
    """The part of a scan, and of maps on its grid, that holds the body and every label, with a margin of 10 mm."""
    shown = volume.hu > BODY_HU
    for labels in maps:
        shown = shown | (labels != 0)
    box = []
    for axis, spacing in enumerate(volume.spacing):
        profile = np.atleast_1d(shown.any(axis=tuple(a for a in range(3) if a != axis)))
        inside = np.flatnonzero(profile) if profile.any() else np.arange(len(profile))
        margin = int(np.ceil(MARGIN_MM / spacing))
        box.append(slice(max(0, int(inside[0]) - margin), min(len(profile), int(inside[-1]) + margin + 1)))
    place = tuple(box)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return replace(volume, hu=volume.hu[place], affine=affine), [np.asarray(labels)[place] for labels in maps]


def _point(panel: "Panel", plane: "Plane", volume: Volume, index: np.ndarray, colour: str, marker: str) -> None:
    """A marker at a voxel index (z, y, x), held at the edge of the picture where it lies outside."""
    across = (index[plane.columns] + 0.5) * volume.spacing[plane.columns]
    down = (index[plane.rows] + 0.5) * volume.spacing[plane.rows]
    down = panel.height - down if plane.rows == 0 else down
    panel.axes.plot(
        [np.clip(across, 0, panel.width)],
        [np.clip(down, 0, panel.height)],
        marker,
        markersize=9,
        markerfacecolor="none" if marker == "o" else colour,
        markeredgecolor=colour if marker == "o" else "black",
        markeredgewidth=2 if marker == "o" else 0.6,
        linestyle="none",
    )
