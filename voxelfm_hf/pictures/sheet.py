"""The page under a picture of planes: cells with one scale in mm, orientation letters, captions, scale bars, legend."""

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from voxelfm_hf.pictures.layers import HeatLayer, LabelLayer
from voxelfm_hf.volumes import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BACKGROUND, _CELL, _TEXT, ACCENT = "#0d0f12", "#000000", "#c9d1d9", "#ffb454"
DPI = 100
_GAP_PX, _HEADER_PX = 6, 34
_SCALE_BARS_MM = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Plane:
    """One viewing direction: which array axes run down and across the picture, and the letters at its edges."""

    name: str
    axis: int
    rows: int
    columns: int
    letters: str  # left, right, top, bottom
    coordinate: int  # component of LPS (x, y, z) that the slice position reports


PLANES = (
    Plane("axial", 0, 1, 2, "RLAP", 2),
    Plane("coronal", 1, 0, 2, "RLHF", 1),
    Plane("sagittal", 2, 0, 1, "APHF", 0),
)


class Sheet:
    """The figure: a header and a table of cells with one scale for all."""

    def __init__(self, volume: Volume, *, rows: int, projections: bool, width_px: int, title: str | None):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.volume = volume
        depth, height, width = (n * s for n, s in zip(volume.hu.shape, volume.spacing, strict=True))
        smallest = 0.5 * max(depth, height, width)  # a thin volume still gets cells that hold its captions
        projected = [max(smallest, width, height)] if projections else []
        columns_mm = [max(smallest, width), max(smallest, width), max(smallest, height), *projected]
        row_mm = max(smallest, depth, height)
        columns = len(columns_mm)
        self.px_per_mm = (width_px - (columns + 1) * _GAP_PX) / sum(columns_mm)
        self.columns_px = [mm * self.px_per_mm for mm in columns_mm]
        self.row_px = row_mm * self.px_per_mm
        self.width_px = width_px
        self.font = float(np.clip(width_px / 1600 * 9, 6, 14))
        line_px = 1.15 * self.font * DPI / 72
        # Three quarters of the width, as the legend takes the rest; a letter is about 0.6 of its height wide.
        self.lines = textwrap.wrap(self._heading(title), int(0.75 * width_px / (0.6 * line_px)))
        self.header_px = _HEADER_PX + 1.2 * line_px * (len(self.lines) - 1)
        self.height_px = int(np.ceil(self.header_px + rows * (self.row_px + _GAP_PX)))
        self.figure = Figure(figsize=(width_px / DPI, self.height_px / DPI), dpi=DPI, facecolor=_BACKGROUND)
        FigureCanvasAgg(self.figure)

    def panel(self, row: int, column: int, plane: Plane, image: np.ndarray, *, caption: str) -> "Panel":
        left = _GAP_PX + sum(self.columns_px[:column]) + column * _GAP_PX
        bottom = self.height_px - self.header_px - (row + 1) * self.row_px - row * _GAP_PX
        width = self.columns_px[column]
        axes = self.figure.add_axes(
            (left / self.width_px, bottom / self.height_px, width / self.width_px, self.row_px / self.height_px)
        )
        size_mm = tuple(self.volume.hu.shape[a] * self.volume.spacing[a] for a in (plane.rows, plane.columns))
        panel = Panel(axes, size_mm, (self.row_px / self.px_per_mm, width / self.px_per_mm), self.font, self.px_per_mm)
        panel.show(image)
        panel.letters(plane.letters)
        panel.scale_bar()
        panel.caption(caption)
        return panel

    def _heading(self, title: str | None) -> str:
        shape = " x ".join(str(n) for n in self.volume.hu.shape)
        spacing = " x ".join(f"{s:.3g}" for s in self.volume.spacing)
        return "   ".join(part for part in (title, f"{shape} voxels, {spacing} mm (z, y, x)") if part)

    def header(self, labels: LabelLayer | None, heat: HeatLayer | None) -> None:
        """Title and size on the left, legend of the layers on the right."""
        middle = 1 - self.header_px / 2 / self.height_px
        left, text = 2 * _GAP_PX / self.width_px, "\n".join(self.lines)
        self.figure.text(left, middle, text, color=_TEXT, fontsize=self.font * 1.15, va="center", parse_math=False)
        entries: list[tuple[str, tuple[float, ...]]] = []
        if heat is not None:
            from matplotlib import colormaps

            low, high = heat.range
            entries += [(f"{high:.3g}", colormaps["inferno"](1.0)), (f"{low:.3g}", colormaps["inferno"](0.25))]
        if labels is not None:
            named = list(labels.names.items())[:12]
            entries += [(name, tuple(labels.colour_of(value))) for value, name in reversed(named)]
        right = 1 - 2 * _GAP_PX / self.width_px
        for name, colour in entries:
            for text, paint in ((name, _TEXT), ("\u25a0", colour)):
                entry = self.figure.text(
                    right, middle, text, color=paint, fontsize=self.font, va="center", ha="right", parse_math=False
                )
                right = (entry.get_window_extent().x0 - 4) / self.width_px
            right -= 1.5 * _GAP_PX / self.width_px


class Panel:
    """One cell: the image in mm in the middle of its cell, with letters, captions and a scale bar."""

    def __init__(self, axes: "Axes", size_mm, cell_mm, font: float, px_per_mm: float):
        self.axes, self.font = axes, font
        self.height, self.width = size_mm
        self.pixel = 1 / px_per_mm
        margin_y, margin_x = (cell_mm[0] - self.height) / 2, (cell_mm[1] - self.width) / 2
        self.left, self.right = -margin_x, self.width + margin_x
        self.top, self.bottom = -margin_y, self.height + margin_y
        axes.set_facecolor(_CELL)
        axes.set_axis_off()
        axes.add_patch(_background_patch(axes))

    def show(self, image: np.ndarray) -> None:
        # Averaging where the picture is coarser than the scan, smooth interpolation where it is finer.
        coarser = image.shape[0] * self.pixel > 1.2 * self.height or image.shape[1] * self.pixel > 1.2 * self.width
        self.axes.imshow(
            (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8),
            extent=(0, self.width, self.height, 0),
            interpolation="hanning" if coarser else "bilinear",
            aspect="auto",
        )
        self.axes.set_xlim(self.left, self.right)
        self.axes.set_ylim(self.bottom, self.top)

    def _text(self, x: float, y: float, text: str, *, colour: str = _TEXT, size: float = 1.0, **align) -> None:
        # On a darkened ground, as an abdomen is white in most windows.
        ground = {"facecolor": _CELL, "alpha": 0.7, "edgecolor": "none", "boxstyle": "square,pad=0.15"}
        self.axes.text(
            x, y, text, color=colour, fontsize=self.font * size, parse_math=False, clip_on=True,
            bbox=ground if text else None, **align,
        )  # fmt: skip

    def letters(self, letters: str) -> None:
        """Orientation letters at the image's edges; outside a thin image, inside one that fills its cell."""
        inset = 8 * self.pixel
        step = 1.8 * self.font * DPI / 72 * self.pixel
        x, y = self.width / 2, self.height / 2
        left, right = max(self.left + inset, -step), min(self.right - inset, self.width + step)
        top, bottom = max(self.top + inset, -step), min(self.bottom - inset, self.height + step)
        self._text(left, y, letters[0], ha="left", va="center", colour=ACCENT, size=1.15)
        self._text(right, y, letters[1], ha="right", va="center", colour=ACCENT, size=1.15)
        self._text(x, top, letters[2], ha="center", va="top", colour=ACCENT, size=1.15)
        self._text(x, bottom, letters[3], ha="center", va="bottom", colour=ACCENT, size=1.15)

    def caption(self, text: str) -> None:
        self._text(self.left + 6 * self.pixel, self.top + 5 * self.pixel, text, ha="left", va="top", linespacing=1.25)

    def scale_bar(self) -> None:
        room = 0.3 * (self.right - self.left)
        length = max((mm for mm in _SCALE_BARS_MM if mm <= room), default=_SCALE_BARS_MM[0])
        x, y = self.right - 10 * self.pixel, self.bottom - 9 * self.pixel
        self.axes.plot([x - length, x], [y, y], color="black", linewidth=4, solid_capstyle="butt")
        self.axes.plot([x - length, x], [y, y], color=_TEXT, linewidth=2, solid_capstyle="butt")
        self._text(x - length / 2, y - 6 * self.pixel, f"{length:g} mm", ha="center", va="bottom", size=0.85)

    def frame(self, left: float, top: float, right: float, bottom: float) -> None:
        x, y = [left, right, right, left, left], [top, top, bottom, bottom, top]
        self.axes.plot(x, y, color=ACCENT, linewidth=1.2, solid_joinstyle="miter")

    def ticks(self, across: float, down: float) -> None:
        size = 5 * self.pixel
        for x, y in (
            ((across, across), (0, size)),
            ((across, across), (self.height - size, self.height)),
            ((0, size), (down, down)),
            ((self.width - size, self.width), (down, down)),
        ):
            self.axes.plot(x, y, color=ACCENT, linewidth=1, alpha=0.8, solid_capstyle="butt")


def _background_patch(axes: "Axes"):
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor=_CELL, edgecolor="none", zorder=-1)
