"""Metrics of a risk score against right-censored times: event 1 means observed at `times`, 0 means censored then."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from voxelfm_hf.eval.metrics.measure import Measure, by_name
from voxelfm_hf.eval.metrics.ranks import checked_weights, ratio


def measures(*, horizons: Sequence[float] = ()) -> dict[str, Measure]:
    """Measures of (times, events, risks); one AUROC for each horizon, in the unit of the times."""

    def unordered(times: np.ndarray, events: np.ndarray, risks: np.ndarray) -> str:
        return why_no_concordance(times, events)

    return by_name((Measure("c_index", "C-index", concordance, unordered, chance=0.5), *map(horizon_measure, horizons)))


def horizon_measure(horizon: float) -> Measure:
    """The AUROC at one horizon."""

    def one_sided(times: np.ndarray, events: np.ndarray, risks: np.ndarray) -> str:
        return why_no_horizon(times, events, horizon=horizon)

    function = partial(time_dependent_auroc, horizon=horizon)
    return Measure(f"auroc_at_{horizon:g}", f"AUROC at time {horizon:g}", function, one_sided)


def why_no_concordance(times: np.ndarray, events: np.ndarray) -> str:
    """A sentence when no pair of rows can be ordered, otherwise an empty string."""
    times, events = np.asarray(times, dtype=float), np.asarray(events) == 1
    if not events.any():
        return f"no event among {len(times)} rows"
    first = times[events].min()
    later = (times > first).any() or ((times == first) & ~events).any()
    return "" if later else "every event falls on the last observed time: no pair can be ordered"


def why_no_horizon(times: np.ndarray, events: np.ndarray, *, horizon: float) -> str:
    """A sentence when nobody had the event by the horizon or nobody was followed beyond it."""
    labels = horizon_labels(times, events, horizon=horizon)
    if not (labels == 1).any():
        return f"no event by {horizon:g}"
    return "" if (labels == 0).any() else f"nobody was followed beyond {horizon:g}"


def horizon_labels(times: np.ndarray, events: np.ndarray, *, horizon: float) -> np.ndarray:
    """(n,) 1 for an event by the horizon, 0 for follow-up beyond it, NaN for those censored earlier."""
    times, events = np.asarray(times, dtype=float), np.asarray(events) == 1
    return np.where(times > horizon, 0.0, np.where(events, 1.0, np.nan))


def concordance(
    times: np.ndarray, events: np.ndarray, risks: np.ndarray, *, weights: np.ndarray | None = None
) -> np.ndarray:
    """Harrell's C: among pairs whose order is known, how often the earlier event has the higher risk.

    A pair is comparable when one had the event before the other's time, or at the time the other was censored; two
    events at one time are not. Equal risks count half.

    Args:
        times: (n,) follow-up, any unit.
        events: (n,) 0 or 1.
        risks: (n,) higher means earlier.
        weights: (..., n) row counts, or None.

    Returns:
        (...) values; NaN where no pair is comparable.
    """
    times, risks = np.asarray(times, dtype=float), np.asarray(risks, dtype=float)
    events = np.asarray(events) == 1
    weights = checked_weights(weights, len(times))
    agreed, comparable = np.zeros(weights.shape[:-1]), np.zeros(weights.shape[:-1])
    rows = np.flatnonzero(events)
    # Pairs in blocks of event rows: memory stays linear in the number of patients.
    for block in np.array_split(rows, max(1, len(rows) * len(times) // 1_000_000)):
        later = (times[None] > times[block, None]) | ((times[None] == times[block, None]) & ~events[None])
        higher = np.where(risks[block, None] == risks[None], 0.5, risks[block, None] > risks[None])
        agreed = agreed + (weights[..., block] * (weights @ (later * higher).T)).sum(-1)
        comparable = comparable + (weights[..., block] * (weights @ later.astype(float).T)).sum(-1)
    return ratio(agreed, comparable)


def time_dependent_auroc(
    times: np.ndarray,
    events: np.ndarray,
    risks: np.ndarray,
    *,
    horizon: float,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Cumulative/dynamic AUROC at a horizon, with inverse-probability-of-censoring weights.

    Cases had the event by the horizon, controls are followed beyond it; those censored earlier are neither, and cases
    are weighted by 1 / G(time-), G the Kaplan-Meier curve of the censoring in the same rows (Uno et al. 2007).

    Args:
        times: (n,) follow-up in the unit of `horizon`.
        events: (n,) 0 or 1.
        risks: (n,) higher means earlier.
        horizon: The time at which cases and controls part.
        weights: (..., n) row counts, or None.

    Returns:
        (...) areas; NaN without a case or without a control.
    """
    times, risks = np.asarray(times, dtype=float), np.asarray(risks, dtype=float)
    events = np.asarray(events) == 1
    weights = checked_weights(weights, len(times))
    labels = horizon_labels(times, events, horizon=horizon)
    case, control = labels == 1, labels == 0
    case_weight = weights[..., case] / censoring_survival(times, events, weights)[..., case]
    order = np.argsort(risks[control], kind="stable")
    below = np.cumsum(weights[..., control][..., order], axis=-1)
    below = np.concatenate([np.zeros((*below.shape[:-1], 1)), below], axis=-1)
    ranked = risks[control][order]
    lower = np.searchsorted(ranked, risks[case], side="left")
    upper = np.searchsorted(ranked, risks[case], side="right")
    beaten = (below[..., lower] + below[..., upper]) / 2
    return ratio((case_weight * beaten).sum(-1), case_weight.sum(-1) * below[..., -1])


def censoring_survival(times: np.ndarray, events: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Kaplan-Meier chance of being uncensored just before each row's own time; at ties events come before censoring.

    Args:
        times: (n,).
        events: (n,) bool.
        weights: (..., n) row counts.

    Returns:
        (..., n) in the order of the rows.
    """
    distinct, index = np.unique(times, return_inverse=True)
    member = (index[:, None] == np.arange(len(distinct))).astype(float)
    leaving = weights @ member
    censored = (weights * ~events) @ member
    at_risk = np.cumsum(leaving[..., ::-1], axis=-1)[..., ::-1] - (leaving - censored)
    step = np.where(at_risk > 0, 1 - censored / np.where(at_risk > 0, at_risk, 1), 1.0)
    survival = np.cumprod(step, axis=-1)
    before = np.concatenate([np.ones((*survival.shape[:-1], 1)), survival[..., :-1]], axis=-1)
    return before[..., index]
