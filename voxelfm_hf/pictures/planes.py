"""Pictures of a scan for people: orthogonal planes in CT windows, projections, overlays, patch features as colour.

Shown as radiologists look at them: the head up, the patient's right on the left of the picture, the front on top in
axial and on the left in sagittal planes. All panels share one scale in mm.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from voxelfm_hf.files import written_file
from voxelfm_hf.pictures.layers import WINDOWS_HU, FeatureLayer, HeatLayer, LabelLayer, blend, window_grey
from voxelfm_hf.pictures.sheet import DPI, PLANES, Panel, Plane, Sheet
from voxelfm_hf.volumes import ScanError, Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROJECTION_WINDOW_HU = (400.0, 1600.0)  # level, width
_PROJECTED = (PLANES[1], PLANES[2], PLANES[0])
_PALETTE_LIMIT = 4096


def picture_planes(
    volume: Volume,
    *,
    position: Sequence[float] | None = None,
    windows: Sequence[str] = ("lung", "soft tissue", "bone"),
    labels: np.ndarray | None = None,
    label_names: Mapping[int, str] | None = None,
    heat: np.ndarray | None = None,
    heat_limits: tuple[float, float] | None = None,
    patch_features: np.ndarray | None = None,
    patch_box: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None,
    region: tuple[Sequence[float], Sequence[float]] | None = None,
    projections: bool = True,
    title: str | None = None,
    width_px: int = 1600,
) -> "Figure":
    """Draw axial, coronal and sagittal planes in several windows, with projections and colour layers.

    Args:
        volume: The scan.
        position: Voxel (z, y, x) that the planes pass through; by default the labels' or heat's main spot, else the
            middle of the body.
        windows: Rows of the picture, names from WINDOWS_HU.
        labels: (D, H, W) label map on the volume's grid, drawn in categorical colours; 0 is transparent.
        label_names: Names of label values for the legend.
        heat: (D, H, W) map of values on the volume's grid, drawn as glow.
        heat_limits: Values of no and full glow; by default 0 and the largest value.
        patch_features: (d, h, w, C) features; adds a row with their principal components as colour over the scan.
        patch_box: ((z, y, x) start, (z, y, x) stop): the part of the volume that the patches cover, in voxels, with
            fractions; voxel i spans i to i + 1, as the processor's region_start and region_stop. By default all.
        region: ((z, y, x) start, (z, y, x) stop) of a cuboid in voxels, as patch_box, drawn as a frame in every plane.
        projections: Add a column of maximum-intensity projections.
        title: Text at the top left, on as many lines as it takes. Nothing from the volume's name is shown, as names can
            identify a patient.
        width_px: Width of the picture.

    Returns:
        A matplotlib Figure with an Agg canvas; nothing global is touched.

    Raises:
        ScanError: a map of another shape than the volume, or a position outside it.
        ValueError: unknown window name.
    """
    unknown = [name for name in windows if name not in WINDOWS_HU]
    if unknown or not windows:
        raise ValueError(f"windows must be names from {sorted(WINDOWS_HU)}, not {list(windows)}")
    for name, layer_map in (("labels", labels), ("heat", heat)):
        if layer_map is not None and layer_map.shape != volume.hu.shape:
            raise ScanError(
                f"the {name} have shape {layer_map.shape} but the scan {volume.hu.shape}; give them on the scan's grid."
            )
    label_layer = None if labels is None else LabelLayer(labels, label_names or {})
    heat_layer = None if heat is None else HeatLayer(heat, heat_limits)
    layers = [layer for layer in (label_layer, heat_layer) if layer is not None]
    features = None if patch_features is None else FeatureLayer(patch_features, volume.hu, box=patch_box)
    centre = _choose_position(volume, position, heat_layer or label_layer)

    rows = len(windows) + (features is not None)
    sheet = Sheet(volume, rows=rows, projections=projections, width_px=width_px, title=title)
    for row, name in enumerate(windows):
        level, width = WINDOWS_HU[name]
        for column, plane in enumerate(PLANES):
            index = centre[plane.axis]
            image = slice_image(volume, plane, index, (level, width), layers)
            lines = [f"{name}  W{width:.0f} L{level:.0f}"] if column == 0 else []
            lines += _position_lines(volume, plane, index) if row == 0 else []
            panel = sheet.panel(row, column, plane, image, caption="\n".join(lines))
            _mark_position(panel, plane, centre, volume)
            if region is not None:
                _frame_region(panel, plane, region, volume)
        if projections and row < len(_PROJECTED):
            plane = _PROJECTED[row]
            projection = volume.hu.max(axis=plane.axis)
            grey = window_grey(
                _upright(projection, plane), level=_PROJECTION_WINDOW_HU[0], width=_PROJECTION_WINDOW_HU[1]
            )
            image = np.repeat(grey[..., None], 3, axis=2)
            sheet.panel(row, 3, plane, image, caption=f"{plane.name} MIP")
    if features is not None:
        for column, plane in enumerate(PLANES):
            image = slice_image(volume, plane, centre[plane.axis], WINDOWS_HU["lung"], [features])
            shares = ", ".join(f"{100 * share:.0f}" for share in features.variance_shares)
            text = f"PCA of patch features\n1, 2, 3 as red, green, blue\n{shares} % of the variance"
            sheet.panel(len(windows), column, plane, image, caption=text if column == 0 else "")
    sheet.header(label_layer, heat_layer)
    return sheet.figure


def save_picture(volume: Volume, path: str | os.PathLike, **options) -> Path:
    """Write `picture_planes(volume, **options)` as a PNG file, atomically and without metadata.

    Args:
        volume: The scan.
        path: A name that ends in .png.
        options: The keyword arguments of picture_planes.

    Returns:
        The path written.
    """
    return save_figure(picture_planes(volume, **options), path)


def save_figure(figure: "Figure", path: str | os.PathLike) -> Path:
    """Write a figure as a PNG file, atomically and without metadata; grey pictures are reduced to a palette of 256."""
    from PIL import Image

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ScanError(f"{path}: pictures are written as PNG; end the name in .png.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=figure.get_facecolor())
    with Image.open(buffer) as drawn:
        image = drawn.convert("RGB")
    if image.getcolors(_PALETTE_LIMIT) is not None:  # smooth colours would show steps
        image = image.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    with written_file(path) as part:
        image.save(part, format="PNG")
    return path


def _choose_position(
    volume: Volume, position: Sequence[float] | None, layer: LabelLayer | HeatLayer | None
) -> tuple[int, int, int]:
    shape = volume.hu.shape
    if position is not None:
        index = tuple(int(np.floor(p + 0.5)) for p in position)
        if len(index) != 3 or any(not 0 <= i < n for i, n in zip(index, shape, strict=True)):
            raise ScanError(f"position {tuple(position)} lies outside the scan of {shape} voxels (z, y, x).")
        return index
    spot = layer.best_index() if layer is not None else None
    return spot or body_centre(volume.hu)


def body_centre(hu: np.ndarray) -> tuple[int, int, int]:
    """The middle voxel (z, y, x) of what is denser than -500 HU, coarsely; the grid's middle if nothing is."""
    steps = [max(1, n // 64) for n in hu.shape]
    dense = hu[tuple(slice(s // 2, None, s) for s in steps)] > -500
    centre = []
    for axis, (n, step) in enumerate(zip(hu.shape, steps, strict=True)):
        profile = dense.sum(axis=tuple(a for a in range(3) if a != axis))
        total = np.cumsum(profile)
        middle = int(np.searchsorted(total, total[-1] / 2)) * step + step // 2 if total[-1] else n // 2
        centre.append(min(middle, n - 1))
    return centre[0], centre[1], centre[2]


def _upright(image: np.ndarray, plane: Plane) -> np.ndarray:
    """Array rows run to the feet in coronal and sagittal planes once flipped; axial rows already run to the back."""
    return image[::-1] if plane.rows == 0 else image


def slice_image(volume: Volume, plane: Plane, index: int, window: tuple[float, float], layers) -> np.ndarray:
    """One plane of a volume in a window (level, width) with layers: (rows, columns, 3) colours 0-1, top row first."""
    grey = window_grey(np.take(volume.hu, index, axis=plane.axis), level=window[0], width=window[1])
    image = np.repeat(grey[..., None], 3, axis=2)
    for layer in layers:
        colours, opacity = layer.slice(plane.axis, index)
        image = blend(grey, colours, opacity) * (opacity[..., None] > 0) + image * (opacity[..., None] == 0)
    return _upright(image, plane)


def _position_lines(volume: Volume, plane: Plane, index: int) -> list[str]:
    voxel = (np.array(volume.hu.shape) - 1) / 2
    voxel[plane.axis] = index
    place = float((volume.affine @ np.append(voxel, 1))[plane.coordinate])
    letter = {2: "FH", 1: "AP", 0: "RL"}[plane.coordinate][place >= 0]
    return [f"{plane.name} {index + 1}/{volume.hu.shape[plane.axis]}", f"{letter} {abs(place):.1f} mm"]


def _mark_position(panel: Panel, plane: Plane, centre: tuple[int, int, int], volume: Volume) -> None:
    """Small ticks on the edges where the other two planes cut this one."""
    across = (centre[plane.columns] + 0.5) * volume.spacing[plane.columns]
    down = (centre[plane.rows] + 0.5) * volume.spacing[plane.rows]
    height = volume.hu.shape[plane.rows] * volume.spacing[plane.rows]
    panel.ticks(across, height - down if plane.rows == 0 else down)


def _frame_region(panel: Panel, plane: Plane, region: tuple[Sequence[float], Sequence[float]], volume: Volume) -> None:
    (top, bottom), (left, right) = (
        [float(side[axis]) * volume.spacing[axis] for side in region] for axis in (plane.rows, plane.columns)
    )
    if plane.rows == 0:
        height = volume.hu.shape[0] * volume.spacing[0]
        top, bottom = height - bottom, height - top
    panel.frame(left, top, right, bottom)
