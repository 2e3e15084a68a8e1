"""Forest plots: scores with their intervals, one panel a task and metric, encoders in rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.metrics.catalogue import chance_of, metric_title
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.eval.plots.style import (
    INK,
    TEXT_SIZE,
    Look,
    dress,
    error_bars,
    labels,
    looks,
    new_figure,
    plain,
    save,
    title,
)

COLUMNS = 2
# Ceiling and floor are no competitors.
REFERENCE = Look("#7F7F7F", "d", "-")


def save_forest(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Draws point and interval of each row; the numbers stand at the right, a dotted line marks chance.

    Args:
        path: The PNG.
        rows: Result rows with encoder, task, target, metric, value, low, high, n, perhaps kind (a "reference" is drawn
            in grey); undefined values are left out.

    Returns:
        The path.
    """
    groups: dict[tuple, list] = {}
    for row in rows:
        if row.get("value") not in (None, "") and np.isfinite(float(row["value"])):
            groups.setdefault((row["task"], row["target"], row["metric"]), []).append(row)
    shown = looks(str(row["encoder"]) for inside in groups.values() for row in inside)
    across = min(COLUMNS, len(groups))
    down = -(-len(groups) // across)
    tallest = max(len(inside) for inside in groups.values())
    figure = new_figure(5.6 * across, (0.3 * tallest + 1.1) * down)
    figure.set_layout_engine("constrained", wspace=0.08)
    cells = figure.subplots(down, across, squeeze=False).ravel()
    for axis in cells[len(groups) :]:
        axis.set_axis_off()
    for axis, ((task, target, metric), inside) in zip(cells, groups.items(), strict=False):
        dress(axis, grid="x")
        _rows(axis, inside, shown)
        if (chance := chance_of(metric)) is not None:
            axis.axvline(chance, color=INK, linewidth=0.9, linestyle=":")
        counts = sorted({int(float(row["n"])) for row in inside if row.get("n") not in (None, "")})
        # The macro mean of a label map is taken scan by scan.
        what = "targets" if target == MACRO and inside[0].get("family") != "segmentation" else "n"
        n = f", {what} {counts[0]}" if len(counts) == 1 else f", {what} {counts[0]} to {counts[-1]}" if counts else ""
        title(axis, f"{task}: {target}{n}" if str(task) != str(target) else f"{task}{n}")
        labels(axis, metric_title(metric), "")
    return save(figure, path)


def _rows(axis, inside: Sequence[Mapping[str, Any]], shown) -> None:
    """One encoder a line, the first on top."""
    for place, row in enumerate(inside):
        value, low, high = (
            np.nan if row.get(name) in (None, "") else float(row[name]) for name in ("value", "low", "high")
        )
        look = REFERENCE if row.get("kind") == "reference" else shown[str(row["encoder"])]
        axis.errorbar(
            [value],
            [place],
            xerr=error_bars([value], [low], [high]),
            fmt=look.marker,
            color=look.colour,
            markersize=6,
            capsize=3,
            elinewidth=1.6,
        )
        interval = f" [{_number(low)}, {_number(high)}]" if np.isfinite(low) else ""
        axis.annotate(
            f"{_number(value)}{interval}",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=TEXT_SIZE - 2,
            color=INK,
        )
    axis.set_yticks(range(len(inside)), [plain(row["encoder"]) for row in inside], fontsize=TEXT_SIZE - 1)
    axis.set_ylim(len(inside) - 0.4, -0.6)
    axis.margins(x=0.08)


def _number(value: float) -> str:
    """As many digits in every line of a panel."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
