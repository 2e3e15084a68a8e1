"""From kept predictions to scores: every number of a benchmark can be made again from its prediction files.

A score is the mean over seeds. Its interval resamples patients, with the predictions of all seeds kept: it covers the
choice of test patients, not another draw of training patients or another fit (the spread over seeds shows those).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxelfm_hf.eval.benchmark.recipe import TaskRecipe
from voxelfm_hf.eval.metrics.scoring import estimate
from voxelfm_hf.eval.statistics.bootstrap import bootstrap
from voxelfm_hf.eval.statistics.estimates import Estimate, undefined
from voxelfm_hf.eval.tasks.kept import Judged, kept_column

# Columns of a fine-tuning's predictions, and of its rows in results.csv.
COSTS = ("seconds", "peak_memory_mb", "trainable_parameters")


@dataclass(frozen=True, eq=False)
class Sample:
    """Everything about one encoder, task, target and fraction: n rows, s seeds.

    Attributes:
        ids: (n,) ids of the rows.
        patients: (n,) patient numbers.
        judged: Predictions and measures; without any where there is no fit.
        main_metric: The metric that is tested.
        train_rows: Mean number of labelled training rows.
        seeds: Seeds that gave a fit.
        note: Why the others did not.
        cost: Mean seconds, peak_memory_mb and trainable_parameters of its fits, where they were measured.
    """

    ids: list[str]
    patients: np.ndarray
    judged: Judged
    main_metric: str
    train_rows: float
    seeds: tuple[int, ...]
    note: str
    cost: Mapping[str, float] = field(default_factory=dict)


def make_samples(tables: Mapping[int, pa.Table], task: TaskRecipe) -> dict[tuple, Sample]:
    """Samples by (target, fraction) of one encoder and task; predictions are by seed."""
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
        found[target, fraction] = _sample(fitted, task, notes[0] if notes else "")
    return found


def estimate_sample(sample: Sample, metric: str, *, replicates: int) -> Estimate:
    """A metric of a sample with its interval."""
    if not sample.seeds:
        return undefined(sample.note or "there is no fit")
    measure = sample.judged.measures[metric]
    return estimate(measure, *sample.judged.arrays(metric), patients=sample.patients, replicates=replicates)


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
        (
            sample.judged.measures[sample.main_metric].function,
            sample.judged.arrays(sample.main_metric),
            which == number,
        )
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


def _sample(tables: Mapping[int, pa.Table], task: TaskRecipe, note: str) -> Sample:
    metric = task.module.main_metric(task.read)
    if not tables:
        return Sample([], np.zeros(0), Judged((), {}, {}), metric, float("nan"), (), note)
    first = next(iter(tables.values()))
    ids = first["id"].to_pylist()
    for table in tables.values():
        if table["id"].to_pylist() != ids:
            raise ValueError("the seeds of one encoder and task were scored on different rows")
    rows = float(np.mean([table["train_rows"][0].as_py() for table in tables.values()]))
    cost = {
        name: float(np.mean([table[name][0].as_py() for table in tables.values()]))
        for name in COSTS
        if name in first.column_names
    }
    judged = task.module.judge(tables, task.read)
    return Sample(ids, kept_column(tables, "patient"), judged, metric, rows, tuple(tables), note, cost)
