"""A linear probe by patient-grouped cross-validation: every region is scored by a probe that never saw its patient."""

from collections.abc import Iterator, Sequence

import numpy as np

from voxelfm_hf.volumes.errors import LabelError

STRENGTHS = tuple(10.0**power for power in range(-4, 2))
INNER_FOLDS = 3


def out_of_fold(
    features: Sequence[np.ndarray],
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    covariates: np.ndarray | None = None,
    folds: int = 5,
    strengths: Sequence[float] = STRENGTHS,
    jobs: int = 1,
) -> np.ndarray:
    """Class probabilities of every row, each from a probe fitted on other patients; one draw of folds for each seed.

    The probe is a logistic regression on standardised features with classes weighted equally. Its strength C is the
    one with the smallest balanced log loss in a cross-validation of its own, by patient, within the training folds.

    Args:
        features: (n, C) for each seed 0, 1, ...; the same array again where only the folds differ.
        labels: (n,) classes 0 ... K - 1.
        patients: (n,) groups that stay on one side of every split.
        covariates: (n, k) numbers beside the features, weighed against the probe's score by a second logistic
            regression that is fitted on scores the inner cross-validation held out (two classes only).
        folds: Of the outer cross-validation.
        strengths: C to choose from, ascending.
        jobs: Processes that share the folds.

    Returns:
        (seeds, n, K) probabilities.

    Raises:
        LabelError: fewer than two classes, or a class in fewer patients than folds.
    """
    from joblib import Parallel, delayed
    from sklearn.model_selection import StratifiedGroupKFold

    labels, patients = np.asarray(labels), np.asarray(patients)
    present = np.unique(labels)
    rarest = min(len(np.unique(patients[labels == label])) for label in present)
    if rarest < folds or len(present) < 2:
        raise LabelError(
            f"{len(present)} classes, the rarest in {rarest} patients: a cross-validation of {folds} folds needs two "
            "classes or more and every class in as many patients as folds"
        )
    found = np.zeros((len(features), len(labels), labels.max() + 1))
    parts = []
    for seed, values in enumerate(features):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts += [(seed, train, test) for train, test in splitter.split(values, labels, patients)]
    fitted = Parallel(n_jobs=jobs)(
        delayed(_fold)(features[seed], labels, patients, covariates, train, test, strengths, seed)
        for seed, train, test in parts
    )
    for (seed, _, test), probabilities in zip(parts, fitted, strict=True):
        found[seed, test] = probabilities
    return found


def _fold(
    features: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    covariates: np.ndarray | None,
    train: np.ndarray,
    test: np.ndarray,
    strengths: Sequence[float],
    seed: int,
) -> np.ndarray:
    """Probabilities (m, K) of the test rows from a probe on the training rows."""
    from threadpoolctl import threadpool_limits

    classes = labels.max() + 1
    # The fits are tiny: threads would only wait for each other.
    with threadpool_limits(1):
        strength, scores = _strength(features[train], labels[train], patients[train], classes, strengths, seed)
        probabilities = _fit(features[train], labels[train], strength, features[test], classes)
        if covariates is None:
            return probabilities
        inner = np.column_stack([_log_odds(scores), covariates[train]])
        outer = np.column_stack([_log_odds(probabilities), covariates[test]])
        return _fit(inner, labels[train], 1.0, outer, classes)


def _strength(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, classes: int, strengths: Sequence[float], seed: int
) -> tuple[float, np.ndarray]:
    """The best C and the probabilities (n, K) that its probes gave to the rows they were not fitted on.

    The loss has one valley over C: the search, from small to large, ends where it rises.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(INNER_FOLDS, shuffle=True, random_state=seed)
    splits = list(splitter.split(features, labels, patients))
    fits = [_fits(features[train], labels[train], strengths, features[test], classes) for train, test in splits]
    weights = 1 / np.bincount(labels, minlength=classes)[labels]
    best, highest, chosen = strengths[0], -np.inf, np.zeros((len(labels), classes))
    for strength, *probabilities in zip(strengths, *fits, strict=True):
        held_out = np.zeros((len(labels), classes))
        for (_, test), part in zip(splits, probabilities, strict=True):
            held_out[test] = part
        likelihood = np.log(np.clip(held_out[np.arange(len(labels)), labels], 1e-6, None)) @ weights
        if likelihood <= highest:
            break
        best, highest, chosen = strength, likelihood, held_out
    return best, chosen


def _fits(
    features: np.ndarray, labels: np.ndarray, strengths: Sequence[float], test: np.ndarray, classes: int
) -> Iterator[np.ndarray]:
    """Probabilities (m, K) of the test rows at one strength after the other; 0 for classes without a training row."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    # From weak to strong, each fit starts where the one before ended.
    probe = LogisticRegression(class_weight="balanced", max_iter=1000, tol=1e-4, warm_start=True)
    for strength in strengths:
        probe.set_params(C=strength).fit(scaler.transform(features), labels)
        found = np.zeros((len(test), classes))
        found[:, probe.classes_] = probe.predict_proba(scaler.transform(test))
        yield found


def _fit(features: np.ndarray, labels: np.ndarray, strength: float, test: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities (m, K) of the test rows at one strength."""
    return next(_fits(features, labels, [strength], test, classes))


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    clipped = np.clip(probabilities[:, 1], 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))
