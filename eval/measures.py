"""The metrics of each task by name, and the one way to score them: estimate, interval, subgroups, with n everywhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from voxelfm_hf.eval.metrics import binary, continuous, multiclass, survival
from voxelfm_hf.eval.statistics import Estimate, Metric, bootstrap, undefined


@dataclass(frozen=True)
class Measure:
    """A metric with its name, the sentence for undefined cases, and which way is better."""

    name: str
    function: Metric
    why_undefined: Callable[..., str]
    higher_is_better: bool = True


@dataclass(frozen=True)
class SubgroupEstimate:
    """A metric within one level of one column (sex = F), with the n inside its estimate."""

    column: str
    level: str
    estimate: Estimate


def classification_measures(
    *, threshold: float = 0.5, specificity: float = 0.9, calibration_bins: int = 10
) -> dict[str, Measure]:
    """Measures of (labels, probabilities) of a yes/no finding."""
    both = _of_first(binary.why_not_two_classes)
    some = _of_first(lambda labels: "" if len(labels) else "there are no labelled rows")
    positives = _of_first(lambda labels: "" if np.any(np.asarray(labels) == 1) else "there is no positive row")
    at = f"sensitivity_at_specificity_{specificity:g}"
    listed = [
        Measure("auroc", binary.auroc, both),
        Measure("auprc", binary.auprc, both),
        Measure("f1", partial(binary.f1, threshold=threshold), positives),
        Measure(at, partial(binary.sensitivity_at_specificity, specificity=specificity), both),
        Measure("balanced_accuracy", partial(binary.balanced_accuracy, threshold=threshold), both),
        Measure("brier", binary.brier, some, higher_is_better=False),
        Measure("ece", partial(binary.expected_calibration_error, bins=calibration_bins), some, higher_is_better=False),
    ]
    return {measure.name: measure for measure in listed}


def multiclass_measures() -> dict[str, Measure]:
    """Measures of (labels, probabilities (n, K)) of one class out of K."""

    def complete(labels: np.ndarray, probabilities: np.ndarray) -> str:
        return multiclass.why_not_all_classes(labels, np.shape(probabilities)[1])

    some = _of_first(lambda labels: "" if len(labels) else "there are no labelled rows")
    listed = [
        Measure("macro_auroc", multiclass.macro_auroc, complete),
        Measure("macro_f1", multiclass.macro_f1, complete),
        Measure("balanced_accuracy", multiclass.balanced_accuracy, complete),
        Measure("accuracy", multiclass.accuracy, some),
    ]
    return {measure.name: measure for measure in listed}


def regression_measures() -> dict[str, Measure]:
    """Measures of (targets, predictions) in one unit."""
    some = _of_first(lambda targets: "" if len(targets) else "there are no rows with a target")
    varying = _of_first(continuous.why_not_varying)

    def both_varying(targets: np.ndarray, predictions: np.ndarray) -> str:
        constant = len(predictions) and np.all(np.asarray(predictions) == np.asarray(predictions)[0])
        return continuous.why_not_varying(targets) or ("all predictions are equal: nothing to rank" if constant else "")

    listed = [
        Measure("mae", continuous.mae, some, higher_is_better=False),
        Measure("mse", continuous.mse, some, higher_is_better=False),
        Measure("r2", continuous.r2, varying),
        Measure("spearman", continuous.spearman, both_varying),
    ]
    return {measure.name: measure for measure in listed}


def survival_measures(*, horizons: Sequence[float] = ()) -> dict[str, Measure]:
    """Measures of (times, events, risks); one AUROC for each horizon, in the unit of the times."""
    listed = [Measure("c_index", survival.concordance, _why_no_concordance)]
    for horizon in horizons:
        listed.append(
            Measure(
                f"auroc_at_{horizon:g}",
                partial(survival.time_dependent_auroc, horizon=horizon),
                partial(_why_no_horizon, horizon=horizon),
            )
        )
    return {measure.name: measure for measure in listed}


def mean_measure(name: str, *, higher_is_better: bool = True) -> Measure:
    """The mean of one value a row, such as the Dice of a scan, the recall of a query, an error in mm."""
    return Measure(
        name,
        continuous.mean,
        _of_first(lambda values: "" if np.isfinite(values).any() else "no row has a defined value"),
        higher_is_better,
    )


def estimate(
    measure: Measure,
    *arrays: np.ndarray,
    patients: Sequence | np.ndarray | None = None,
    method: str = "bca",
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A measure with its interval; rows with a missing (NaN) entry are left out, undefined cases get their sentence.

    Args:
        measure: What to compute.
        *arrays: The arrays it takes, n rows each.
        patients: (n,) identifiers; intervals resample patients.
        method: "bca" or "percentile".
        replicates: Bootstrap replicates; 0 gives no interval.
        level: Coverage.
        seed: Seed of the draws.

    Returns:
        Estimate: `n` counts the rows that were scored.
    """
    arrays = tuple(np.asarray(array) for array in arrays)
    known = np.ones(len(arrays[0]), dtype=bool)
    for array in arrays:
        if array.dtype.kind == "f":
            known &= np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    arrays = tuple(array[known] for array in arrays)
    n = int(known.sum())
    reason = measure.why_undefined(*arrays)
    if reason:
        return undefined(reason, n=n)
    if replicates == 0:
        nan = float("nan")
        return Estimate(float(measure.function(*arrays, weights=np.ones(n))), nan, nan, n)
    patients = None if patients is None else np.asarray(patients)[known]
    return bootstrap(
        measure.function, *arrays, patients=patients, method=method, replicates=replicates, level=level, seed=seed
    )


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


def bands(values: Sequence[float] | np.ndarray, edges: Sequence[float]) -> list[str]:
    """Numbers as labels of the bands between the edges: 64 with edges (50, 65) is "50-65"; NaN is "".

    A band includes its lower edge and not its upper one.
    """
    names = [f"<{edges[0]:g}", *(f"{a:g}-{b:g}" for a, b in zip(edges, edges[1:], strict=False)), f">={edges[-1]:g}"]
    numbers = np.asarray(values, dtype=float)
    return ["" if np.isnan(v) else names[int(np.searchsorted(edges, v, side="right"))] for v in numbers]


def _of_first(check: Callable[[np.ndarray], str]) -> Callable[..., str]:
    """A check of the labels as a check of all arrays."""
    return lambda labels, *_: check(labels)


def _why_no_concordance(times: np.ndarray, events: np.ndarray, risks: np.ndarray) -> str:
    return survival.why_no_concordance(times, events)


def _why_no_horizon(times: np.ndarray, events: np.ndarray, risks: np.ndarray, *, horizon: float) -> str:
    return survival.why_no_horizon(times, events, horizon=horizon)


def _is_missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, (float, np.floating)) and np.isnan(value))
