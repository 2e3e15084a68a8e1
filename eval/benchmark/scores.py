"""From kept predictions to scores: every number of a benchmark can be made again from its prediction files.

A score is the mean over seeds. Its interval resamples patients, with the predictions of all seeds kept: it covers the
choice of test patients, not another draw of training patients or another fit (the spread over seeds shows those).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxelfm_hf.eval.benchmark.cells import RECALLS_AT
from voxelfm_hf.eval.measures import (
    Measure,
    classification_measures,
    estimate,
    mean_measure,
    multiclass_measures,
    regression_measures,
    survival_measures,
)
from voxelfm_hf.eval.statistics import Estimate, bootstrap, undefined
from voxelfm_hf.eval.tasks.retrieval import pair_measure

# The metric of each family that is tested, tabulated and drawn.
MAIN_METRICS = {
    "classification": "auroc",
    "classes": "macro_auroc",
    "regression": "r2",
    "survival": "c_index",
    "retrieval": "recall_at_5",
    "localization": "error_mm",
    "segmentation": "dice",
}
LOWER_IS_BETTER = ("error_mm", "error_normalised", "mean_position_error_mm", "hd95")
ROW_METRICS = {
    "localization": ("error_mm", "error_normalised", "mean_position_error_mm"),
    "segmentation": ("dice", "hd95", "nsd"),
}
MACRO = "macro"
# Columns of a fine-tuning's predictions, and of its rows in results.csv.
COSTS = ("seconds", "peak_memory_mb", "trainable_parameters")


@dataclass(frozen=True, eq=False)
class Sample:
    """Everything about one encoder, task, target and fraction: n rows, s seeds.

    Attributes:
        family: classification, classes (exclusive ones), regression, survival, retrieval, localization, segmentation.
        ids: (n,) ids of the rows.
        patients: (n,) patient numbers.
        truth: Arrays of n rows.
        predictions: Metric -> (n, s, ...) what it is computed from; "" for all metrics of the family.
        measures: Metric -> measure of (*truth, predictions).
        train_rows: Mean number of labelled training rows.
        seeds: Seeds that gave a fit.
        note: Why the others did not.
        cost: Mean seconds, peak_memory_mb and trainable_parameters of its fits, where they were measured.
    """

    family: str
    ids: list[str]
    patients: np.ndarray
    truth: tuple[np.ndarray, ...]
    predictions: Mapping[str, np.ndarray]
    measures: Mapping[str, Measure]
    train_rows: float
    seeds: tuple[int, ...]
    note: str
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def main_metric(self) -> str:
        """The metric that is tested."""
        return MAIN_METRICS[self.family]

    def arrays(self, metric: str) -> tuple[np.ndarray, ...]:
        """What the measure of a metric takes."""
        return (*self.truth, self.predictions.get(metric, self.predictions.get("", np.zeros(0))))


def make_samples(tables: Mapping[int, pa.Table], task: str, options: Mapping[str, Any]) -> dict[tuple, Sample]:
    """Samples by (target, fraction) of one encoder and task.

    Args:
        tables: Predictions by seed.
        task: Family.
        options: Its read options: horizons of a survival.
    """
    found: dict[tuple, Sample] = {}
    keys: dict[tuple, None] = {}
    for table in tables.values():
        if table.num_rows:
            pairs = zip(table["target"].to_pylist(), table["fraction"].to_pylist(), strict=True)
            keys.update(dict.fromkeys(pairs))
    for target, fraction in keys:
        chosen = {seed: _rows(table, target, fraction) for seed, table in tables.items()}
        fitted = {
            seed: table for seed, table in chosen.items() if table.num_rows and not any(table["note"].to_pylist())
        }
        notes = [note for table in chosen.values() for note in set(table["note"].to_pylist()) if note]
        found[target, fraction] = _sample(fitted, task, options, notes[0] if notes else "")
    return found


def estimate_sample(sample: Sample, metric: str, *, replicates: int) -> Estimate:
    """A metric of a sample with its interval."""
    if not sample.seeds:
        return undefined(sample.note or "there is no fit")
    measure = sample.measures[metric]
    return estimate(measure, *sample.arrays(metric), patients=sample.patients, replicates=replicates)


def estimate_macro(samples: Sequence[Sample], *, replicates: int) -> Estimate:
    """The mean of the main metric over targets, patients drawn once for all of them.

    Args:
        samples: One a target, of one encoder, task and fraction; undefined ones are left out.
        replicates: Bootstrap replicates.
    """
    usable = [s for s in samples if s.seeds and estimate_sample(s, s.main_metric, replicates=0).defined]
    if not usable:
        return undefined("no target has a defined value")
    patients = np.concatenate([sample.patients for sample in usable])
    which = np.concatenate([np.full(len(sample.ids), number) for number, sample in enumerate(usable)])
    parts = [
        (sample.measures[sample.main_metric].function, sample.arrays(sample.main_metric), which == number)
        for number, sample in enumerate(usable)
    ]

    def macro(_: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.mean([function(*arrays, weights=weights[..., rows]) for function, arrays, rows in parts], axis=0)

    found = bootstrap(macro, which, patients=patients, replicates=replicates)
    left_out = f"mean over {len(usable)} of {len(samples)} targets" if len(usable) < len(samples) else ""
    return Estimate(found.value, found.low, found.high, len(usable), left_out or found.note, found.patients)


def _rows(table: pa.Table, target: str, fraction: float) -> pa.Table:
    if not table.num_rows:
        return table
    return table.filter(pc.and_(pc.equal(table["target"], target), pc.equal(table["fraction"], fraction)))


def _sample(tables: Mapping[int, pa.Table], task: str, options: Mapping[str, Any], note: str) -> Sample:
    family = "classes" if task == "classification" and options.get("exclusive") else task
    if not tables:
        return Sample(family, [], np.zeros(0), (), {}, {}, float("nan"), (), note)
    first = next(iter(tables.values()))
    ids = first["id"].to_pylist()
    for table in tables.values():
        if table["id"].to_pylist() != ids:
            raise ValueError("the seeds of one encoder and task were scored on different rows")
    truth: tuple[np.ndarray, ...]
    if family == "retrieval":
        truth, predictions, measures = _of_retrieval(tables, len(ids))
    elif family in ROW_METRICS:
        names = [name for name in ROW_METRICS[family] if name in first.column_names]
        truth = ()
        predictions = {name: _stacked(tables, name) for name in names}
        measures = {name: _over_seeds_by_row(name) for name in names}
    else:
        count = len(tables)
        if family == "classification":
            truth = (_array(first, "truth"),)
            thresholds = [float(table["threshold"][0].as_py()) for table in tables.values()]
            chosen = [0.5 if np.isnan(threshold) else threshold for threshold in thresholds]
            measures = _over_seeds([classification_measures(threshold=threshold) for threshold in chosen])
        elif family == "classes":
            truth = (_array(first, "truth").astype(int),)
            measures = _over_seeds([multiclass_measures()] * count)
        elif family == "regression":
            truth, measures = (_array(first, "truth"),), _over_seeds([regression_measures()] * count)
        else:
            truth = (_array(first, "time"), _array(first, "event"))
            measures = _over_seeds([survival_measures(horizons=options.get("horizons", ()))] * count)
        predictions = {"": _stacked(tables, "probabilities" if family == "classes" else "prediction")}
    rows = float(np.mean([table["train_rows"][0].as_py() for table in tables.values()]))
    patients = _array(first, "patient")
    cost = {
        name: float(np.mean([table[name][0].as_py() for table in tables.values()]))
        for name in COSTS
        if name in first.column_names
    }
    return Sample(family, ids, patients, truth, predictions, measures, rows, tuple(tables), note, cost)


def _of_retrieval(
    tables: Mapping[int, pa.Table], count: int
) -> tuple[tuple, dict[str, np.ndarray], dict[str, Measure]]:
    predictions = {f"recall_at_{k}": _stacked(tables, f"pairs_at_{k}").mean(1) for k in RECALLS_AT}
    predictions["map"] = _stacked(tables, "map")
    measures = {f"recall_at_{k}": _positions_first(pair_measure(k, 0)) for k in RECALLS_AT}
    by_row = _over_seeds_by_row("map")

    def without_positions(positions: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return by_row.function(values, weights=weights)

    measures["map"] = Measure("map", without_positions, lambda positions, values: by_row.why_undefined(values))
    return (np.arange(count),), predictions, measures


def _positions_first(measure: Measure) -> Measure:
    """A measure of (pairs, positions) as one of (positions, pairs (q, q))."""

    def function(positions: np.ndarray, pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return measure.function(pairs[..., None], positions, weights=weights)

    return Measure(measure.name, function, lambda positions, pairs: measure.why_undefined(pairs[..., None], positions))


def _over_seeds(by_seed: Sequence[Mapping[str, Measure]]) -> dict[str, Measure]:
    """Measures of predictions (n, s, ...): the mean over seeds, each with its own measure (and threshold)."""

    def averaged(name: str) -> Measure:
        one = by_seed[0][name]

        def function(*arrays: np.ndarray, weights: np.ndarray) -> np.ndarray:
            *truth, predictions = arrays
            each = [m[name].function(*truth, predictions[:, s], weights=weights) for s, m in enumerate(by_seed)]
            return np.mean(each, axis=0)

        def why_undefined(*arrays: np.ndarray) -> str:
            *truth, predictions = arrays
            reasons = (m[name].why_undefined(*truth, predictions[:, s]) for s, m in enumerate(by_seed))
            return next((reason for reason in reasons if reason), "")

        return Measure(name, function, why_undefined, one.higher_is_better)

    return {name: averaged(name) for name in by_seed[0]}


def _over_seeds_by_row(name: str) -> Measure:
    """The mean of one value a row, (n, s), over seeds and rows."""
    one = mean_measure(name, higher_is_better=name not in LOWER_IS_BETTER)
    function: Callable[..., np.ndarray] = one.function
    return Measure(
        name,
        lambda values, weights: function(values.mean(1), weights=weights),
        lambda values: one.why_undefined(values.mean(1)) if len(values) else "there are no rows",
        one.higher_is_better,
    )


def _array(table: pa.Table, name: str) -> np.ndarray:
    return table[name].combine_chunks().to_numpy(zero_copy_only=False)


def _stacked(tables: Mapping[int, pa.Table], name: str) -> np.ndarray:
    """(n, s, ...) of a column of numbers or of lists of equal length."""
    return np.stack([np.array(table[name].to_pylist(), dtype=float) for table in tables.values()], axis=1)
