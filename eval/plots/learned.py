"""What pre-training has taught: scores beside those of the untrained model and the histogram, and against steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelfm_hf.eval.metrics.catalogue import metric_title
from voxelfm_hf.eval.plots.style import (
    COLOURS,
    DASHES,
    dress,
    error_bars,
    labels,
    legend,
    new_figure,
    save,
    title,
)

KIND_COLOURS = {"trained": COLOURS[0], "untrained": COLOURS[7], "histogram": COLOURS[4]}
OTHER_COLOUR = COLOURS[3]


def save_comparison(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Draws one panel of bars with their intervals a task; a dotted line marks chance.

    Args:
        path: The PNG.
        results: From `learned.comparison.compare`.

    Returns:
        The path.
    """
    figure = new_figure(5 * len(results["tasks"]), 4.6)
    cells = figure.subplots(1, len(results["tasks"]), squeeze=False)[0]
    for axis, (name, task) in zip(cells, results["tasks"].items(), strict=True):
        rows = [row for row in results["rows"] if row["task"] == name][::-1]
        values, low, high = ([row[part] for row in rows] for part in ("value", "low", "high"))
        colours = [KIND_COLOURS.get(row["encoder"].split()[0], OTHER_COLOUR) for row in rows]
        dress(axis, grid="x")
        axis.barh(
            [row["encoder"] for row in rows], values, xerr=error_bars(values, low, high), color=colours, capsize=3
        )
        axis.axvline(1 / len(task["regions"]), color="black", linestyle=":")
        axis.set_xlim(0, 1)
        labels(axis, f"{metric_title(rows[0]['metric'])} (dotted: chance)", "")
        title(axis, task["target"])
    return save(figure, path)


def save_curve(path: str | Path, curve: Mapping[str, Any]) -> Path:
    """Draws one panel of scores against pre-training steps a task.

    Args:
        path: The PNG.
        curve: From `learned.comparison.curve`.

    Returns:
        The path.
    """
    figure = new_figure(5 * len(curve["tasks"]), 4)
    cells = figure.subplots(1, len(curve["tasks"]), squeeze=False)[0]
    steps = [point["step"] for point in curve["points"]]
    for axis, (name, task) in zip(cells, curve["tasks"].items(), strict=True):
        dress(axis)
        dashes = dict(zip(curve["points"][0][name], DASHES, strict=False))
        for readout, dash in dashes.items():
            scores = [point[name][readout] for point in curve["points"]]
            axis.plot(
                steps, scores, linestyle=dash, marker="o", color=KIND_COLOURS["trained"], label=f"trained {readout}"
            )
        for encoder, score in curve["references"][name].items():
            kind, _, readout = encoder.partition(" ")
            axis.axhline(score, linestyle=dashes.get(readout, ":"), color=KIND_COLOURS[kind], label=encoder)
        labels(axis, "pre-training step", metric_title(task["metric"]))
        title(axis, task["target"])
    legend(cells[0])
    return save(figure, path)
