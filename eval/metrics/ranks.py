"""Ranks and cumulative counts with ties, for any number of weight vectors at once."""

import numpy as np


def checked_weights(weights: np.ndarray | None, n: int) -> np.ndarray:
    """Weights as float (..., n); ones when there are none."""
    if weights is None:
        return np.ones(n)
    weights = np.asarray(weights, dtype=float)
    if weights.shape[-1] != n:
        raise ValueError(f"weights have {weights.shape[-1]} columns for {n} rows")
    return weights


def tie_groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order that sorts values upwards, and where each group of equal values starts in it."""
    values = np.asarray(values, dtype=float)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return order, starts


def midranks(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Ranks from 1 with ties averaged; a weight k counts a row k times.

    Args:
        values: (n,).
        weights: (..., n) counts, or None for ones.

    Returns:
        (..., n) ranks.
    """
    weights = checked_weights(weights, len(values))
    order, starts = tie_groups(values)
    inside = np.add.reduceat(weights[..., order], starts, axis=-1)
    rank = np.cumsum(inside, axis=-1) - inside + (inside + 1) / 2
    group = np.empty(len(order), dtype=int)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(order)]))
    return rank[..., group]


def cumulative_counts(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives and of the negatives at or above each distinct score, from the highest down.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,).
        weights: (..., n).

    Returns:
        Two arrays (..., distinct scores): the unnormalised ROC curve without its origin.
    """
    labels = np.asarray(labels, dtype=float)
    order, starts = tie_groups(-np.asarray(scores, dtype=float))
    ordered = weights[..., order]
    positive = np.add.reduceat(ordered * labels[order], starts, axis=-1)
    negative = np.add.reduceat(ordered * (1 - labels[order]), starts, axis=-1)
    return np.cumsum(positive, axis=-1), np.cumsum(negative, axis=-1)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    denominator = np.asarray(denominator, dtype=float)
    return np.divide(numerator, np.where(denominator == 0, np.nan, denominator))
