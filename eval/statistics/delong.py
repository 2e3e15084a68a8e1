"""Analytic inference on the area under the ROC curve: DeLong, for one model or two, and Hanley-McNeil."""

from collections.abc import Sequence

import numpy as np

from voxelfm_hf.eval.metrics.binary import why_not_two_classes
from voxelfm_hf.eval.metrics.ranks import midranks
from voxelfm_hf.eval.statistics.estimates import NORMAL, Comparison, Estimate, undefined


def delong(
    labels: np.ndarray, scores: np.ndarray, *, patients: Sequence | np.ndarray | None = None, level: float = 0.95
) -> Estimate:
    """AUROC with DeLong's (1988) confidence interval, clipped to [0, 1].

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) higher means more likely 1.
        patients: (n,) identifiers when patients have several rows; the variance is then Obuchowski's (1997) for
            clustered data. Without them every row is its own patient.
        level: Coverage.

    Returns:
        Estimate: NaN with a sentence when there is only one class.
    """
    reason = why_not_two_classes(labels)
    if reason:
        return undefined(reason, n=len(labels))
    area, covariance = _areas_and_covariance(labels, [scores], patients)
    if not np.isfinite(covariance[0, 0]):
        note = "DeLong's variance needs two positives and two negatives of different patients"
        return Estimate(float(area[0]), float("nan"), float("nan"), len(labels), note)
    margin = NORMAL.inv_cdf((1 + level) / 2) * float(np.sqrt(max(covariance[0, 0], 0)))
    note = "" if margin > 0 else "classes are separated completely: the interval has no width; prefer the bootstrap"
    return Estimate(float(area[0]), *_clipped(area[0], margin), len(labels), note)


def delong_test(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    patients: Sequence | np.ndarray | None = None,
    level: float = 0.95,
) -> Comparison:
    """DeLong's test of two correlated AUROCs on the same rows.

    Args:
        labels: (n,) 0 or 1.
        first: (n,) scores of the first model; or (n, s) scores of its s fits, whose mean AUROC is then compared.
        second: (n,) or (n, s) scores of the second model.
        patients: (n,) identifiers when patients have several rows (Obuchowski's covariance).
        level: Coverage of the interval of the difference.

    Returns:
        Comparison: first - second; p_value 1 when both models rank every pair alike.
    """
    nan = float("nan")
    reason = why_not_two_classes(labels)
    if reason:
        return Comparison(nan, nan, nan, nan, len(labels), reason)
    fits = [np.asarray(scores).reshape(len(labels), -1).T for scores in (first, second)]
    area, covariance = _areas_and_covariance(labels, [scores for model in fits for scores in model], patients)
    contrast = np.concatenate(
        [np.full(len(model), sign / len(model)) for model, sign in zip(fits, (1, -1), strict=True)]
    )
    difference = float(contrast @ area)
    variance = float(contrast @ covariance @ contrast)
    if not np.isfinite(variance):
        note = "DeLong's variance needs two positives and two negatives of different patients"
        return Comparison(difference, nan, nan, nan, len(labels), note)
    error = float(np.sqrt(max(variance, 0)))
    if error < 1e-12:
        p_value = 1.0 if abs(difference) < 1e-12 else 0.0
        return Comparison(difference, difference, difference, p_value, len(labels), "the difference has no variance")
    margin = NORMAL.inv_cdf((1 + level) / 2) * error
    p_value = 2 * NORMAL.cdf(-abs(difference) / error)
    return Comparison(difference, difference - margin, difference + margin, p_value, len(labels))


def hanley_mcneil(labels: np.ndarray, scores: np.ndarray, *, level: float = 0.95) -> Estimate:
    """AUROC with the confidence interval of Hanley and McNeil (1982), clipped to [0, 1].

    It assumes independent rows and exponential score distributions; kept for comparison with published numbers.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) higher means more likely 1.
        level: Coverage.

    Returns:
        Estimate: NaN with a sentence when there is only one class.
    """
    reason = why_not_two_classes(labels)
    if reason:
        return undefined(reason, n=len(labels))
    positive = int((np.asarray(labels) == 1).sum())
    negative = len(labels) - positive
    area = float(_areas_and_covariance(labels, [scores], None)[0][0])
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positive - 1) * (q1 - area**2) + (negative - 1) * (q2 - area**2)
    margin = NORMAL.inv_cdf((1 + level) / 2) * float(np.sqrt(max(variance, 0) / (positive * negative)))
    return Estimate(area, *_clipped(area, margin), len(labels))


def _clipped(area: float, margin: float) -> tuple[float, float]:
    return float(max(0.0, area - margin)), float(min(1.0, area + margin))


def _areas_and_covariance(
    labels: np.ndarray, models: list[np.ndarray], patients: Sequence | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of each model, and the covariance of those areas from their structural components."""
    labels = np.asarray(labels) == 1
    m, n = int(labels.sum()), int((~labels).sum())
    excess = np.zeros((len(models), len(labels)))  # structural component minus area, for every row
    areas = np.empty(len(models))
    for index, scores in enumerate(models):
        scores = np.asarray(scores, dtype=float)
        ranks = midranks(scores)
        areas[index] = (ranks[labels].sum() - m * (m + 1) / 2) / (m * n)
        excess[index, labels] = (ranks[labels] - midranks(scores[labels])) / n - areas[index]
        excess[index, ~labels] = 1 - (ranks[~labels] - midranks(scores[~labels])) / m - areas[index]
    names = np.arange(len(labels)) if patients is None else np.asarray(patients).astype(str)
    clusters, group = np.unique(names, return_inverse=True)
    sums = np.zeros((2, len(models), len(clusters)))  # positives, negatives
    for side, rows in enumerate((labels, ~labels)):
        for index in range(len(models)):
            sums[side, index] = np.bincount(group[rows], weights=excess[index, rows], minlength=len(clusters))
    with_positive, with_negative = len(np.unique(group[labels])), len(np.unique(group[~labels]))
    if with_positive < 2 or with_negative < 2:
        return areas, np.full((len(models), len(models)), np.nan)
    cross = sums[0] @ sums[1].T
    covariance = (
        sums[0] @ sums[0].T * with_positive / ((with_positive - 1) * m**2)
        + sums[1] @ sums[1].T * with_negative / ((with_negative - 1) * n**2)
        + (cross + cross.T) * len(clusters) / ((len(clusters) - 1) * m * n)
    )
    return areas, covariance
