"""Measures scored on rows, always the same way: estimate, interval by patient, subgroups, with n everywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from voxelfm_hf.eval.metrics.catalogue import metric_title
from voxelfm_hf.eval.metrics.measure import Measure, mean_measure
from voxelfm_hf.eval.statistics.bootstrap import bootstrap
from voxelfm_hf.eval.statistics.estimates import Estimate, undefined


@dataclass(frozen=True)
class SubgroupEstimate:
    """A metric within one level of one column (sex = F), with the n inside its estimate."""

    column: str
    level: str
    estimate: Estimate


def estimate(
    measure: Measure,
    *arrays: np.ndarray,
    patients: Sequence | np.ndarray | None = None,
    replicates: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A measure with its 95 % BCa interval; rows with a missing (NaN) entry are left out.

    Args:
        measure: What to compute.
        *arrays: The arrays it takes, n rows each.
        patients: (n,) identifiers; intervals resample patients.
        replicates: Bootstrap replicates; 0 gives no interval.
        seed: Seed of the draws.

    Returns:
        Estimate: `n` counts the rows that were scored; a sentence where the measure is undefined.
    """
    arrays = tuple(np.asarray(array) for array in arrays)
    known = np.ones(len(arrays[0]), dtype=bool)
    for array in arrays:
        if array.dtype.kind == "f":
            known &= np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    arrays = tuple(array[known] for array in arrays)
    n = int(known.sum())
    reason = measure.why_undefined(*arrays)
    if reason:
        return undefined(reason, n=n)
    if replicates == 0:
        nan = float("nan")
        return Estimate(float(measure.function(*arrays, weights=np.ones(n))), nan, nan, n)
    patients = None if patients is None else np.asarray(patients)[known]
    return bootstrap(measure.function, *arrays, patients=patients, replicates=replicates, seed=seed)


def by_subgroup(
    measure: Measure,
    *arrays: np.ndarray,
    columns: Mapping[str, Sequence | np.ndarray],
    patients: Sequence | np.ndarray | None = None,
    **settings,
) -> list[SubgroupEstimate]:
    """A measure within every level of every column (sex, age band, manufacturer, kernel, slice thickness).

    Args:
        measure: What to compute.
        *arrays: The arrays it takes, n rows each.
        columns: Column name -> n levels; None, NaN and "" are gathered as "unknown". Numbers should be banded first.
        patients: (n,) identifiers.
        **settings: Settings of `estimate`.

    Returns:
        One entry for each column and level, in the order of the columns and sorted levels.
    """
    results = []
    for column, values in columns.items():
        levels = np.array(["unknown" if _is_missing(value) else str(value) for value in values])
        for level in sorted(set(levels)):
            rows = levels == level
            inside = None if patients is None else np.asarray(patients)[rows]
            chosen = (np.asarray(array)[rows] for array in arrays)
            results.append(
                SubgroupEstimate(column, str(level), estimate(measure, *chosen, patients=inside, **settings))
            )
    return results


def metric_report(
    measures: Mapping[str, Measure],
    *arrays: np.ndarray,
    patients: Sequence | None = None,
    subgroups: Mapping[str, Sequence] | None = None,
    replicates: int = 0,
    seed: int = 0,
) -> dict:
    """Scores all measures of a task on the same rows.

    Args:
        measures: Name -> measure.
        *arrays: The arrays the measures take, n rows each; NaN marks a missing label.
        patients: n identifiers; intervals resample patients.
        subgroups: Column name -> n levels.
        replicates: Bootstrap replicates of the intervals; 0 gives none.
        seed: Seed of the draws.

    Returns:
        The value of every measure under its name, "estimates" with value, low, high, n, note, patients of each, and,
        when asked for, "subgroups": rows with column, level, metric and the same fields.
    """
    return _report(
        {name: (measure, arrays) for name, measure in measures.items()}, patients, subgroups, replicates, seed
    )


def per_row_report(
    values: Mapping[str, np.ndarray],
    *,
    patients: Sequence | None = None,
    subgroups: Mapping[str, Sequence] | None = None,
    replicates: int = 0,
    seed: int = 0,
) -> dict:
    """Means of metrics that have one value a row (a scan, a query); NaN rows are left out and n counts the others.

    Args:
        values: Name of a metric of the catalogue -> (n,) values.
        patients: n identifiers; intervals resample patients.
        subgroups: Column name -> n levels.
        replicates: Bootstrap replicates of the intervals; 0 gives none.
        seed: Seed of the draws.

    Returns:
        The same report as `metric_report`.
    """
    scored = {
        name: (mean_measure(name, metric_title(name)), (np.asarray(rows, dtype=float),))
        for name, rows in values.items()
    }
    return _report(scored, patients, subgroups, replicates, seed)


def _report(
    scored: Mapping[str, tuple[Measure, tuple]],
    patients: Sequence | None,
    subgroups: Mapping[str, Sequence] | None,
    replicates: int,
    seed: int,
) -> dict:
    settings: dict = {"patients": patients, "replicates": replicates, "seed": seed}
    estimates = {name: estimate(measure, *arrays, **settings) for name, (measure, arrays) in scored.items()}
    report: dict = {name: found.value for name, found in estimates.items()}
    report["estimates"] = {name: found.as_dict() for name, found in estimates.items()}
    if subgroups:
        report["subgroups"] = [
            {"column": row.column, "level": row.level, "metric": name, **row.estimate.as_dict()}
            for name, (measure, arrays) in scored.items()
            for row in by_subgroup(measure, *arrays, columns=subgroups, **settings)
        ]
    return report


def _is_missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, (float, np.floating)) and np.isnan(value))
