"""Metrics of a ranked list; equal similarities count as if their order were drawn at random, never in our favour."""

import numpy as np

from voxelfm_hf.eval.metrics.measure import Measure, mean_measure


def recall_measure(k: int) -> Measure:
    """The mean of Recall@k over queries."""
    return mean_measure(f"recall_at_{k}", f"Recall@{k}")


def precision_measure() -> Measure:
    """The mean of the average precision over queries."""
    return mean_measure("map", "mean average precision")


def recall_at_k(similarities: np.ndarray, relevant: np.ndarray, *, k: int) -> float:
    """Expected share of the relevant items among the first k of one list.

    Args:
        similarities: (m,) similarity of each item of the pool to the query.
        relevant: (m,) bool.
        k: Length of the list that is looked at.

    Returns:
        A share in [0, 1]; with one relevant item, the chance that it is among the first k. NaN without a relevant item.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    similarities, relevant = np.asarray(similarities, dtype=float), np.asarray(relevant, dtype=bool)
    if not relevant.any():
        return float("nan")
    found = 0.0
    for value in np.unique(similarities[relevant]):
        ahead, tied = int((similarities > value).sum()), similarities == value
        found += (tied & relevant).sum() * np.clip((k - ahead) / tied.sum(), 0, 1)
    return float(found / relevant.sum())


def average_precision(similarities: np.ndarray, relevant: np.ndarray) -> float:
    """Average precision of one list, its expectation over the orders of tied items (McSherry and Najork 2008).

    Args:
        similarities: (m,) similarity of each item of the pool to the query.
        relevant: (m,) bool.

    Returns:
        A value in [0, 1]; its mean over queries is mAP. NaN without a relevant item.
    """
    similarities, relevant = np.asarray(similarities, dtype=float), np.asarray(relevant, dtype=bool)
    if not relevant.any():
        return float("nan")
    values, group = np.unique(-similarities, return_inverse=True)
    sizes = np.bincount(group, minlength=len(values))
    hits = np.bincount(group[relevant], minlength=len(values))
    ahead, found, total = np.cumsum(sizes) - sizes, np.cumsum(hits) - hits, 0.0
    for group_index in np.flatnonzero(hits):
        n, r = sizes[group_index], hits[group_index]
        position = np.arange(n)
        others = position * (r - 1) / (n - 1) if n > 1 else 0.0
        precision = (found[group_index] + 1 + others) / (ahead[group_index] + position + 1)
        total += r / n * precision.sum()
    return float(total / relevant.sum())
