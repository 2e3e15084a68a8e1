"""The numbers of a finished benchmark: rows of results.csv, of subgroups.csv and of comparisons.csv."""

from dataclasses import dataclass
from typing import Any

from voxelfm_hf.eval.benchmark.compare import compare_encoders
from voxelfm_hf.eval.benchmark.entrants import BenchmarkRun
from voxelfm_hf.eval.benchmark.recipe import TaskRecipe
from voxelfm_hf.eval.benchmark.scores import COSTS, Sample, estimate_macro, estimate_sample, make_samples
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.eval.metrics.scoring import by_subgroup
from voxelfm_hf.eval.splits import patient_column_of
from voxelfm_hf.eval.statistics.estimates import Estimate, forget_patients
from voxelfm_hf.eval.tasks.data import subgroup_levels

# Columns of subgroups.csv.
SUBGROUP_FIELDS = ("encoder", "task", "target", "metric", "column", "level", "value", "low", "high", "n", "note")


@dataclass(frozen=True, eq=False)
class Results:
    """Everything a benchmark found.

    Attributes:
        rows: encoder, task, target, metric, value, low, high, n, fraction, seeds; then family, head, kind, train_rows,
            patients (None where unknown), main (whether it is the metric that is tested), note. All metrics at all
            labels, the main one at every fraction.
        subgroups: The main metric at all labels within levels of columns.
        comparisons: Paired tests of the first encoder against every other.
    """

    rows: list[dict[str, Any]]
    subgroups: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]


def score_benchmark(run: BenchmarkRun) -> Results:
    """Scores all predictions of a run."""
    rows: list[dict[str, Any]] = []
    subgroups: list[dict[str, Any]] = []
    samples: dict[tuple[str, str, str, float], Sample] = {}
    replicates = run.recipe.replicates
    for task in run.recipe.tasks:
        of_task: list[dict[str, Any]] = []
        of_levels: list[dict[str, Any]] = []
        whole = max(run.recipe.fractions_of(task))
        for name, entrant in run.entrants.items():
            tables = run.predictions.get((name, task.title))
            if not tables:
                continue
            found = make_samples(tables, task)
            head = {"encoder": name, "task": task.title}
            about = {"family": task.task, "head": task.probe_head, "kind": entrant.kind}
            for (target, fraction), sample in found.items():
                samples[name, task.title, target, fraction] = sample
                for metric in [*sample.judged.measures] if fraction == whole else [sample.main_metric]:
                    estimate = estimate_sample(sample, metric, replicates=replicates)
                    named = {**head, "target": target, "metric": metric}
                    of_task.append(_row(named, about, sample, fraction, estimate))
                if fraction == whole and run.labels is not None and entrant.kind != "reference":
                    of_levels += [{**head, "target": target, **row} for row in _subgroups(run, sample)]
            of_task += _macro_rows(head, about, task, found, replicates)
        labels = run.data.labels if run.labels is None else run.labels
        if patient_column_of(labels, task.read.get("patient_column")) is None:
            forget_patients([*of_task, *of_levels])
        rows += of_task
        subgroups += of_levels
    return Results(rows, subgroups, _compared(run, samples))


def _row(
    named: dict[str, Any], about: dict[str, Any], sample: Sample, fraction: float, estimate: Estimate
) -> dict[str, Any]:
    """A row of results.csv; its keys are the columns."""
    return {
        **named,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "fraction": fraction,
        "seeds": len(sample.seeds),
        **about,
        "train_rows": sample.train_rows,
        "patients": estimate.patients,
        "main": named["metric"] == sample.main_metric,
        "note": estimate.note or sample.note,
        **{name: sample.cost.get(name) for name in COSTS},
    }


def _macro_rows(
    head: dict[str, Any], about: dict[str, Any], task: TaskRecipe, found: dict[tuple, Sample], replicates: int
) -> list[dict[str, Any]]:
    """The main metric as a mean over targets, a row for each fraction; n counts the targets."""
    targets = {target for target, _ in found}
    if not task.module.HAS_MACRO or len(targets) < 2:
        return []
    rows = []
    for fraction in dict.fromkeys(fraction for _, fraction in found):
        parts = [sample for (_, at), sample in found.items() if at == fraction]
        estimate = estimate_macro(parts, replicates=replicates)
        first = next((sample for sample in parts if sample.seeds), parts[0])
        named = {**head, "target": MACRO, "metric": first.main_metric}
        rows.append(_row(named, about, first, fraction, estimate))
    return rows


def _subgroups(run: BenchmarkRun, sample: Sample) -> list[dict[str, Any]]:
    """The main metric of a sample in every level of the data set's subgroup columns."""
    labels: LabelTable | None = run.labels
    if labels is None or not sample.seeds or not run.data.subgroups:
        return []
    position = {identifier: row for row, identifier in enumerate(labels.ids)}
    rows = [position[identifier] for identifier in sample.ids]
    levels = {column: subgroup_levels(column, labels.column(column)) for column in run.data.subgroups}
    columns = {column: [values[row] for row in rows] for column, values in levels.items()}
    metric = sample.main_metric
    found = by_subgroup(
        sample.judged.measures[metric],
        *sample.judged.arrays(metric),
        columns=columns,
        patients=sample.patients,
        replicates=run.recipe.replicates,
    )
    return [{"metric": metric, "column": r.column, "level": r.level, **r.estimate.as_dict()} for r in found]


def _compared(run: BenchmarkRun, samples: dict[tuple[str, str, str, float], Sample]) -> list[dict[str, Any]]:
    """Tests at all labels; ceiling and floor are no competitors."""
    whole = {task.title: max(run.recipe.fractions_of(task)) for task in run.recipe.tasks}
    by_encoder: dict[str, dict[tuple[str, str], Sample]] = {}
    for (encoder, task, target, fraction), sample in samples.items():
        if fraction == whole[task] and run.entrants[encoder].kind != "reference":
            by_encoder.setdefault(encoder, {})[task, target] = sample
    first = next((name for name in run.entrants if name in by_encoder), "")
    return compare_encoders(by_encoder, first, replicates=run.recipe.replicates)
