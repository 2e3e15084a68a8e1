"""What the figures share: colours that colour-blind readers tell apart, names of metrics, panels, writing."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from voxelfm_hf.files import written_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), without the yellow that vanishes on white; markers and dashes repeat what the colour says.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[str | tuple, ...] = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), "-", "--")
INK, FAINT = "#2b333b", "#d8dde2"
DPI = 150
TEXT_SIZE = 10


@dataclass(frozen=True)
class Look:
    """How one encoder, group or class is drawn wherever it appears."""

    colour: str
    marker: str
    dash: str | tuple


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, by its place; the same list of names gives the same looks in every figure."""
    return {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def plain(text: object) -> str:
    """Text that matplotlib does not read as mathematics."""
    return str(text).replace("$", r"\$")


def new_figure(width: float, height: float) -> "Figure":
    """A figure with an Agg canvas, in inches; nothing global is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, *, height: float = 3.8) -> tuple["Figure", list["Axes"]]:
    """A figure of `count` equal panels, each dressed, two in a row (three beyond six); unused cells are blank."""
    across = min(count, 2 if count <= 6 else 3)
    down = math.ceil(count / across)
    figure = new_figure(max(4.2 * across, 5.0), height * down)
    cells = list(figure.subplots(down, across, squeeze=False).ravel())
    for axis in cells[count:]:
        axis.set_axis_off()
    for axis in cells[:count]:
        dress(axis)
    return figure, cells[:count]


def dress(axis: "Axes", *, grid: str = "both") -> None:
    """Quiet axes: no box, faint grid, dark text."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(INK)
    axis.tick_params(colors=INK, labelsize=TEXT_SIZE - 1)
    axis.grid(visible=True, axis=grid, color=FAINT, linewidth=0.7)  # type: ignore[arg-type]
    axis.set_axisbelow(True)


def title(axis: "Axes", text: str) -> None:
    """The title of a panel, at its left."""
    axis.set_title(plain(text), loc="left", fontsize=TEXT_SIZE, color=INK, wrap=True)


def labels(axis: "Axes", across: str, up: str) -> None:
    """What the axes show, with units."""
    axis.set_xlabel(plain(across), fontsize=TEXT_SIZE, color=INK)
    axis.set_ylabel(plain(up), fontsize=TEXT_SIZE, color=INK)


def legend(axis: "Axes", *, where: Literal["best", "lower right", "upper left", "below"] = "best") -> None:
    """The legend of a panel."""
    outside = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.14), "borderaxespad": 0.0}
    place: dict[str, Any] = outside if where == "below" else {"loc": where}
    axis.legend(fontsize=TEXT_SIZE - 2, frameon=True, framealpha=0.85, edgecolor="none", handlelength=2.6, **place)


def shared_legend(figure: "Figure", axis: "Axes") -> None:
    """One legend below all panels."""
    handles, names = axis.get_legend_handles_labels()
    # A letter of this size is about 0.085 inches wide, the handle with its gaps 0.65.
    entry = 0.65 + 0.085 * max((len(name) for name in names), default=1)
    columns = max(1, min(4, len(names), int(figure.get_figwidth() / entry)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=TEXT_SIZE - 1, frameon=False)


def save(figure: "Figure", path: str | Path, *, background: str = "white") -> Path:
    """Writes a figure as PNG, whole or not at all, without the time and versions that make equal figures differ."""
    path = Path(path)
    with written_file(path) as part:
        figure.savefig(part, format="png", dpi=DPI, facecolor=background, metadata={"Software": None})
    return path


def error_bars(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """Distances below and above as `errorbar` takes them; no bar where an end is missing."""

    def distance(a: float, b: float) -> float:
        gap = a - b
        return gap if gap > 0 else 0.0  # NaN compares false

    return [
        [distance(value, end) for value, end in zip(values, low, strict=True)],
        [distance(end, value) for value, end in zip(values, high, strict=True)],
    ]
