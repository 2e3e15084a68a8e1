"""What is chosen after a probe is fitted, mostly on validation rows: temperature, threshold, interval, baseline."""

import math

import numpy as np

TEMPERATURE_RANGE = (0.05, 20.0)
MAX_BASELINE_STEPS = 100


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T that minimises the negative log-likelihood of logits / T (Guo et al. 2017).

    Args:
        logits: (n,) of a yes/no finding, or (n, K) of exclusive classes.
        labels: (n,) 0 or 1, or class numbers; NaN or negative where missing.

    Returns:
        T within [0.05, 20]; 1 when fewer than two classes are labelled, since nothing can be calibrated then.
    """
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
    known = labels >= 0
    logits, labels = logits[known], labels[known].astype(int)
    if len(np.unique(labels)) < 2:
        return 1.0
    if logits.ndim == 1:
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        top = scaled.max(axis=1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - scaled[rows, labels]).mean())

    # The loss is convex in 1 / T, hence has one valley in log T.
    return math.exp(_minimum(loss, *(math.log(bound) for bound in TEMPERATURE_RANGE)))


def choose_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The probability that best separates the classes: the largest sensitivity + specificity (Youden's J).

    Args:
        labels: (n,) 0 or 1, NaN where missing.
        probabilities: (n,).

    Returns:
        The middle between two neighbouring probabilities; 0.5 when only one class is labelled.
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    known = np.isfinite(labels)
    labels, probabilities = labels[known] == 1, probabilities[known]
    if labels.all() or not labels.any():
        return 0.5
    values, group = np.unique(probabilities, return_inverse=True)
    if len(values) == 1:
        return 0.5
    positive = np.bincount(group, weights=labels, minlength=len(values))
    negative = np.bincount(group, weights=~labels, minlength=len(values))
    youden = (np.cumsum(negative) / negative.sum() - np.cumsum(positive) / positive.sum())[:-1]
    best = int(np.argmax(youden))
    return float((values[best] + values[best + 1]) / 2)


def interval_half_width(errors: np.ndarray, *, level: float = 0.9) -> float | None:
    """Half width of a split-conformal prediction interval from errors on rows the fit has not seen.

    Args:
        errors: (n,) prediction minus target, NaN where missing.
        level: Coverage.

    Returns:
        The ceil((n + 1) level)-th smallest absolute error; None when n is too small for that coverage.
    """
    absolute = np.sort(np.abs(np.asarray(errors, dtype=float)[np.isfinite(errors)]))
    position = math.ceil((len(absolute) + 1) * level)
    return float(absolute[position - 1]) if 1 <= position <= len(absolute) else None


def baseline_hazard(times: np.ndarray, events: np.ndarray, risks: np.ndarray) -> tuple[list[float], list[float]]:
    """Breslow's cumulative baseline hazard of a fitted Cox model.

    Args:
        times: (n,) follow-up.
        events: (n,) 0 or 1.
        risks: (n,) log risks of the model.

    Returns:
        Times (the event times, at most 100 of them, and the last follow-up) and the cumulative hazard at each.
    """
    times, events = np.asarray(times, dtype=float), np.asarray(events) == 1
    hazards = np.exp(np.asarray(risks, dtype=float))
    steps = np.unique(times[events])
    deaths = np.array([(events & (times == step)).sum() for step in steps])
    at_risk = np.array([hazards[times >= step].sum() for step in steps])
    cumulative = np.cumsum(deaths / at_risk)
    if len(steps) > MAX_BASELINE_STEPS:
        kept = np.unique(np.linspace(0, len(steps) - 1, MAX_BASELINE_STEPS).round().astype(int))
        steps, cumulative = steps[kept], cumulative[kept]
    if len(steps) and times.max() > steps[-1]:
        steps, cumulative = np.append(steps, times.max()), np.append(cumulative, cumulative[-1])
    return steps.tolist(), cumulative.tolist()


def _minimum(function, low: float, high: float) -> float:
    """Golden-section search of the lowest point of a function with one valley."""
    shrink = (math.sqrt(5) - 1) / 2
    left, right = high - shrink * (high - low), low + shrink * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > 1e-6:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - shrink * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + shrink * (high - low)
            at_right = function(right)
    return (low + high) / 2
