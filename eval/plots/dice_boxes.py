"""Boxes of the Dice of each class over the test scans, encoders side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from voxelfm_hf.eval.plots.style import (
    TEXT_SIZE,
    Look,
    dress,
    labels,
    looks,
    new_figure,
    plain,
    save,
    shared_legend,
    title,
)

BOXES_A_ROW = 30


def save_dice_boxes(path: str | Path, scores: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """Draws quartiles with whiskers to 1.5 interquartile ranges, and every scan as a point.

    Args:
        path: The PNG.
        scores: Encoder -> class -> (scans,) values; NaN where a class was not annotated.

    Returns:
        The path.
    """
    shown = looks(scores)
    classes = list(dict.fromkeys(name for by_class in scores.values() for name in by_class))
    per_row = min(len(classes), max(1, BOXES_A_ROW // len(scores)))
    down = -(-len(classes) // per_row)
    figure = new_figure(min(9.0, max(6.0, 0.5 + (0.3 + 0.4 * len(scores)) * per_row)), 3.9 * down)
    cells = figure.subplots(down, 1, squeeze=False)[:, 0]
    for row, axis in enumerate(cells):
        inside = classes[row * per_row : (row + 1) * per_row]
        dress(axis, grid="y")
        for number, (encoder, by_class) in enumerate(scores.items()):
            _boxes(
                axis,
                [np.asarray(by_class.get(name, ()), float) for name in inside],
                shown[encoder],
                number,
                len(scores),
            )
            axis.plot([], [], shown[encoder].marker, color=shown[encoder].colour, label=plain(encoder))
        ticks = [plain(f"{name}\nn {_count(scores, name)}") for name in inside]
        axis.set_xticks(range(len(inside)), ticks, fontsize=TEXT_SIZE - 1)
        if max(len(name) for name in inside) * len(inside) > 80:
            axis.tick_params(axis="x", rotation=35)
        axis.set(xlim=(-0.5, per_row - 0.5), ylim=(-0.02, 1.02))
        labels(axis, "", "Dice of a scan")
    title(cells[0], "Dice by class (n: scans where it is annotated)")
    if len(scores) > 1:
        shared_legend(figure, cells[0])
    return save(figure, path)


def _boxes(axis, columns: list[np.ndarray], look: Look, number: int, encoders: int) -> None:
    """The boxes of one encoder, beside those of the others."""
    width = 0.8 / encoders
    rng = np.random.default_rng(number)
    for place, values in enumerate(columns):
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        at = place - 0.4 + width * (number + 0.5)
        axis.boxplot(
            [values],
            positions=[at],
            widths=min(0.8 * width, 0.35),
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": look.colour, "alpha": 0.3, "edgecolor": look.colour},
            medianprops={"color": look.colour, "linewidth": 2},
            whiskerprops={"color": look.colour},
            capprops={"color": look.colour},
            manage_ticks=False,
        )
        spread = at + rng.uniform(-0.22, 0.22, len(values)) * min(width, 0.4)
        axis.plot(spread, values, look.marker, color=look.colour, markersize=2.5, alpha=0.6, markeredgewidth=0)


def _count(scores: Mapping[str, Mapping[str, np.ndarray]], name: str) -> str:
    """How many scans have a value, as one number or a range over the encoders."""
    values = (np.asarray(by_class.get(name, ()), float) for by_class in scores.values())
    numbers = sorted({int(np.isfinite(found).sum()) for found in values})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
