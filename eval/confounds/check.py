"""Does an encoder see the patient or the scanner? `voxelfm confounds STORE LABELS --acquisition … --out DIR`.

Three questions about the features of any store, each before and after the acquisition subspace is erased (`erasure`):

- how well do features alone tell spacing, kernel, field of view, noise (`probes`, out of fold by patient)?
- how do task probes score, on all test rows and within strata of acquisition? The erasure is fitted on training rows.
- does retrieval find the same finding, and the same person scanned another way, among the test rows?

A finding that truly goes with acquisition (a disease that is always scanned thin) loses with the erasure too: a drop is
no proof that a probe cheated, and no drop none that it did not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from voxelfm_hf.eval.confounds.probes import Acquisition, erase_acquisition, predict_fact, read_acquisition
from voxelfm_hf.eval.labels import LabelTable, binary_target
from voxelfm_hf.eval.metrics import binary, continuous, multiclass
from voxelfm_hf.eval.metrics.retrieval import recall_measure
from voxelfm_hf.eval.metrics.scoring import by_subgroup, estimate
from voxelfm_hf.eval.statistics.estimates import Estimate, forget_patients
from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.data import TaskData, open_data
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.data import ProbeFeatures
from voxelfm_hf.volumes.errors import LabelError

FIELDS = ("question", "what", "stratum", "stage", "metric", "value", "low", "high", "chance", "n", "patients", "note")
BEFORE, AFTER = "before", "after"
RECALLS_AT = (1, 5)


@dataclass(frozen=True, eq=False)
class Confounds:
    """What was found.

    Attributes:
        rows: One number each, see `FIELDS`; question is acquisition, task or retrieval.
        facts: The acquisition columns that were used.
        rank: Dimensions the erasure takes out of how many.
        notes: What was left out or assumed.
    """

    rows: list[dict[str, Any]]
    facts: list[str]
    rank: tuple[int, int]
    notes: list[str] = field(default_factory=list)


def measure_confounds(
    store: FeatureStore,
    labels: LabelTable,
    *,
    acquisition: Sequence[str],
    targets: Sequence[str] = (),
    patient_column: str | None = None,
    allow_missing: bool = False,
    replicates: int = 1000,
    seed: int = 0,
) -> Confounds:
    """Measures what the features of a store know of acquisition, and what tasks lose without it.

    Args:
        store: Features of any encoder.
        labels: One row an id, with patient and perhaps split columns.
        acquisition: Columns of numbers (spacing, noise) or words (kernel, scanner).
        targets: Columns with 0 and 1, or numbers, of the tasks.
        patient_column: As in `patient_groups`.
        allow_missing: Leave labels without features out.
        replicates: Bootstrap replicates of the intervals.
        seed: Of folds, drawn splits, probes and bootstrap.

    Raises:
        LabelError: a column that does not exist, or none that varies.
    """
    options: dict[str, Any] = {
        "patient_column": patient_column,
        "allow_missing": allow_missing,
        "split_seed": seed,
        "subgroup_columns": list(acquisition),
    }
    data, matched = open_data(store, labels, task="classification", **options)
    facts, notes = [], list(data.notes)
    for name in acquisition:
        fact, reason = read_acquisition(matched, name)
        if fact is None:
            notes.append(f"{reason}: it is left out")
        else:
            facts.append(fact)
    if not facts:
        raise LabelError(f"{labels.source}: no acquisition column can be used: {'; '.join(notes)}")
    features = _vectors(data)
    settings = {"replicates": replicates, "seed": seed}
    rows = []
    for fact in facts:
        rows += _fact_rows(features, fact, facts, data.groups, settings)
    erasure = erase_acquisition(features, facts, data.rows("train"))
    cleaned = ProbeFeatures(cls=torch.from_numpy(erasure(features).astype(np.float32)))
    for target in targets:
        rows += _task_rows(store, labels, matched, target, cleaned, options, settings)
    rows += _person_rows(data, facts, {BEFORE: features, AFTER: erasure(features)}, settings)
    if not any(row["what"] == "same person" for row in rows):
        notes.append("no test patient was scanned in two ways: the same person cannot be searched for")
    if data.patient_column is None:
        forget_patients(rows)
    return Confounds(rows, [fact.name for fact in facts], (erasure.rank, features.shape[1]), notes)


def _fact_rows(
    features: np.ndarray, fact: Acquisition, facts: Sequence[Acquisition], patients: np.ndarray, settings: dict
) -> list[dict[str, Any]]:
    """How well one fact is told."""
    found = predict_fact(features, fact, facts, patients, seed=settings["seed"])
    truth: np.ndarray
    if fact.levels:
        measure = multiclass.measures(fact.levels)["balanced_accuracy"]
        truth, chance = found.truth.astype(int), 1 / len(fact.levels)
    else:
        measure, truth, chance = continuous.measures()["r2"], found.truth, 0.0
    return [
        _row("acquisition", fact.name, stage, measure.name, chance)
        | _numbers(estimate(measure, truth, answers, patients=patients[found.rows], **settings))
        for stage, answers in found.answers.items()
    ]


def _task_rows(
    store: FeatureStore,
    labels: LabelTable,
    matched: LabelTable,
    target: str,
    cleaned: ProbeFeatures,
    options: dict[str, Any],
    settings: dict,
) -> list[dict[str, Any]]:
    """Scores of one target's probe, and its retrieval if it is a finding."""
    family = _family(matched, target)
    module = load_task(family)
    data = module.read(store, labels, targets=[target], **options)
    measure = binary.measures()["auroc"] if family == "classification" else continuous.measures()["r2"]
    chance = measure.chance or 0.0
    test = data.rows("test")
    columns = {column: [levels[row] for row in test] for column, levels in data.subgroups.items()}
    strata = {column: levels for column, levels in columns.items() if len(set(map(str, levels))) > 1}
    settings_here = {**settings, "patients": data.groups[test]}
    rows = []
    for stage, features in ((BEFORE, data.features), (AFTER, cleaned)):
        staged = replace(data, features=features)
        probe = module.fit(staged, seed=settings["seed"])
        arrays = (data.targets[test, 0], module.predict(probe, staged, test)[:, 0])
        whole = estimate(measure, *arrays, **settings_here)
        rows.append(_row("task", target, stage, measure.name, chance) | _numbers(whole))
        for group in by_subgroup(measure, *arrays, columns=strata, **settings_here):
            stratum = f"{group.column}: {group.level}"
            rows.append(_row("task", target, stage, measure.name, chance, stratum) | _numbers(group.estimate))
    if family == "classification":
        retrieval = load_task("retrieval")
        data = retrieval.read(store, labels, targets=[target], **{**options, "subgroup_columns": []})
        for stage, features in ((BEFORE, data.features), (AFTER, cleaned)):
            staged = replace(data, features=_centred(features, data.rows("train")))
            report = retrieval.evaluate(retrieval.predict(None, staged, test), staged, test, k=RECALLS_AT, **settings)
            for k in RECALLS_AT:
                found = report[target]["estimates"][f"recall_at_{k}"]
                rows.append(_row("retrieval", target, stage, f"recall_at_{k}", found["chance"]) | _numbers(found))
    return rows


def _person_rows(
    data: TaskData, facts: Sequence[Acquisition], stages: dict[str, np.ndarray], settings: dict
) -> list[dict[str, Any]]:
    """Whether the nearest test scans are the same person's, scanned another way."""
    test = data.rows("test")
    groups = data.groups[test]
    designs = np.concatenate([fact.design()[test] for fact in facts], axis=1)
    same = groups[:, None] == groups[None]
    differs = (np.abs(designs[:, None] - designs[None]) > 1e-6).any(-1)
    positives = same & differs
    queries = np.flatnonzero(positives.any(1))
    if not len(queries):
        return []
    # Another row of the person made the same way would be found for the wrong reason: it is left out of the list.
    candidates = positives | ~same
    counts, totals = positives[queries].sum(1), candidates[queries].sum(1)
    rows = []
    for stage, features in stages.items():
        vectors = features[test] - features[data.rows("train")].mean(0)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        similarity = np.where(candidates, vectors @ vectors.T, -np.inf)
        best = np.where(positives, similarity, -np.inf).max(1)
        ahead = ((similarity > best[:, None]) & ~positives).sum(1)[queries]
        for k in RECALLS_AT:
            chance = float(np.mean([_chance(t, c, k) for t, c in zip(totals, counts, strict=True)]))
            hits = (ahead < k).astype(float)
            found = estimate(recall_measure(k), hits, patients=groups[queries], **settings)
            rows.append(_row("retrieval", "same person", stage, f"recall_at_{k}", chance) | _numbers(found))
    return rows


def _chance(total: int, positives: int, k: int) -> float:
    """Chance that one of the positives is among k drawn from all candidates."""
    total, positives = int(total), int(positives)
    return 1.0 if k > total - positives else 1 - math.comb(total - positives, k) / math.comb(total, k)


def _family(labels: LabelTable, target: str) -> str:
    try:
        binary_target(labels, target)
    except LabelError as error:
        if "neither 0 nor 1" not in str(error):
            raise
        return "regression"
    return "classification"


def _centred(features: ProbeFeatures, rows: np.ndarray) -> ProbeFeatures:
    """Features about the mean of some rows: cosines of raw features compare mostly what all scans share."""
    assert features.cls is not None
    return ProbeFeatures(cls=features.cls - features.cls[torch.as_tensor(rows)].mean(0))


def _vectors(data: TaskData) -> np.ndarray:
    assert data.features.cls is not None
    return data.features.cls.double().numpy()


def _row(question: str, what: str, stage: str, metric: str, chance: float, stratum: str = "") -> dict[str, Any]:
    return {"question": question, "what": what, "stratum": stratum, "stage": stage, "metric": metric, "chance": chance}


def _numbers(found: Estimate | Mapping[str, Any]) -> dict[str, Any]:
    values = found.as_dict() if isinstance(found, Estimate) else found
    return {name: values.get(name) for name in ("value", "low", "high", "n", "patients", "note")}
