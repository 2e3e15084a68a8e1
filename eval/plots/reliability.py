"""Reliability diagrams: how often what was called 70 % likely is so, and the expected calibration error."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from voxelfm_hf.eval.metrics.binary import expected_calibration_error
from voxelfm_hf.eval.plots.roc import Scored
from voxelfm_hf.eval.plots.style import (
    INK,
    dress,
    error_bars,
    labels,
    legend,
    looks,
    new_figure,
    plain,
    save,
    title,
)
from voxelfm_hf.eval.statistics.estimates import NORMAL

BINS = 10
COLUMNS = 2
MAX_BARS = 2


def save_reliability(path: str | Path, targets: Mapping[str, Mapping[str, Scored]]) -> Path:
    """Draws observed frequency against predicted probability, and below how the probabilities are spread.

    Bins are those of the expected calibration error (equal width); a point stands at the mean probability of its bin,
    its bar, drawn for up to two encoders, is Wilson's 95 % interval of the frequency, which takes rows for independent.

    Args:
        path: The PNG.
        targets: Target -> encoder -> its probabilities.

    Returns:
        The path.
    """
    shown = looks(encoder for scored in targets.values() for encoder in scored)
    across = min(len(targets), COLUMNS)
    down = -(-len(targets) // across)
    figure = new_figure(max(4.2 * across, 5.0), 4.8 * down)
    cells = figure.subplots(2 * down, across, squeeze=False, gridspec_kw={"height_ratios": [3.2, 1] * down})
    for axis in cells.ravel():
        axis.set_axis_off()
    for index, (target, by_encoder) in enumerate(targets.items()):
        row, column = 2 * (index // across), index % across
        above, below = cells[row, column], cells[row + 1, column]
        for axis in (above, below):
            axis.set_axis_on()
            dress(axis)
            axis.set_xlim(-0.02, 1.02)
        above.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        for encoder, given in by_encoder.items():
            rows, look = given.known(), shown[encoder]
            if not len(rows.labels):
                continue
            error = float(expected_calibration_error(rows.labels, rows.scores, bins=BINS))
            means, rates, low, high, _ = reliability(rows.labels, rows.scores)
            name = plain(f"{encoder}: ECE {error:.3f}, n {len(rows.labels)}")
            above.errorbar(
                means,
                rates,
                yerr=error_bars(rates.tolist(), low.tolist(), high.tolist()) if len(by_encoder) <= MAX_BARS else None,
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                markersize=5,
                linewidth=1.2,
                elinewidth=0.9,
                capsize=2,
                label=name,
            )
            edges = np.linspace(0, 1, BINS + 1)
            below.hist(rows.scores, bins=edges.tolist(), histtype="step", color=look.colour, linewidth=1.4)
        above.set_ylim(-0.02, 1.02 + 0.085 * len(by_encoder))  # room for the legend
        above.set_yticks(np.linspace(0, 1, 6))
        title(above, target)
        labels(above, "", "observed frequency")
        labels(below, "predicted probability", "rows")
        legend(above, where="upper left")
    return save(figure, path)


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, frequency, Wilson's (1927) interval and size of each bin that holds rows.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,); a bin includes its upper edge.
        bins: Number of equal-width bins.
        level: Coverage.

    Returns:
        Five arrays (filled bins,): mean probability, frequency, low, high, rows.
    """
    bin_of = np.clip(np.ceil(np.asarray(probabilities) * bins).astype(int) - 1, 0, bins - 1)
    sizes = np.bincount(bin_of, minlength=bins)
    filled = sizes > 0
    n = sizes[filled].astype(float)
    means = np.bincount(bin_of, weights=probabilities, minlength=bins)[filled] / n
    rates = np.bincount(bin_of, weights=labels, minlength=bins)[filled] / n
    z = NORMAL.inv_cdf((1 + level) / 2)
    middle = (rates + z**2 / (2 * n)) / (1 + z**2 / n)
    margin = z / (1 + z**2 / n) * np.sqrt(rates * (1 - rates) / n + z**2 / (4 * n**2))
    return means, rates, middle - margin, middle + margin, sizes[filled]
