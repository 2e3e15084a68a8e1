"""What features tell of how a scan was made: linear probes by patient-grouped folds, and an erasure fitted apart.

Every row is scored by a probe that saw none of its patients. Within each fold the other patients are halved: the
erasure is fitted on one half, the probes before and after it on the other. A probe fitted on the rows of the erasure
would find nothing by construction; this one finds what the erasure misses. A nearest-neighbour probe beside it finds
what is left beyond linear reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxelfm_hf.eval.confounds.erasure import LinearErasure, fit_erasure
from voxelfm_hf.eval.labels import LabelTable

STRENGTHS = tuple(10.0**power for power in range(-3, 6))
NEIGHBOURS = 5
FOLDS = 5
INNER_FOLDS = 3
FEWEST_A_LEVEL = 5


@dataclass(frozen=True, eq=False)
class Acquisition:
    """One fact about how scans were made.

    Attributes:
        name: Of its column.
        values: (n,) numbers, or level numbers; NaN where unknown.
        levels: Names of the levels of a fact in words; empty for a number.
    """

    name: str
    values: np.ndarray
    levels: tuple[str, ...] = ()

    @property
    def known(self) -> np.ndarray:
        """(n,) whether the fact is known."""
        return np.isfinite(self.values)

    def design(self) -> np.ndarray:
        """(n, k): the number, or 0 and 1 for each level; NaN where unknown."""
        if not self.levels:
            return self.values[:, None]
        design = (self.values[:, None] == np.arange(len(self.levels))).astype(float)
        design[~self.known] = np.nan
        return design


def read_acquisition(labels: LabelTable, name: str) -> tuple[Acquisition | None, str]:
    """A column as a fact, or why it cannot be one.

    Args:
        labels: The label table.
        name: Column of numbers, or of words; levels with fewer than 5 rows are left out. Numbers that are only 0 and 1
            are two levels.
    """
    column = labels.column(name)
    try:
        numbers = np.array([np.nan if value is None else float(value) for value in column])
    except (TypeError, ValueError):
        numbers = None
    if numbers is not None:
        found = np.unique(numbers[np.isfinite(numbers)])
        if len(found) < 2:
            return None, f"{name} is the same in all rows"
        if not set(found.tolist()) <= {0.0, 1.0}:
            return Acquisition(name, np.where(np.isfinite(numbers), numbers, np.nan)), ""
        column = [None if not np.isfinite(value) else f"{value:g}" for value in numbers]
    texts = [None if value is None else str(value) for value in column]
    if len({text for text in texts if text is not None}) < 2:
        return None, f"{name} is the same in all rows"
    counts = {text: texts.count(text) for text in sorted({text for text in texts if text is not None})}
    levels = tuple(text for text, count in counts.items() if count >= FEWEST_A_LEVEL)
    if len(levels) < 2:
        return None, f"{name} has fewer than two levels with {FEWEST_A_LEVEL} rows each"
    number = {text: float(index) for index, text in enumerate(levels)}
    return Acquisition(name, np.array([number.get(text or "", np.nan) for text in texts]), levels), ""


def erase_acquisition(features: np.ndarray, facts: Sequence[Acquisition], rows: np.ndarray) -> LinearErasure:
    """The erasure of all facts together, fitted on some rows; a fact that is unknown in a row counts as average."""
    designs = []
    for fact in facts:
        design = fact.design()[rows]
        centred = design - np.nanmean(design, axis=0) if np.isfinite(design).any() else np.zeros_like(design)
        scale = np.nanstd(centred, axis=0) if np.isfinite(design).any() else 1.0
        designs.append(np.nan_to_num(centred / np.where(np.asarray(scale) > 0, scale, 1.0)))
    return fit_erasure(features[rows], np.concatenate(designs, axis=1))


@dataclass(frozen=True, eq=False)
class Predicted:
    """Out-of-fold answers of three probes about one fact, on the rows where it is known.

    Attributes:
        rows: Row numbers.
        truth: Numbers, or level numbers.
        answers: "before", "after" and "after, neighbours" -> numbers (m,), or scores (m, levels).
    """

    rows: np.ndarray
    truth: np.ndarray
    answers: dict[str, np.ndarray]


def predict_fact(
    features: np.ndarray,
    fact: Acquisition,
    facts: Sequence[Acquisition],
    patients: np.ndarray,
    *,
    seed: int = 0,
) -> Predicted:
    """Tells a fact from features before and after the erasure of all facts, out of `FOLDS` folds of patients.

    Args:
        features: (n, C).
        fact: What is told.
        facts: What is erased.
        patients: (n,) groups that stay together.
        seed: Of folds and halves.
    """
    from sklearn.model_selection import GroupKFold

    known = np.flatnonzero(fact.known)
    targets = fact.design()[known]
    shape = (len(known),) if not fact.levels else (len(known), len(fact.levels))
    answers = {name: np.full(shape, np.nan) for name in ("before", "after", "after, neighbours")}
    rng = np.random.default_rng(seed)
    splitter = GroupKFold(min(FOLDS, len(np.unique(patients[known]))), shuffle=True, random_state=seed)
    for train, test in splitter.split(known, groups=patients[known]):
        names = rng.permutation(np.unique(patients[known[train]]))
        first = np.isin(patients[known[train]], names[: len(names) // 2])
        eraser = erase_acquisition(features, facts, known[train[first]])
        fitted = train[~first]
        plain, cleaned = features[known], eraser(features[known])
        groups = patients[known[fitted]]
        for name, inputs in (("before", plain), ("after", cleaned)):
            found = ridge(inputs[fitted], targets[fitted], groups, inputs[test], classes=bool(fact.levels))
            answers[name][test] = found if fact.levels else found[:, 0]
        found = nearest(cleaned[fitted], targets[fitted], cleaned[test])
        answers["after, neighbours"][test] = found if fact.levels else found[:, 0]
    return Predicted(known, fact.values[known], answers)


def ridge(
    features: np.ndarray, targets: np.ndarray, groups: np.ndarray, test: np.ndarray, *, classes: bool = False
) -> np.ndarray:
    """Ridge regression on standardised features, its strength picked by folds of groups within the training rows.

    Args:
        features: (n, C) of the training rows.
        targets: (n, k) numbers, or 0 and 1 for each class; classes then weigh the same.
        groups: (n,) groups that stay together.
        test: (m, C).
        classes: Targets are classes.

    Returns:
        (m, k).
    """
    from sklearn.model_selection import GroupKFold

    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-9 * max(float(scale.max()), 1e-300), scale, 1.0)
    features, test = (features - mean) / scale, (test - mean) / scale
    weights = np.ones(len(targets))
    if classes:
        counts = targets.sum(0)
        weights = (targets / np.maximum(counts, 1)).sum(1) * len(targets) / max((counts > 0).sum(), 1)
    errors = np.zeros(len(STRENGTHS))
    parts = min(INNER_FOLDS, len(np.unique(groups)))
    if parts > 1:
        for train, held in GroupKFold(parts).split(features, groups=groups):
            found = _ridge_path(features[train], targets[train], weights[train], features[held])
            errors += (weights[held, None] * (found - targets[held]) ** 2).sum((1, 2))
    best = int(errors.argmin())
    return _ridge_path(features, targets, weights, test, STRENGTHS[best : best + 1])[0]


def _ridge_path(
    features: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    test: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
) -> np.ndarray:
    """Predictions (strengths, m, k) of weighted ridge regressions with an unpenalised intercept."""
    share = weights / weights.sum()
    mean, centre = share @ features, share @ targets
    root = np.sqrt(weights)[:, None]
    left, lengths, right = np.linalg.svd(root * (features - mean), full_matrices=False)
    along = left.T @ (root * (targets - centre))
    across = (test - mean) @ right.T
    shrunk = [lengths / (lengths**2 + strength) for strength in strengths]
    return np.stack([(across * factor) @ along + centre for factor in shrunk])


def nearest(features: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Mean target (m, k) of the 5 training rows of highest cosine similarity; classes weigh the same."""
    mean = features.mean(0)
    directions, queries = (
        (rows - mean) / np.linalg.norm(rows - mean, axis=1, keepdims=True).clip(1e-12) for rows in (features, test)
    )
    closest = np.argsort(-(queries @ directions.T), axis=1, kind="stable")[:, :NEIGHBOURS]
    share = targets.mean(0) if targets.shape[1] > 1 else np.ones(1)
    return targets[closest].mean(1) / np.where(share > 0, share, 1.0)
