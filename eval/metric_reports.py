"""What a loadable metric module answers: values under the metric names, intervals, notes and subgroups beside them."""

from collections.abc import Mapping, Sequence

import numpy as np

from voxelfm_hf.eval.measures import Measure, by_subgroup, estimate, mean_measure


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
    lower_is_better: Sequence[str] = (),
    patients: Sequence | None = None,
    subgroups: Mapping[str, Sequence] | None = None,
    replicates: int = 0,
    seed: int = 0,
) -> dict:
    """Means of metrics that have one value a row (a scan, a query); NaN rows are left out and n counts the others.

    Args:
        values: Name -> (n,) values.
        lower_is_better: The names of errors and distances.
        patients: n identifiers; intervals resample patients.
        subgroups: Column name -> n levels.
        replicates: Bootstrap replicates of the intervals; 0 gives none.
        seed: Seed of the draws.

    Returns:
        The same report as `metric_report`.
    """
    scored = {
        name: (mean_measure(name, higher_is_better=name not in lower_is_better), (np.asarray(rows, dtype=float),))
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
