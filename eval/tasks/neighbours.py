"""The nearest-neighbour classifier: nothing is learned but how many training scans to ask."""

from collections.abc import Sequence

import numpy as np
import torch

from voxelfm_hf.eval.metrics.binary import auroc
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.eval.tasks.fitting import fit_facts, probe_config, training_rows
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.volumes.errors import LabelError

NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)
NOTE = "the probe holds the feature vectors and labels of its training scans"


def fit_neighbours(data: TaskData, *, train: np.ndarray | None = None, seed: int = 0) -> VoxelFMProbe:
    """A probe that answers with the labels of the most similar training scans; k is picked on the validation rows.

    Args:
        data: Of a classification, read for CLS vectors.
        train: Training rows in place of the whole training split.
        seed: Written down; nothing is random.

    Raises:
        LabelError: fewer than two labelled training scans.
    """
    if data.features.cls is None:
        raise ValueError("nearest neighbours need CLS vectors")
    train, validation = training_rows(data, train), data.rows("val")
    labels = data.targets
    if data.options["exclusive"]:
        known = np.isfinite(labels)
        labels = np.where(known, labels == np.arange(len(data.names)), np.nan)
    stored = train[np.isfinite(labels[train]).any(axis=1)]
    if len(stored) < 2:
        title = "+".join(data.names)
        raise LabelError(f"{title} has {len(stored)} labelled training scans: a probe needs at least two")
    config = probe_config(
        data,
        head="knn",
        names=data.names,
        problem_type="single_label_classification" if data.options["exclusive"] else "multi_label_classification",
        num_stored=len(stored),
        num_neighbours=[1] * labels.shape[1],
    )
    probe = VoxelFMProbe(config).eval()
    directions = torch.nn.functional.normalize(data.features.cls[torch.as_tensor(stored)].float(), dim=1)
    probe.head.load_state_dict({"directions": directions, "labels": torch.from_numpy(labels[stored]).float()})
    counts = np.isfinite(labels[stored]).sum(axis=0)
    chosen = _choose(probe, data.features.cls[torch.as_tensor(validation)].float(), labels[validation], counts)
    probe.config.num_neighbours = chosen
    probe.config.fit = {
        **fit_facts(data, train, seed),
        "settings": {"neighbours": dict(zip(data.names, chosen, strict=True))},
        "notes": [*data.notes, NOTE],
    }
    return probe


@torch.no_grad()
def _choose(probe: VoxelFMProbe, cls: torch.Tensor, labels: np.ndarray, counts: Sequence[int]) -> list[int]:
    """The k of each output with the highest validation AUROC; of exclusive classes one k, by their mean."""
    scores = np.full((len(NEIGHBOURS), len(counts)), np.nan)
    for place, k in enumerate(NEIGHBOURS):
        probe.config.num_neighbours = [k] * len(counts)
        logits = probe(cls=cls).logits.numpy() if len(cls) else np.zeros((0, len(counts)))
        for output, count in enumerate(counts):
            known = np.isfinite(labels[:, output])
            if k <= count and known.any():
                scores[place, output] = float(auroc(labels[known, output], logits[known, output]))
    if probe.config.is_single_label:
        usable = np.isfinite(scores).any(axis=1)
        means = np.array([np.nanmean(row) if ok else np.nan for row, ok in zip(scores, usable, strict=True)])
        scores = np.repeat(means[:, None], len(counts), axis=1)
    chosen = []
    for output, count in enumerate(counts):
        allowed = [place for place, k in enumerate(NEIGHBOURS) if k <= count] or [0]
        defined = [place for place in allowed if np.isfinite(scores[place, output])]
        best = max(defined, key=lambda place: scores[place, output]) if defined else allowed[len(allowed) // 2]
        chosen.append(NEIGHBOURS[best])
    return chosen
