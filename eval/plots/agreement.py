"""Predicted against measured values of a regression, with the prediction interval, one panel a target."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxelfm_hf.eval.metrics.continuous import mae, r2
from voxelfm_hf.eval.plots.style import COLOURS, INK, labels, legend, panels, plain, save, title


@dataclass(frozen=True, eq=False)
class Measured:
    """One target of a regression on the test rows.

    Args:
        truth: (n,) measured values; NaN rows are left out.
        predicted: (n,) predicted values.
        half_width: Half width of the prediction interval.
        level: Its coverage.
        unit: Of the values.
    """

    truth: np.ndarray
    predicted: np.ndarray
    half_width: float | None = None
    level: float | None = None
    unit: str | None = None


def save_agreement(path: str | Path, targets: Mapping[str, Measured]) -> Path:
    """Draws predicted against measured values; the band is what the prediction interval covers.

    Args:
        path: The PNG.
        targets: Target -> its values.

    Returns:
        The path.
    """
    figure, cells = panels(len(targets), height=4.0)
    for axis, (name, values) in zip(cells, targets.items(), strict=True):
        truth, predicted = np.asarray(values.truth, float), np.asarray(values.predicted, float)
        known = np.isfinite(truth) & np.isfinite(predicted)
        truth, predicted = truth[known], predicted[known]
        both = np.concatenate([truth, predicted])
        ends = np.array([both.min(), both.max()]) if len(both) else np.array([0.0, 1.0])
        axis.plot(ends, ends, color=INK, linewidth=0.9, linestyle=":")
        if values.half_width is not None:
            inside = np.abs(predicted - truth) <= values.half_width
            share = f"{100 * inside.mean():.0f} % of the rows inside" if len(truth) else "no rows"
            level = f"{100 * values.level:g} % prediction interval" if values.level else "prediction interval"
            axis.fill_between(
                ends,
                ends - values.half_width,
                ends + values.half_width,
                color=COLOURS[5],
                alpha=0.2,
                linewidth=0,
                label=plain(f"{level}: {share}"),
            )
            legend(axis, where="upper left")
        axis.plot(truth, predicted, "o", color=COLOURS[0], markersize=4, alpha=0.65, markeredgewidth=0)
        score = f"MAE {float(mae(truth, predicted)):.3g}, R² {float(r2(truth, predicted)):.2f}, " if len(truth) else ""
        unit = f" ({values.unit})" if values.unit else " (unit of the label)"
        title(axis, f"{name}: {score}n {len(truth)}")
        labels(axis, f"measured{unit}", f"predicted{unit}")
    return save(figure, path)
