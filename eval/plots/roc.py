"""ROC curves: one panel a target, one curve an encoder, with a band when there is room for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxelfm_hf.eval.metrics.binary import why_not_two_classes
from voxelfm_hf.eval.metrics.ranks import cumulative_counts
from voxelfm_hf.eval.plots.style import INK, labels, legend, looks, panels, plain, save, title
from voxelfm_hf.eval.statistics.delong import delong

BAND_REPLICATES = 500
MAX_BANDS = 2
# Specificities at which bands are computed.
GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class Scored:
    """What one encoder said about the test rows of one yes/no target.

    Args:
        labels: (n,) 0 or 1; NaN rows are left out.
        scores: (n,) higher means more likely 1; for reliability diagrams probabilities.
        patients: (n,) identifiers; intervals are by patient.
    """

    labels: np.ndarray
    scores: np.ndarray
    patients: Sequence | np.ndarray | None = None

    def known(self) -> "Scored":
        """The rows with a label and a score."""
        labels, scores = np.asarray(self.labels, float), np.asarray(self.scores, float)
        rows = np.isfinite(labels) & np.isfinite(scores)
        return Scored(labels[rows], scores[rows], None if self.patients is None else np.asarray(self.patients)[rows])


def save_roc(path: str | Path, targets: Mapping[str, Mapping[str, Scored]]) -> Path:
    """Draws ROC curves with AUROC and DeLong's interval (clustered by patient) in the legend.

    With one or two curves in a panel each has a band: the pointwise 95 % interval of the sensitivity at each
    specificity, by bootstrap over patients.

    Args:
        path: The PNG.
        targets: Target -> encoder -> its scores.

    Returns:
        The path.
    """
    shown = looks(encoder for scored in targets.values() for encoder in scored)
    crowd = max((len(scored) for scored in targets.values()), default=0)
    figure, cells = panels(len(targets), height=4.3 + 0.18 * crowd)
    figure.set_layout_engine("constrained", h_pad=0.12)
    for axis, (target, by_encoder) in zip(cells, targets.items(), strict=True):
        counts = set()
        for encoder, given in by_encoder.items():
            rows, look = given.known(), shown[encoder]
            counts.add(f"{len(rows.labels)} rows, {int((rows.labels == 1).sum())} positive")
            reason = why_not_two_classes(rows.labels)
            if reason:
                axis.plot([], [], color=look.colour, label=plain(f"{encoder}: {reason}"))
                continue
            area = delong(rows.labels, rows.scores, patients=rows.patients)
            interval = f" [{area.low:.2f}, {area.high:.2f}]" if np.isfinite(area.low) else ""
            fall_out, sensitivity = roc_curve(rows.labels, rows.scores)
            name = plain(f"{encoder}: {area.value:.2f}{interval}")
            axis.plot(fall_out, sensitivity, color=look.colour, linestyle=look.dash, linewidth=1.8, label=name)
            if len(by_encoder) <= MAX_BANDS:
                low, high = roc_band(rows)
                axis.fill_between(GRID, low, high, color=look.colour, alpha=0.15, linewidth=0)
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        title(axis, f"{target} ({'; '.join(sorted(counts))})")
        labels(axis, "1 - specificity", "sensitivity")
        # No corner is free of curves for sure.
        legend(axis, where="below")
    return save(figure, path)


def roc_curve(
    labels: np.ndarray, scores: np.ndarray, *, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """1 - specificity and sensitivity at every threshold, from (0, 0) to (1, 1); tied scores move together.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,).
        weights: (..., n) row counts.

    Returns:
        Two arrays (..., thresholds + 1).
    """
    weights = np.ones(len(labels)) if weights is None else weights
    positive, negative = cumulative_counts(labels, scores, weights)
    start = np.zeros((*positive.shape[:-1], 1))
    with np.errstate(invalid="ignore"):
        sensitivity = np.concatenate([start, positive / positive[..., -1:]], axis=-1)
        fall_out = np.concatenate([start, negative / negative[..., -1:]], axis=-1)
    return fall_out, sensitivity


def roc_band(scored: Scored, *, replicates: int = BAND_REPLICATES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise 2.5 % and 97.5 % of the sensitivity on GRID over bootstrap draws of patients."""
    names = np.arange(len(scored.labels)) if scored.patients is None else np.asarray(scored.patients).astype(str)
    _, group = np.unique(names, return_inverse=True)
    count = int(group.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=replicates)
    fall_out, sensitivity = roc_curve(scored.labels, scored.scores, weights=drawn[:, group].astype(float))
    usable = np.isfinite(fall_out[:, -1]) & np.isfinite(sensitivity[:, -1])
    curves = np.array([np.interp(GRID, x, y) for x, y in zip(fall_out[usable], sensitivity[usable], strict=True)])
    if not len(curves):
        return np.full(len(GRID), np.nan), np.full(len(GRID), np.nan)
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    return low, high
