"""Label-efficiency curves: the score of each encoder against the number of labelled scans it was given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.metrics.catalogue import chance_of, metric_title
from voxelfm_hf.eval.plots.style import (
    INK,
    labels,
    looks,
    panels,
    plain,
    save,
    shared_legend,
    title,
)


def save_label_efficiency(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Draws one panel a task, target and metric: curves with their intervals as ribbons, on a logarithmic axis.

    Args:
        path: The PNG.
        rows: Result rows with encoder, task, target, metric, value, low, high and fraction (0 to 1); `train`, where
            rows have it, is the number of labelled training scans and becomes the axis.

    Returns:
        The path.
    """
    rows = [row for row in rows if _number(row.get("value")) is not None and _number(row.get("fraction"))]
    shown = looks(str(row["encoder"]) for row in rows)
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault((row["task"], row["target"], row["metric"]), []).append(row)
    figure, cells = panels(len(groups), height=3.6)
    for axis, ((task, target, metric), inside) in zip(cells, groups.items(), strict=True):
        counted = all(_number(row.get("train")) for row in inside)
        key = "train" if counted else "fraction"
        ticks = sorted({float(row[key]) * (1 if counted else 100) for row in inside})
        for encoder in dict.fromkeys(str(row["encoder"]) for row in inside):
            line = sorted((row for row in inside if str(row["encoder"]) == encoder), key=lambda row: float(row[key]))
            at = np.array([float(row[key]) for row in line]) * (1 if counted else 100)
            value, low, high = (
                np.array([np.nan if _number(row.get(name)) is None else float(row[name]) for row in line])
                for name in ("value", "low", "high")
            )
            look = shown[encoder]
            axis.plot(
                at,
                value,
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                markersize=4.5,
                linewidth=1.6,
                label=plain(encoder),
            )
            axis.fill_between(at, low, high, color=look.colour, alpha=0.08, linewidth=0)
            for edge in (low, high):
                axis.plot(at, edge, color=look.colour, linewidth=0.7, alpha=0.45)
        axis.set_xscale("log")
        # Training rows are means over seeds and targets.
        axis.set_xticks(_spaced(ticks), [f"{round(tick)}" if counted else f"{tick:g}" for tick in _spaced(ticks)])
        axis.minorticks_off()
        if (chance := chance_of(metric)) is not None:
            axis.axhline(chance, color=INK, linewidth=0.8, linestyle=":")
        title(axis, f"{task}: {target}" if str(task) != str(target) else str(task))
        labels(axis, "labelled training scans" if counted else "share of the training labels (%)", metric_title(metric))
    shared_legend(figure, cells[0])
    return save(figure, path)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _spaced(ticks: Sequence[float]) -> list[float]:
    """Those ticks that leave room for their labels on a logarithmic axis, the largest kept."""
    kept: list[float] = []
    span = np.log(max(ticks) / min(ticks)) if len(ticks) > 1 else 0.0
    for tick in sorted(ticks, reverse=True):
        if not kept or np.log(kept[-1] / tick) > span / 9:
            kept.append(tick)
    return kept[::-1]
