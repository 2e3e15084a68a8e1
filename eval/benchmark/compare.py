"""Paired tests of a benchmark's first encoder against every other, corrected for their number."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from voxelfm_hf.eval.benchmark.scores import Sample
from voxelfm_hf.eval.statistics.bootstrap import paired_bootstrap
from voxelfm_hf.eval.statistics.delong import delong_test
from voxelfm_hf.eval.statistics.estimates import Comparison, holm

# Columns of comparisons.csv.
FIELDS = (
    *("first", "second", "task", "target", "metric"),
    *("difference", "low", "high", "p_value", "p_holm", "n", "test", "note"),
)


def compare_samples(first: Sample, second: Sample, *, replicates: int) -> tuple[Comparison, str]:
    """First minus second on the main metric, on the rows of both.

    AUROCs are tested by DeLong's method with Obuchowski's covariance of patients, the mean over seeds being one linear
    contrast of all fits; all other metrics by a bootstrap that draws the same patients for both.

    Args:
        first: One encoder.
        second: Another one, on the same task, target and fraction.
        replicates: Bootstrap replicates.

    Returns:
        The comparison and the name of the test.
    """
    nan = float("nan")
    metric = first.main_metric
    if not first.seeds or not second.seeds:
        return Comparison(nan, nan, nan, nan, 0, first.note or second.note or "there is no fit"), ""
    if first.ids != second.ids:
        raise ValueError("two encoders were scored on different rows")
    if metric == "auroc":
        scores = [sample.judged.arrays(metric)[-1] for sample in (first, second)]
        return delong_test(first.judged.truth[0], *scores, patients=first.patients), "DeLong"
    ours, theirs = first.judged.arrays(metric)[-1], second.judged.arrays(metric)[-1]
    known = np.isfinite(ours.reshape(len(ours), -1)).all(1) & np.isfinite(theirs.reshape(len(theirs), -1)).all(1)
    truth, measure = tuple(array[known] for array in first.judged.truth), first.judged.measures[metric]
    reason = measure.why_undefined(*truth, ours[known])
    if reason:
        return Comparison(nan, nan, nan, nan, int(known.sum()), reason), ""
    if first.judged.pairs_of_rows:
        # Rows are chosen by position, the arrays stay whole.
        truth, known = first.judged.truth, np.ones(len(first.ids), dtype=bool)
    found = paired_bootstrap(
        measure.function, truth, ours[known], theirs[known], patients=first.patients[known], replicates=replicates
    )
    return found, "paired bootstrap"


def compare_encoders(
    samples: Mapping[str, Mapping[tuple[str, str], Sample]], first: str, *, replicates: int
) -> list[dict[str, Any]]:
    """Rows of the table of tests.

    Args:
        samples: Encoder -> (task, target) -> sample at all labels; ceiling and floor left out.
        first: The encoder that is tested against the others.
        replicates: Bootstrap replicates.

    Returns:
        One row a task, target and other encoder; `p_holm` is adjusted over all rows.
    """
    rows: list[dict[str, Any]] = []
    for (task, target), ours in samples.get(first, {}).items():
        for name, others in samples.items():
            if name == first or (task, target) not in others:
                continue
            found, test = compare_samples(ours, others[task, target], replicates=replicates)
            rows.append(
                {
                    "first": first,
                    "second": name,
                    "task": task,
                    "target": target,
                    "metric": ours.main_metric,
                    "difference": found.difference,
                    "low": found.low,
                    "high": found.high,
                    "p_value": found.p_value,
                    "n": found.n,
                    "test": test,
                    "note": found.note,
                }
            )
    adjusted = holm([row["p_value"] for row in rows])
    return [{**row, "p_holm": float(p)} for row, p in zip(rows, adjusted, strict=True)]
