"""One figure of what features know of acquisition: how well it is told, task scores by stratum, retrieval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.plots.style import (
    INK,
    TEXT_SIZE,
    dress,
    error_bars,
    labels,
    looks,
    metric_name,
    new_figure,
    plain,
    save,
    title,
)

STAGES = ("before", "after", "after, neighbours")
NAMES = {
    "before": "before erasure, linear",
    "after": "after erasure, linear",
    "after, neighbours": "after erasure, 5 nearest neighbours",
}


def save_confounds(path: str | Path, rows: Sequence[Mapping[str, Any]], *, encoder: str = "") -> Path:
    """Draws the rows of `measure_confounds`.

    Left: how well each fact is told, on one scale from chance (0) to certainty (1). Middle: task scores on all test
    rows and within strata. Right: retrieval, chance as a tick.

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
        "task": "Task scores, all test rows and strata",
        "retrieval": "Retrieval among test rows",
    }
    shown = [name for name in parts if any(row["question"] == name for row in defined)]
    longest = max(len({_line(row) for row in defined if row["question"] == name}) for name in shown)
    figure = new_figure(6.0 * len(shown), max(3.2, 0.34 * longest + 1.6))
    style = looks(STAGES)
    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False).ravel(), shown, strict=True):
        inside = [row for row in defined if row["question"] == name]
        dress(axis, grid="x")
        lines = list(dict.fromkeys(_line(row) for row in inside))
        for row in inside:
            place = lines.index(_line(row)) + 0.2 * (STAGES.index(row["stage"]) - 1)
            value, low, high, chance = _scaled(row) if name == "acquisition" else _plain(row)
            look = style[row["stage"]]
            axis.errorbar(
                [value],
                [place],
                xerr=error_bars([value], [low], [high]),
                fmt=look.marker,
                color=look.colour,
                markersize=5,
                elinewidth=1.3,
                capsize=2,
            )
            if name != "acquisition":
                axis.plot([chance], [place], marker="|", color=INK, markersize=7, linestyle="none")
        if name == "acquisition":
            axis.axvline(0, color=INK, linewidth=0.9, linestyle=":")
            axis.set_xlim(left=min(-0.25, axis.get_xlim()[0]) if axis.get_xlim()[0] > -1 else -1)
        axis.set_yticks(range(len(lines)), [plain(line) for line in lines], fontsize=TEXT_SIZE - 2)
        axis.set_ylim(len(lines) - 0.4, -0.6)
        title(axis, parts[name])
        metrics = list(dict.fromkeys(metric_name(row["metric"]) for row in inside))
        across = "share of the way from chance (0) to certain (1)" if name == "acquisition" else ", ".join(metrics)
        labels(axis, across, "")
    stages = [stage for stage in STAGES if any(row["stage"] == stage for row in defined)]
    handles = [_handle(style[stage], NAMES[stage]) for stage in stages] + [_chance_handle()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=TEXT_SIZE - 1, frameon=False)
    return save(figure, path)


def _line(row: Mapping[str, Any]) -> str:
    """The text of a row's line."""
    if row["question"] == "acquisition":
        return str(row["what"])
    if row["question"] == "retrieval":
        return f"{row['what']}, {metric_name(row['metric'])}"
    return f"{row['what']}, {row['stratum']}" if row["stratum"] else f"{row['what']}, all"


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
