"""One figure of what features know of acquisition: how well it is told, task scores by stratum, retrieval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.metrics.catalogue import metric_title
from voxelfm_hf.eval.plots.style import (
    INK,
    TEXT_SIZE,
    dress,
    error_bars,
    labels,
    looks,
    new_figure,
    plain,
    save,
    title,
)

# R2 has no lower end; a line that leaves the panel at the left goes on.
LOWEST = -1.0
STAGES = ("before", "after", "after, neighbours")
NAMES = {
    "before": "before erasure, linear",
    "after": "after erasure, linear",
    "after, neighbours": "after erasure, 5 nearest neighbours",
}


def save_confounds(path: str | Path, rows: Sequence[Mapping[str, Any]], *, encoder: str = "") -> Path:
    """Draws the rows of `measure_confounds`.

    Left: how well each fact is told, on one scale from chance (0) to certainty (1). Middle: task scores on all test
    rows and, faint, within strata. Right: retrieval. Chance is a tick; bars end at -1.

    Args:
        path: The PNG.
        rows: Rows with question, what, stratum, stage, metric, value, low, high, chance.
        encoder: Whose features.

    Returns:
        The path.
    """
    defined = [row for row in rows if row.get("value") is not None and np.isfinite(row["value"])]
    parts = {
        "acquisition": "Acquisition told by features" + (f" of {encoder}" if encoder else ""),
        "task": "Task scores; faint: within strata, before",
        "retrieval": "Retrieval among test rows",
    }
    shown = [name for name in parts if any(row["question"] == name for row in defined)]
    longest = max(len({_line(row) for row in defined if row["question"] == name}) for name in shown)
    figure = new_figure(5.4 * len(shown), max(3.0, 0.5 * longest + 1.6))
    style = looks(STAGES)
    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False).ravel(), shown, strict=True):
        _panel(axis, [row for row in defined if row["question"] == name], name, style)
        title(axis, parts[name])
    stages = [stage for stage in STAGES if any(row["stage"] == stage for row in defined)]
    handles = [_handle(style[stage], NAMES[stage]) for stage in stages] + [_chance_handle()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=TEXT_SIZE - 1, frameon=False)
    return save(figure, path)


def _panel(axis, rows: Sequence[Mapping[str, Any]], question: str, style: Mapping[str, Any]) -> None:
    """One question: a line for each fact, task or search, its stages above each other."""
    dress(axis, grid="x")
    lines = list(dict.fromkeys(_line(row) for row in rows))
    for row in rows:
        place = lines.index(_line(row)) + 0.22 * (STAGES.index(row["stage"]) - 1)
        value, low, high, chance = _scaled(row) if question == "acquisition" else _plain(row)
        look = style[row["stage"]]
        if row["stratum"]:
            if row["stage"] == STAGES[0]:
                axis.plot([max(value, LOWEST)], [place - 0.16], look.marker, color=look.colour, alpha=0.3, markersize=4)
            continue
        axis.errorbar(
            [value],
            [place],
            xerr=error_bars([value], [max(low, LOWEST)], [high]),
            fmt=look.marker,
            color=look.colour,
            markersize=5,
            elinewidth=1.3,
            capsize=2,
        )
        if question != "acquisition":
            axis.plot([chance], [place], marker="|", color=INK, markersize=8, linestyle="none")
    if question == "acquisition":
        axis.axvline(0, color=INK, linewidth=0.9, linestyle=":")
    axis.set_yticks(range(len(lines)), [plain(line) for line in lines], fontsize=TEXT_SIZE - 1)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    across = "share of the way from chance (0) to certain (1)"
    if question != "acquisition":
        across = " and ".join(dict.fromkeys(metric_title(row["metric"]) for row in rows))
    labels(axis, across, "")


def _line(row: Mapping[str, Any]) -> str:
    """The text of a row's line."""
    if row["question"] == "acquisition":
        return str(row["what"])
    return f"{row['what']}, {metric_title(row['metric'])}"


def _plain(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    value, low, high, chance = (
        np.nan if row.get(k) is None else float(row[k]) for k in ("value", "low", "high", "chance")
    )
    return value, low, high, chance


def _scaled(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """From chance 0 to certain 1, so that R2 and balanced accuracy share an axis."""
    *values, chance = _plain(row)
    value, low, high = ((number - chance) / (1 - chance) for number in values)
    return value, low, high, 0.0


def _handle(look, name: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], marker=look.marker, color=look.colour, linestyle="none", label=name)


def _chance_handle():
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="|", color=INK, linestyle="none", markersize=8, label="chance")
