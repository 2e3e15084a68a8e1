"""A quick look at the teacher's features while a run goes: nearest neighbours and a linear probe on labelled scans."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from voxelfm_hf.column_names import PATIENT_COLUMNS, usual_column
from voxelfm_hf.csv_rows import csv_rows
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.volumes import LabelError, read_volume

_FOLDS = 5


@dataclass(frozen=True)
class ProbeSet:
    """Labelled volumes, ready for the model.

    Args:
        volumes: normalised volumes (1, D, H, W).
        labels: (n,) class of each.
        is_test: (n,) whether it is scored only; None when the scores come from cross-validation.
        groups: (n,) patient of each; scans of one patient stay on one side of every split.
    """

    volumes: list[Tensor]
    labels: np.ndarray
    is_test: np.ndarray | None
    groups: np.ndarray


def load_probe_set(path: str | Path, processor: VoxelFMImageProcessor) -> ProbeSet:
    """Read a labels CSV and its scans.

    Args:
        path: CSV with the columns `path` (relative to the file), `label`, and optionally `split` and `patient` (or one
            of the other `PATIENT_COLUMNS`).
        processor: prepares the scans.

    Returns:
        The probe set, in memory.

    Raises:
        LabelError: a column, a file or a second class is missing, or a patient is on both sides.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelError(f"{path}: no such file; probe.labels must name a CSV of labelled scans.")
    rows = [row for _, row in csv_rows(path, ("path", "label"))]
    labels = np.array([row["label"] for row in rows])
    patient = usual_column(rows[0], PATIENT_COLUMNS)
    groups = np.array([patient and row[patient] or f"row {number}" for number, row in enumerate(rows)])
    is_test = None
    if rows[0].get("split"):
        is_test = np.array([row["split"] == "test" for row in rows])
        if set(groups[is_test]) & set(groups[~is_test]):
            raise LabelError(f"{path} has a patient in train and test; keep each on one side.")
    train_labels = labels if is_test is None else labels[~is_test]
    counts = Counter(train_labels.tolist())
    if len(counts) < 2 or min(counts.values()) < 2:
        raise LabelError(f"{path} needs at least two classes with two training scans each, got {dict(counts)}.")
    volumes = []
    for row in rows:
        prepared = processor(read_volume(path.parent / row["path"]), return_tensors="pt")
        volumes.append(prepared["pixel_values"][0])
    return ProbeSet(volumes, labels, is_test, groups)


@torch.no_grad()
def probe_scores(
    model: nn.Module, probe_set: ProbeSet, *, device: torch.device, neighbours: int = 5, seed: int = 0
) -> dict[str, float]:
    """Score the CLS features of a model.

    Args:
        model: a VoxelFMModel in evaluation mode.
        probe_set: labelled volumes.
        device: where the model is.
        neighbours: k of the nearest neighbour probe (cosine).
        seed: of the folds.

    Returns:
        Balanced accuracies `probe_knn` and `probe_linear` on the test split, or over cross-validation folds.
    """
    features = [model(volume[None].to(device)).pooler_output[0].float().cpu() for volume in probe_set.volumes]
    return score_features(torch.stack(features).numpy(), probe_set, neighbours=neighbours, seed=seed)


def score_features(
    features: np.ndarray, probe_set: ProbeSet, *, neighbours: int = 5, seed: int = 0
) -> dict[str, float]:
    """Balanced accuracies of both probes on given features (n, C)."""
    # scikit-learn is slow to import and only needed here
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler, normalize

    labels = probe_set.labels
    if probe_set.is_test is not None:
        splits = [(np.flatnonzero(~probe_set.is_test), np.flatnonzero(probe_set.is_test))]
    else:
        folds = min(_FOLDS, min(Counter(labels.tolist()).values()))
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        splits = list(splitter.split(features, labels, probe_set.groups))
    unit = normalize(features)
    predicted: dict[str, list] = {"probe_knn": [], "probe_linear": []}
    for train, test in splits:
        nearest = KNeighborsClassifier(min(neighbours, len(train)), metric="cosine").fit(unit[train], labels[train])
        linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced"))
        predicted["probe_knn"].append(nearest.predict(unit[test]))
        predicted["probe_linear"].append(linear.fit(features[train], labels[train]).predict(features[test]))
    truth = labels[np.concatenate([test for _, test in splits])]
    return {name: float(balanced_accuracy_score(truth, np.concatenate(found))) for name, found in predicted.items()}
