"""Contact sheets of retrieval: a query scan and its nearest neighbours, marked where they share the finding."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxelfm_hf.eval.plots.style import plain, save
from voxelfm_hf.pictures import body_centre, slice_image
from voxelfm_hf.pictures.layers import WINDOWS_HU
from voxelfm_hf.pictures.sheet import PLANES
from voxelfm_hf.volumes import Volume

MATCH, MISS, QUERY, PAGE, TEXT = "#56B4E9", "#D55E00", "#f0f0f0", "#0d0f12", "#c9d1d9"
TILE_INCHES = 1.6


@dataclass(frozen=True, eq=False)
class Shown:
    """One scan, or region, on the sheet.

    Args:
        volume: What to show.
        label: Its finding in words; no id, as ids can identify a patient.
        match: Whether it has the finding of the query.
        centre_lps: Where to cut, x, y, z in mm; by default the middle of the body.
        edge_mm: Edge of the square that is shown round the centre; by default the whole slice.
    """

    volume: Volume
    label: str
    match: bool | None = None
    centre_lps: Sequence[float] | None = None
    edge_mm: float | None = None


def save_retrieval_sheet(path: str | Path, rows: Sequence[tuple[Shown, Sequence[Shown]]], *, heading: str) -> Path:
    """Draws one line a query: the axial slice of the query, then its neighbours by falling similarity.

    A frame is blue where the neighbour has the query's finding and vermilion, dashed, where it has not.

    Args:
        path: The PNG.
        rows: (query, neighbours) pairs.
        heading: Title.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = 1 + max(len(neighbours) for _, neighbours in rows)
    tile = TILE_INCHES
    height = len(rows) * (tile + 0.45) + 0.75
    figure = Figure(figsize=(columns * tile + 0.4, height), facecolor=PAGE)
    FigureCanvasAgg(figure)
    width = columns * tile + 0.4
    figure.text(0.1 / width, 1 - 0.2 / height, plain(heading), color=TEXT, fontsize=10, va="center")
    note = "solid blue frame: same finding as the query; dashed vermilion: not"
    figure.text(0.1 / width, 1 - 0.48 / height, note, color=TEXT, fontsize=7.5, va="center")
    for line, (query, neighbours) in enumerate(rows):
        top = height - 0.7 - line * (tile + 0.45)
        for place, shown in enumerate((query, *neighbours)):
            left = 0.1 + place * tile + (0.2 if place else 0)
            axis = figure.add_axes(
                (left / width, (top - tile + 0.1) / height, (tile - 0.1) / width, (tile - 0.1) / height)
            )
            axis.set_axis_off()
            axis.imshow(_square(shown), interpolation="bilinear", extent=(0, 1, 0, 1), aspect="auto")
            frame = QUERY if place == 0 else MATCH if shown.match else MISS
            axis.add_patch(
                Rectangle(
                    (0, 0), 1, 1, fill=False, edgecolor=frame, linewidth=4,
                    linestyle="-" if place == 0 or shown.match else (0, (3, 1.5)), transform=axis.transAxes,
                )
            )  # fmt: skip
            rank = "query" if place == 0 else f"neighbour {place}"
            text = plain(f"{rank}\n{shown.label}")
            axis.text(0, -0.04, text, color=TEXT, fontsize=7, va="top", transform=axis.transAxes)
    return save(figure, path, background=PAGE)


def _square(shown: Shown) -> np.ndarray:
    """(n, n, 3) pixels of equal size in mm: the slice, cut to a square or padded to one with black."""
    volume = shown.volume
    if shown.centre_lps is None:
        index = np.array(body_centre(volume.hu), float)
    else:
        index = np.linalg.solve(volume.affine, [*shown.centre_lps, 1.0])[:3]
    z = int(np.clip(np.rint(index[0]), 0, len(volume.hu) - 1))
    image = slice_image(volume, PLANES[0], z, WINDOWS_HU["lung"], [])
    _, down_mm, across_mm = volume.spacing
    size = np.array(image.shape[:2]) * (down_mm, across_mm)
    edge = float(shown.edge_mm or size.max())
    middle = (index[1:] + 0.5) * (down_mm, across_mm) if shown.edge_mm else size / 2
    count = 256
    at = (np.arange(count) + 0.5) / count * edge - edge / 2
    rows, cols = ((at + centre) / mm for centre, mm in zip(middle, (down_mm, across_mm), strict=True))
    inside = ((rows >= 0) & (rows < image.shape[0]))[:, None] & ((cols >= 0) & (cols < image.shape[1]))[None]
    picked = image[np.clip(rows.astype(int), 0, image.shape[0] - 1)][
        :, np.clip(cols.astype(int), 0, image.shape[1] - 1)
    ]
    return np.where(inside[..., None], picked, 0.0)
