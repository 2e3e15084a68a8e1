"""Bootstrap by patient: a metric with its interval, and the paired difference of two models.

A metric here is a function `metric(*arrays, weights)`: arrays share their first axis of n rows, `weights` is (..., n)
and the result (...). Drawing patients with replacement gives every row the number of times its patient was drawn, so
all replicates are one call with a (replicates, n) matrix of counts: exact resampling, without copying rows.
"""

from collections.abc import Callable, Sequence

import numpy as np

from voxelfm_hf.eval.metrics.measure import Metric
from voxelfm_hf.eval.statistics.estimates import NORMAL, Comparison, Estimate, undefined

MAX_WEIGHT_CELLS = 4_000_000
MAX_JACKKNIFE_GROUPS = 1000


def bootstrap(
    metric: Metric,
    *arrays: np.ndarray,
    patients: Sequence | np.ndarray | None = None,
    method: str = "bca",
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A metric with a bootstrap confidence interval that resamples patients, not rows.

    BCa is the bias-corrected and accelerated interval of Efron (1987), the acceleration from a jackknife over patients.

    Args:
        metric: Function `metric(*arrays, weights)` as described in this module; NaN where undefined.
        *arrays: Labels, scores... with n rows each.
        patients: n identifiers; rows of one patient are drawn together. Without them every row is its own patient.
        method: "bca" or "percentile".
        replicates: Number of bootstrap replicates.
        level: Coverage of the interval.
        seed: Seed of the draws.

    Returns:
        Estimate: NaN with a sentence when the metric is undefined on the data; an interval of NaN with a sentence when
        it is undefined in half of the replicates or more, there are fewer than two patients, or BCa gives an interval
        beside the value.
    """
    if method not in ("bca", "percentile"):
        raise ValueError(f"method must be 'bca' or 'percentile', got {method!r}")
    n = len(arrays[0])
    if n == 0:
        return undefined("there are no rows to score", n=0)
    group, count = _patient_index(patients, n)
    value = float(metric(*arrays, weights=np.ones(n)))
    if not np.isfinite(value):
        return undefined("the metric is undefined on these rows", n=n)
    if count < 2:
        return Estimate(value, float("nan"), float("nan"), n, "one patient gives no interval", count)
    draws = _replicate(metric, arrays, group, count, replicates, seed)
    low, high, note = _interval(
        draws, value, level, (lambda: _jackknife(metric, arrays, group, count)) if method == "bca" else None
    )
    return Estimate(value, low, high, n, note, count)


def paired_bootstrap(
    metric: Metric,
    targets: np.ndarray | tuple[np.ndarray, ...],
    first: np.ndarray,
    second: np.ndarray,
    *,
    patients: Sequence | np.ndarray | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """The difference metric(targets, first) - metric(targets, second) under the same draws of patients for both.

    Args:
        metric: Function `metric(*targets, scores, weights)`.
        targets: One array, or a tuple of arrays (times, events), of n rows.
        first: Scores of the first model, n rows.
        second: Scores of the second model on the same rows.
        patients: n identifiers drawn together; every row by itself without them.
        replicates: Number of bootstrap replicates.
        level: Coverage of the percentile interval.
        seed: Seed of the draws.

    Returns:
        Comparison: p_value is twice the smaller share of replicates on either side of zero, with one added to both
        counts (Davison and Hinkley 1997, 4.11), so it is never 0.
    """
    targets = targets if isinstance(targets, tuple) else (targets,)
    n = len(first)
    nan = float("nan")
    if n == 0:
        return Comparison(nan, nan, nan, nan, 0, "there are no rows to compare")
    group, count = _patient_index(patients, n)

    def difference(*arrays: np.ndarray, weights: np.ndarray) -> np.ndarray:
        *shared, one, other = arrays
        return metric(*shared, one, weights=weights) - metric(*shared, other, weights=weights)

    arrays = (*targets, first, second)
    value = float(difference(*arrays, weights=np.ones(n)))
    if not np.isfinite(value):
        return Comparison(nan, nan, nan, nan, n, "the metric is undefined on these rows")
    if count < 2:
        return Comparison(value, nan, nan, nan, n, "one patient gives no interval")
    draws = _replicate(difference, arrays, group, count, replicates, seed)
    low, high, note = _interval(draws, value, level, None)
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(low):
        return Comparison(value, nan, nan, nan, n, note)
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    return Comparison(value, low, high, float(min(1.0, 2 * (tail + 1) / (len(draws) + 1))), n, note)


def _patient_index(patients: Sequence | np.ndarray | None, n: int) -> tuple[np.ndarray, int]:
    """Row -> patient number, and the number of patients."""
    if patients is None:
        return np.arange(n), n
    names, group = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    if len(group) != n:
        raise ValueError(f"patients has {len(group)} entries for {n} rows")
    return group, len(names)


def _replicate(metric: Metric, arrays: tuple, group: np.ndarray, count: int, replicates: int, seed: int) -> np.ndarray:
    """The metric on each bootstrap draw of patients, in chunks that bound memory."""
    rng = np.random.default_rng(seed)
    chunk = max(1, MAX_WEIGHT_CELLS // max(len(group), count))
    draws = []
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        drawn = rng.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        draws.append(metric(*arrays, weights=counts[:, group].astype(float)))
    return np.concatenate(draws)


def _jackknife(metric: Metric, arrays: tuple, group: np.ndarray, count: int) -> np.ndarray:
    """The metric without each patient (without each of 1,000 blocks of patients when there are more)."""
    blocks = min(count, MAX_JACKKNIFE_GROUPS)
    block = (np.arange(count) * blocks // count)[group]
    chunk = max(1, MAX_WEIGHT_CELLS // len(group))
    values = []
    for start in range(0, blocks, chunk):
        left_out = np.arange(start, min(start + chunk, blocks))
        values.append(metric(*arrays, weights=(block[None] != left_out[:, None]).astype(float)))
    return np.concatenate(values)


def _interval(
    draws: np.ndarray, value: float, level: float, jackknife: Callable[[], np.ndarray] | None
) -> tuple[float, float, str]:
    """Low, high and a note; BCa when a jackknife is given, percentile otherwise."""
    finite = draws[np.isfinite(draws)]
    lost = len(draws) - len(finite)
    if lost * 2 >= len(draws):
        return float("nan"), float("nan"), f"undefined in {lost} of {len(draws)} bootstrap replicates: too few cases"
    note = f"{lost} of {len(draws)} bootstrap replicates were undefined and left out" if lost else ""
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if jackknife is not None:
        tails = _bca_tails(finite, value, tails, jackknife())
    low, high = np.quantile(finite, tails)
    rounding = 1e-9 * max(1.0, abs(value))
    if jackknife is not None and not low - rounding <= value <= high + rounding:
        # Resampling moves it by more than its spread, as it does with a mean of absolute gaps (ECE) near zero.
        return float("nan"), float("nan"), "no interval: it is so biased in resamples that BCa does not hold"
    return float(low), float(high), note


def _bca_tails(draws: np.ndarray, value: float, tails: np.ndarray, jackknife: np.ndarray) -> np.ndarray:
    """The percentiles that bias correction and acceleration move the two tails to."""
    # Ties with the estimate (a perfect AUROC) count half, otherwise the correction would be infinite.
    below = ((draws < value).sum() + 0.5 * (draws == value).sum()) / len(draws)
    smallest = 0.5 / len(draws)
    bias = NORMAL.inv_cdf(float(np.clip(below, smallest, 1 - smallest)))
    influence = jackknife[np.isfinite(jackknife)]
    influence = influence.mean() - influence if len(influence) else np.zeros(1)
    spread = (influence**2).sum()
    acceleration = (influence**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    moved = []
    for tail in tails:
        z = bias + NORMAL.inv_cdf(float(tail))
        moved.append(NORMAL.cdf(bias + z / (1 - acceleration * z)))
    return np.array(moved)
