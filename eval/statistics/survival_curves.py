"""Survival of groups: Kaplan-Meier curves with intervals, the log-rank test, and groups of equal size by risk."""

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from voxelfm_hf.eval.statistics.estimates import NORMAL


@dataclass(frozen=True, eq=False)
class SurvivalCurve:
    """The chance of no event over time; arrays start at time 0, where it is 1.

    Args:
        times: (t,) distinct follow-up times, 0 first.
        survival: (t,) chance of no event until and including each time.
        low: (t,) lower end of its interval; NaN once nobody is at risk.
        high: (t,) upper end.
        censored: Times at which somebody was censored, each once a person.
    """

    times: np.ndarray
    survival: np.ndarray
    low: np.ndarray
    high: np.ndarray
    censored: np.ndarray


def kaplan_meier(times: np.ndarray, events: np.ndarray, *, level: float = 0.95) -> SurvivalCurve:
    """The product-limit estimate (Kaplan and Meier 1958) with Greenwood's variance on the log(-log) scale.

    Args:
        times: (n,) follow-up times.
        events: (n,) 1 for an event, 0 for censored; at equal times events come first.
        level: Pointwise coverage of the interval.

    Returns:
        SurvivalCurve.
    """
    times, events = np.asarray(times, float), np.asarray(events) == 1
    distinct, index = np.unique(times, return_inverse=True)
    died = np.bincount(index, weights=events, minlength=len(distinct))
    leaving = np.bincount(index, minlength=len(distinct))
    at_risk = leaving[::-1].cumsum()[::-1].astype(float)
    survival = np.cumprod(1 - died / at_risk)
    z = NORMAL.inv_cdf((1 + level) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(died / (at_risk * (at_risk - died)))
        error = np.sqrt(variance) / np.log(survival)
        low, high = survival ** np.exp(-z * error), survival ** np.exp(z * error)
    untouched = survival == 1
    low[untouched] = high[untouched] = 1.0
    start = np.r_[0.0, distinct]
    ends = (np.r_[1.0, np.where(survival > 0, side, np.nan)] for side in (low, high))
    first, second = ends
    return SurvivalCurve(
        start, np.r_[1.0, survival], np.fmin(first, second), np.fmax(first, second), np.sort(times[~events])
    )


def number_at_risk(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How many are still followed just before each time of `at`."""
    return (np.asarray(times)[:, None] >= np.asarray(at)[None]).sum(0)


def log_rank(times: np.ndarray, events: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """The log-rank test of equal survival in two or more groups (Mantel 1966).

    Args:
        times: (n,) follow-up times.
        events: (n,) 0 or 1.
        groups: (n,) group of each row.

    Returns:
        The chi-squared statistic with (groups - 1) degrees of freedom and its p-value; NaN without events or with one
        group.
    """
    times, events = np.asarray(times, float), np.asarray(events) == 1
    names, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    if len(names) < 2 or not events.any():
        return float("nan"), float("nan")
    inside = member[:, None] == np.arange(len(names))
    observed_minus_expected = np.zeros(len(names))
    covariance = np.zeros((len(names), len(names)))
    for time in np.unique(times[events]):
        at_risk = inside[times >= time].sum(0).astype(float)
        died = inside[(times == time) & events].sum(0).astype(float)
        total, deaths = at_risk.sum(), died.sum()
        share = at_risk / total
        observed_minus_expected += died - deaths * share
        if total > 1:
            covariance += deaths * (total - deaths) / (total - 1) * (np.diag(share) - np.outer(share, share))
    difference = observed_minus_expected[:-1]
    if np.linalg.matrix_rank(covariance[:-1, :-1]) < len(difference):
        return float("nan"), float("nan")
    statistic = float(difference @ np.linalg.solve(covariance[:-1, :-1], difference))
    return statistic, float(chdtrc(len(names) - 1, statistic))


def risk_groups(risks: np.ndarray, *, edges: np.ndarray | None = None, count: int = 3) -> np.ndarray:
    """Group of each row by risk: "low risk" and "high risk", with "medium risk" between when there are three.

    Args:
        risks: (n,) higher means earlier.
        edges: Risks where groups meet, found on the training rows; by default the quantiles of these rows.
        count: 2 or 3 groups, where no edges are given.

    Returns:
        (n,) names.
    """
    if edges is None:
        edges = np.quantile(risks, np.arange(1, count) / count)
    names = ("low risk", "high risk") if len(edges) == 1 else ("low risk", "medium risk", "high risk")
    if len(edges) > 2:
        raise ValueError(f"two or three groups have names, got {len(edges) + 1}")
    return np.array(names)[np.searchsorted(edges, risks, side="right")]
