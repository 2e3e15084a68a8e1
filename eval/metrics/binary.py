"""Metrics of a yes/no finding: labels 0 or 1 and scores, or probabilities, of the same rows."""

from functools import partial

import numpy as np

from voxelfm_hf.eval.metrics.measure import Measure, by_name, of_first
from voxelfm_hf.eval.metrics.ranks import checked_weights, cumulative_counts, ratio


def measures(*, threshold: float = 0.5, specificity: float = 0.9) -> dict[str, Measure]:
    """Measures of (labels, probabilities) of a yes/no finding."""
    both, some, positives = of_first(why_not_two_classes), of_first(why_no_rows), of_first(_why_no_positive)
    return by_name(
        (
            Measure("auroc", "AUROC", auroc, both, chance=0.5),
            Measure("auprc", "average precision", auprc, both),
            Measure("f1", "F1", partial(f1, threshold=threshold), positives),
            Measure(
                f"sensitivity_at_specificity_{specificity:g}",
                f"sensitivity at specificity {specificity:g}",
                partial(sensitivity_at_specificity, specificity=specificity),
                both,
            ),
            Measure("balanced_accuracy", "balanced accuracy", partial(balanced_accuracy, threshold=threshold), both),
            Measure("brier", "Brier score", brier, some, higher_is_better=False),
            Measure("ece", "expected calibration error", expected_calibration_error, some, higher_is_better=False),
        )
    )


def why_no_rows(labels: np.ndarray) -> str:
    """A sentence when there are no rows, otherwise an empty string."""
    return "" if len(labels) else "there are no labelled rows"


def why_not_two_classes(labels: np.ndarray) -> str:
    """A sentence when the labels do not hold both classes, otherwise an empty string."""
    labels = np.asarray(labels, dtype=float)
    if len(labels) == 0:
        return "there are no labelled rows"
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1; leave rows with missing labels out first")
    if (labels == 1).all() or (labels == 0).all():
        return f"all {len(labels)} labels are {int(labels[0])}: two classes are needed"
    return ""


def auroc(labels: np.ndarray, scores: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) higher means more likely 1.
        weights: (..., n) row counts, or None.

    Returns:
        (...) areas; NaN where a class has no weight.
    """
    positive, negative = cumulative_counts(labels, scores, checked_weights(weights, len(labels)))
    step = np.diff(negative, axis=-1, prepend=0)
    height = positive - np.diff(positive, axis=-1, prepend=0) / 2
    return ratio((step * height).sum(-1), positive[..., -1] * negative[..., -1])


def auprc(labels: np.ndarray, scores: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision, the step-wise area under the precision-recall curve; tied scores enter together.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) higher means more likely 1.
        weights: (..., n) row counts, or None.

    Returns:
        (...) areas; NaN where a class has no weight (without negatives it would always be 1).
    """
    positive, negative = cumulative_counts(labels, scores, checked_weights(weights, len(labels)))
    gained = np.diff(positive, axis=-1, prepend=0)
    precision = np.divide(positive, positive + negative, out=np.zeros_like(positive), where=positive > 0)
    area = (gained * precision).sum(-1)
    return ratio(area, np.where(negative[..., -1] > 0, positive[..., -1], 0))


def sensitivity_at_specificity(
    labels: np.ndarray, scores: np.ndarray, *, specificity: float = 0.9, weights: np.ndarray | None = None
) -> np.ndarray:
    """The highest sensitivity of any threshold whose specificity is at least the given one (no interpolation).

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) higher means more likely 1.
        specificity: Required specificity in [0, 1].
        weights: (..., n) row counts, or None.

    Returns:
        (...) sensitivities; NaN where a class has no weight.
    """
    positive, negative = cumulative_counts(labels, scores, checked_weights(weights, len(labels)))
    # The slack absorbs rounding in specificities such as 1 - 0.9.
    allowed = negative <= (1 - specificity + 1e-12) * negative[..., -1:]
    best = np.where(allowed, positive, 0).max(-1)
    return ratio(best, np.where(negative[..., -1] > 0, positive[..., -1], 0))


def confusion(
    labels: np.ndarray, scores: np.ndarray, *, threshold: float = 0.5, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights of the true positives, false positives, false negatives, true negatives; score >= threshold is a yes."""
    weights = checked_weights(weights, len(labels))
    labels = np.asarray(labels) == 1
    called = np.asarray(scores, dtype=float) >= threshold
    cells = (labels & called, ~labels & called, labels & ~called, ~labels & ~called)
    true_positive, false_positive, false_negative, true_negative = (weights @ cell.astype(float) for cell in cells)
    return true_positive, false_positive, false_negative, true_negative


def f1(
    labels: np.ndarray, scores: np.ndarray, *, threshold: float = 0.5, weights: np.ndarray | None = None
) -> np.ndarray:
    """Harmonic mean of precision and sensitivity at a threshold; NaN without positives."""
    hit, false_alarm, missed, _ = confusion(labels, scores, threshold=threshold, weights=weights)
    return ratio(2 * hit, np.where(hit + missed > 0, 2 * hit + false_alarm + missed, 0))


def balanced_accuracy(
    labels: np.ndarray, scores: np.ndarray, *, threshold: float = 0.5, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean of sensitivity and specificity at a threshold; NaN without both classes."""
    hit, false_alarm, missed, spared = confusion(labels, scores, threshold=threshold, weights=weights)
    return (ratio(hit, hit + missed) + ratio(spared, spared + false_alarm)) / 2


def brier(labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean squared difference between probability and label; defined for one class too."""
    weights = checked_weights(weights, len(labels))
    squared = (np.asarray(probabilities, dtype=float) - np.asarray(labels, dtype=float)) ** 2
    return ratio(weights @ squared, weights.sum(-1))


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 10, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean gap between probability and frequency over equal-width bins, weighted by their size (Naeini et al. 2015).

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,) of the positive class, in [0, 1]; a bin includes its upper edge.
        bins: Number of bins.
        weights: (..., n) row counts, or None.

    Returns:
        (...) errors in [0, 1].
    """
    weights = checked_weights(weights, len(labels))
    probabilities = np.asarray(probabilities, dtype=float)
    bin_of = np.clip(np.ceil(probabilities * bins).astype(int) - 1, 0, bins - 1)
    member = (bin_of[:, None] == np.arange(bins)).astype(float)
    gap = (weights * (probabilities - np.asarray(labels, dtype=float))) @ member
    return ratio(np.abs(gap).sum(-1), weights.sum(-1))


def _why_no_positive(labels: np.ndarray) -> str:
    return "" if np.any(np.asarray(labels) == 1) else "there is no positive row"
