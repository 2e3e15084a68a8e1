"""Predictions as columns that are kept in files, and what is measured of them: what the tasks share of both."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from voxelfm_hf.eval.metrics.measure import Measure
from voxelfm_hf.eval.tasks.data import TaskData

Tables = Mapping[int, pa.Table]


@dataclass(frozen=True, eq=False)
class Judged:
    """Kept predictions of one target, n rows and s seeds, with their measures.

    Attributes:
        truth: Arrays of n rows.
        predictions: Metric -> (n, s, ...) what it is computed from; "" for all metrics.
        measures: Metric -> measure of (*truth, predictions), a mean over seeds.
        pairs_of_rows: Whether predictions have rows on two axes, so that rows cannot be left out of the arrays.
    """

    truth: tuple[np.ndarray, ...]
    predictions: Mapping[str, np.ndarray]
    measures: Mapping[str, Measure]
    pairs_of_rows: bool = False

    def arrays(self, metric: str) -> tuple[np.ndarray, ...]:
        """What the measure of a metric takes."""
        return (*self.truth, self.predictions.get(metric, self.predictions.get("", np.zeros(0))))


def row_names(data: TaskData, rows: np.ndarray) -> dict[str, Any]:
    """The first columns of every table: id and patient of each row."""
    return {"id": [data.ids[row] for row in rows], "patient": data.groups[rows]}


def number_columns(
    data: TaskData, number: int, rows: np.ndarray, predictions: np.ndarray, *, truth: Sequence[str] = ("truth",)
) -> dict[str, Any]:
    """Columns of one target with one number a row; rows without a label are left out.

    Args:
        data: The task data.
        number: Of the target.
        rows: Row numbers.
        predictions: (rows,).
        truth: Names of the columns of the target.
    """
    targets = data.column(number)[rows]
    known = np.isfinite(targets).all(axis=1)
    return {
        **row_names(data, rows[known]),
        "target": data.names[number],
        **dict(zip(truth, targets[known].T, strict=True)),
        "prediction": np.asarray(predictions, dtype=float)[known],
    }


def lists(values: np.ndarray) -> list[list[float]]:
    """An array (n, ...) as a column of n lists."""
    return np.asarray(values, dtype=float).reshape(len(values), -1).tolist()


def kept_column(tables: Tables, name: str) -> np.ndarray:
    """A column that is the same for all seeds."""
    return next(iter(tables.values()))[name].combine_chunks().to_numpy(zero_copy_only=False)


def kept_predictions(tables: Tables, name: str) -> np.ndarray:
    """(n, s, ...) of a column of numbers or of lists of equal length."""
    return np.stack([np.array(table[name].to_pylist(), dtype=float) for table in tables.values()], axis=1)


def over_seeds(by_seed: Sequence[Mapping[str, Measure]]) -> dict[str, Measure]:
    """Measures of predictions (n, s, ...): the mean over seeds, each with its own measure (and threshold)."""

    def averaged(name: str) -> Measure:
        def function(*arrays: np.ndarray, weights: np.ndarray) -> np.ndarray:
            *truth, predictions = arrays
            each = [m[name].function(*truth, predictions[:, s], weights=weights) for s, m in enumerate(by_seed)]
            return np.mean(each, axis=0)

        def why_undefined(*arrays: np.ndarray) -> str:
            *truth, predictions = arrays
            reasons = (m[name].why_undefined(*truth, predictions[:, s]) for s, m in enumerate(by_seed))
            return next((reason for reason in reasons if reason), "")

        return replace(by_seed[0][name], function=function, why_undefined=why_undefined)

    return {name: averaged(name) for name in by_seed[0]}


def row_mean_over_seeds(measure: Measure) -> Measure:
    """The mean of one value a row, (n, s), over seeds and rows."""
    return replace(
        measure,
        function=lambda values, weights: measure.function(values.mean(1), weights=weights),
        why_undefined=lambda values: measure.why_undefined(values.mean(1)) if len(values) else "there are no rows",
    )


def judge_row_values(tables: Tables, measures: Iterable[Measure]) -> Judged:
    """Judges predictions of which the metrics themselves are kept, one value a row, as far as they are."""
    names = next(iter(tables.values())).column_names
    found = {measure.name: row_mean_over_seeds(measure) for measure in measures if measure.name in names}
    return Judged((), {name: kept_predictions(tables, name) for name in found}, found)
