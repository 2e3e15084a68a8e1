"""What every statistic gives: an estimate or a comparison with its interval; Holm's correction of many comparisons."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A metric with its confidence interval; NaN and a sentence in `note` where it is not defined."""

    value: float
    low: float
    high: float
    n: int
    note: str = ""
    patients: int | None = None

    @property
    def defined(self) -> bool:
        """Whether the metric has a value."""
        return bool(np.isfinite(self.value))

    def as_dict(self) -> dict:
        """The fields as a dictionary for tables and JSON; undefined numbers become None."""
        fields = asdict(self)
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in fields.items()}

    def __str__(self) -> str:
        if not self.defined:
            return f"undefined (n={self.n}): {self.note}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


@dataclass(frozen=True)
class Comparison:
    """A paired difference first - second with its interval and two-sided p-value; NaN and a sentence if undefined."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    note: str = ""


def forget_patients(rows: Iterable[dict[str, Any]]) -> None:
    """Takes the number of patients out of estimates: where patients are unknown, it is one of rows or studies.

    Args:
        rows: As of `Estimate.as_dict`; changed in place.
    """
    for row in rows:
        row["patients"] = None


def undefined(note: str, *, n: int = 0) -> Estimate:
    """An estimate without a number, and the sentence that says why."""
    return Estimate(float("nan"), float("nan"), float("nan"), n, note)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values; NaN (a test that could not be made) stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted
