"""Metrics of a measured quantity: targets and predictions in the same unit."""

import numpy as np

from voxelfm_hf.eval.metrics.measure import Measure, by_name, mean, of_first
from voxelfm_hf.eval.metrics.ranks import checked_weights, midranks, ratio


def measures() -> dict[str, Measure]:
    """Measures of (targets, predictions) in one unit."""
    some = of_first(lambda targets: "" if len(targets) else "there are no rows with a target")

    def both_varying(targets: np.ndarray, predictions: np.ndarray) -> str:
        constant = len(predictions) and np.all(np.asarray(predictions) == np.asarray(predictions)[0])
        return why_not_varying(targets) or ("all predictions are equal: nothing to rank" if constant else "")

    return by_name(
        (
            Measure("mae", "mean absolute error", mae, some, higher_is_better=False),
            Measure("mse", "mean squared error", mse, some, higher_is_better=False),
            Measure("r2", "R²", r2, of_first(why_not_varying), chance=0.0),
            Measure("spearman", "Spearman correlation", spearman, both_varying, chance=0.0),
        )
    )


def why_not_varying(targets: np.ndarray) -> str:
    """A sentence when R2 and rank correlation have no meaning, otherwise an empty string."""
    targets = np.asarray(targets, dtype=float)
    if len(targets) < 2:
        return f"{len(targets)} rows with a target: at least two are needed"
    return "all targets are equal: there is nothing to explain" if (targets == targets[0]).all() else ""


def mae(targets: np.ndarray, predictions: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean absolute error, in the unit of the target; (...) for weights (..., n)."""
    return mean(np.abs(_difference(targets, predictions)), weights=weights)


def mse(targets: np.ndarray, predictions: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean squared error, in the squared unit of the target; (...) for weights (..., n)."""
    return mean(_difference(targets, predictions) ** 2, weights=weights)


def r2(targets: np.ndarray, predictions: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Share of the variance explained, 1 - SS_res / SS_tot about the mean of these targets; NaN for equal targets."""
    weights = checked_weights(weights, len(targets))
    targets = np.asarray(targets, dtype=float)
    total = weights.sum(-1)
    # Centred first: the difference of large squares would lose the digits that matter.
    centred = targets - targets.mean()
    spread = weights @ centred**2 - ratio((weights @ centred) ** 2, total)
    negligible = spread <= 1e-12 * (weights @ centred**2)
    return 1 - ratio(weights @ _difference(targets, predictions) ** 2, np.where(negligible, 0, spread))


def spearman(targets: np.ndarray, predictions: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Spearman's rank correlation with ties averaged; NaN when one side is constant."""
    weights = checked_weights(weights, len(targets))
    first, second = midranks(targets, weights), midranks(predictions, weights)
    total = weights.sum(-1, keepdims=True)
    first = first - ratio((weights * first).sum(-1, keepdims=True), total)
    second = second - ratio((weights * second).sum(-1, keepdims=True), total)
    spread = (weights * first**2).sum(-1) * (weights * second**2).sum(-1)
    return ratio((weights * first * second).sum(-1), np.sqrt(spread))


def _difference(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return np.asarray(predictions, dtype=float) - np.asarray(targets, dtype=float)
