"""A metric as scores, tables and figures need it: its function with all that is said about it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from voxelfm_hf.eval.metrics.ranks import checked_weights, ratio

Metric = Callable[..., np.ndarray]
# Target of what is a mean over targets or classes.
MACRO = "macro"


@dataclass(frozen=True)
class Measure:
    """A metric with everything that is said about it.

    Attributes:
        name: In results and files.
        title: As a reader calls it, with the unit.
        function: `function(*arrays, weights)`, see `voxelfm_hf.eval.statistics.bootstrap`.
        why_undefined: A sentence for (*arrays) on which it has no value, otherwise an empty string.
        higher_is_better: Which way is better.
        chance: Its value without any knowledge, where that is a constant.
    """

    name: str
    title: str
    function: Metric
    why_undefined: Callable[..., str]
    higher_is_better: bool = True
    chance: float | None = None


def by_name(measures: Iterable[Measure]) -> dict[str, Measure]:
    """Name -> measure."""
    return {measure.name: measure for measure in measures}


def of_first(check: Callable[[np.ndarray], str]) -> Callable[..., str]:
    """A check of the labels as a check of all arrays."""
    return lambda labels, *_: check(labels)


def mean(values: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of one value a row, rows with NaN left out; NaN when none is left."""
    values = np.asarray(values, dtype=float)
    weights = checked_weights(weights, len(values))
    known = np.isfinite(values)
    return ratio(weights[..., known] @ values[known], weights[..., known].sum(-1))


def mean_measure(name: str, title: str, *, higher_is_better: bool = True) -> Measure:
    """The mean of one value a row, such as the Dice of a scan, the precision of a query, an error in mm."""
    return Measure(
        name,
        title,
        mean,
        of_first(lambda values: "" if np.isfinite(values).any() else "no row has a defined value"),
        higher_is_better,
    )
