"""Metrics of one class out of several: labels 0 .. K - 1 and probabilities (n, K)."""

from collections.abc import Sequence

import numpy as np

from voxelfm_hf.eval.metrics import binary
from voxelfm_hf.eval.metrics.measure import Measure, by_name, of_first
from voxelfm_hf.eval.metrics.ranks import checked_weights, ratio


def measures(names: Sequence[str] = ()) -> dict[str, Measure]:
    """Measures of (labels, probabilities (n, K)) of one class out of K; `names` of the classes, for sentences."""

    def complete(labels: np.ndarray, probabilities: np.ndarray) -> str:
        return why_not_all_classes(labels, names or range(np.shape(probabilities)[1]))

    return by_name(
        (
            Measure("macro_auroc", "macro AUROC", macro_auroc, complete, chance=0.5),
            Measure("macro_f1", "macro F1", macro_f1, complete),
            Measure("balanced_accuracy", "balanced accuracy", balanced_accuracy, complete),
            Measure("accuracy", "accuracy", accuracy, of_first(binary.why_no_rows)),
        )
    )


def why_not_all_classes(labels: np.ndarray, names: Sequence[object]) -> str:
    """A sentence when one of the classes 0 .. K - 1, called by their names, has no row, otherwise an empty string."""
    present = {int(label) for label in np.unique(labels)}
    missing = [str(name) for number, name in enumerate(names) if number not in present]
    return f"no row of class {', '.join(missing)}: a macro average needs every class" if missing else ""


def macro_auroc(labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Unweighted mean of the one-against-the-rest AUROCs; NaN unless every class occurs."""
    classes = range(np.shape(probabilities)[1])
    labels = np.asarray(labels)
    return np.mean([binary.auroc(labels == c, probabilities[:, c], weights=weights) for c in classes], axis=0)


def macro_f1(labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Unweighted mean of the F1 of every class, the most probable class being called; NaN unless every class occurs."""
    labels, called = np.asarray(labels), np.argmax(probabilities, axis=1)
    classes = range(np.shape(probabilities)[1])
    return np.mean([binary.f1(labels == c, called == c, weights=weights) for c in classes], axis=0)


def accuracy(labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Share of rows whose most probable class is right."""
    weights = checked_weights(weights, len(labels))
    right = np.argmax(probabilities, axis=1) == np.asarray(labels)
    return ratio(weights @ right.astype(float), weights.sum(-1))


def balanced_accuracy(
    labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean over the classes of the share of their rows that are called right; NaN unless every class occurs."""
    weights = checked_weights(weights, len(labels))
    labels, right = np.asarray(labels), np.argmax(probabilities, axis=1) == np.asarray(labels)
    recalls = []
    for c in range(np.shape(probabilities)[1]):
        member = (labels == c).astype(float)
        recalls.append(ratio(weights @ (member * right), weights @ member))
    return np.mean(recalls, axis=0)
