"""Classification: findings that may occur together (one yes/no probe each), or classes that exclude each other."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from voxelfm_hf.eval.labels import LabelTable, binary_target, class_target
from voxelfm_hf.eval.measures import classification_measures, multiclass_measures
from voxelfm_hf.eval.metric_reports import metric_report
from voxelfm_hf.eval.metrics.binary import auroc
from voxelfm_hf.eval.tasks.data import TaskData, open_data
from voxelfm_hf.eval.tasks.fitting import fit_columns, probe_outputs
from voxelfm_hf.eval.tasks.neighbours import NEIGHBOURS, fit_neighbours
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.calibration import choose_threshold, fit_temperature
from voxelfm_hf.training.probe.settings import ProbeSettings
from voxelfm_hf.volumes.errors import LabelError

PATCH_HEADS = ("pooler",)


def read(
    store: FeatureStore,
    labels: LabelTable,
    *,
    targets: Sequence[str],
    head: str = "linear",
    exclusive: bool = False,
    classes: Sequence[str] | None = None,
    **options,
) -> TaskData:
    """Labelled rows of one or more findings, or of one column of exclusive classes.

    Args:
        store: The feature store.
        labels: The label table.
        targets: Columns with 0 and 1, empty where unknown; one column of class names if exclusive.
        head: Decides whether CLS vectors or patch grids are loaded.
        exclusive: Exactly one class holds for a scan.
        classes: Names and order of exclusive classes.
        **options: Options of `open_data`.
    """
    data, labels = open_data(store, labels, task="classification", needs_patches=head in PATCH_HEADS, **options)
    if exclusive:
        if len(targets) != 1:
            raise LabelError(f"exclusive classes are one column, got {len(targets)}: {', '.join(targets)}")
        numbers, names = class_target(labels, targets[0], classes=classes)
        return replace(data, targets=numbers[:, None], names=names, options={"exclusive": True, "head": head})
    columns = np.stack([binary_target(labels, target) for target in targets], axis=1)
    return replace(data, targets=columns, names=list(targets), options={"exclusive": False, "head": head})


def fit(
    data: TaskData,
    *,
    head: str | None = None,
    head_hidden_size: int | None = None,
    settings: ProbeSettings | None = None,
    train: np.ndarray | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> VoxelFMProbe:
    """A probe with temperature and, for findings, threshold chosen on the validation rows.

    Args:
        data: From `read`.
        head: linear, mlp, pooler or knn; by default the one the data were read for.
        head_hidden_size: Hidden width of mlp and pooler.
        settings: How to fit; a knn head has none.
        train: Training rows in place of the whole training split.
        seed: Of the fit.
        device: Where to compute.
    """
    head, exclusive = head or data.options["head"], data.options["exclusive"]
    if head == "knn":
        probe = fit_neighbours(data, train=train, seed=seed)
        calibrate(probe, data, device=device)
        return probe
    probe, _ = fit_columns(
        data,
        head=head,
        head_hidden_size=head_hidden_size,
        settings=settings,
        train=train,
        seed=seed,
        device=device,
        together=exclusive or head in PATCH_HEADS,
        problem_type="single_label_classification" if exclusive else "multi_label_classification",
        independent_outputs=not exclusive,
    )
    calibrate(probe, data, device=device)
    return probe


def calibrate(probe: VoxelFMProbe, data: TaskData, *, train: np.ndarray | None = None, device: str = "cpu") -> None:
    """Chooses temperature and, for findings, threshold of a fitted probe on the validation rows.

    Args:
        probe: Its configuration is filled in.
        data: From `read`.
        train: Not looked at.
        device: Where to compute.
    """
    rows = data.rows("val")
    logits, labels = probe_outputs(probe, data, rows, device=device).numpy(), data.targets[rows]
    if data.options["exclusive"]:
        probe.config.temperature = [fit_temperature(logits, labels[:, 0])]
        return
    temperature = [fit_temperature(logits[:, i], labels[:, i]) for i in range(len(data.names))]
    chances = 1 / (1 + np.exp(-logits / np.array(temperature)))
    probe.config.temperature = temperature
    probe.config.threshold = [choose_threshold(labels[:, i], chances[:, i]) for i in range(len(data.names))]


def predict(probe: VoxelFMProbe, data: TaskData, rows: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """Calibrated probabilities (rows, findings or classes)."""
    logits = probe_outputs(probe, data, rows, device=device)
    temperature = torch.tensor(probe.config.temperature or [1.0])
    return (
        (logits / temperature[0]).softmax(-1) if probe.config.is_single_label else (logits / temperature).sigmoid()
    ).numpy()


def evaluate(
    predictions: np.ndarray,
    data: TaskData,
    rows: np.ndarray,
    *,
    thresholds: Sequence[float] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """Reports by finding (and "macro" over findings), or one named "classes".

    Args:
        predictions: (rows, findings or classes) probabilities.
        data: The task data.
        rows: The rows they belong to.
        thresholds: Of each finding, for F1 and balanced accuracy; 0.5 without.
        replicates: Bootstrap replicates.
        seed: Of the bootstrap.
    """
    settings = {"patients": data.groups[rows], "replicates": replicates, "seed": seed}
    subgroups = {column: [levels[row] for row in rows] for column, levels in data.subgroups.items()}
    labels = data.targets[rows]
    if data.options["exclusive"]:
        known = np.isfinite(labels[:, 0])
        settings["patients"] = settings["patients"][known]
        subgroups = {c: [v for v, k in zip(values, known, strict=True) if k] for c, values in subgroups.items()}
        arrays = (labels[known, 0].astype(int), predictions[known])
        return {"classes": metric_report(multiclass_measures(), *arrays, subgroups=subgroups, **settings)}
    reports = {}
    for i, name in enumerate(data.names):
        measures = classification_measures(threshold=0.5 if thresholds is None else thresholds[i])
        reports[name] = metric_report(measures, labels[:, i], predictions[:, i], subgroups=subgroups, **settings)
    if len(data.names) > 1:
        reports["macro"] = _macro(reports)
    return reports


def nearest_neighbours(
    data: TaskData, rows: np.ndarray, *, target: int = 0, train: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Share of positives among the k training scans of highest cosine similarity, k picked on the validation rows.

    Args:
        data: The task data, read for CLS vectors and findings.
        rows: Rows to score.
        target: Number of the finding.
        train: Training rows in place of the whole training split.

    Returns:
        Scores (rows,) weighted by similarity rank only through k, and the k of highest validation AUROC.
    """
    if data.features.cls is None:
        raise ValueError("nearest neighbours need CLS vectors")
    train = data.rows("train") if train is None else train
    labels = data.targets[:, target]
    train, validation = train[np.isfinite(labels[train])], data.rows("val")
    validation = validation[np.isfinite(labels[validation])]
    directions = torch.nn.functional.normalize(data.features.cls, dim=1).numpy()

    def scores(of: np.ndarray) -> np.ndarray:
        order = np.argsort(-(directions[of] @ directions[train].T), axis=1, kind="stable")
        return np.cumsum(labels[train][order], axis=1) / np.arange(1, len(train) + 1)

    allowed = [k for k in NEIGHBOURS if k <= len(train)]
    held = scores(validation) if len(validation) else np.zeros((0, len(train)))
    judged = [float(auroc(labels[validation], held[:, k - 1])) if len(validation) else np.nan for k in allowed]
    best = allowed[int(np.nanargmax(judged))] if np.isfinite(judged).any() else allowed[len(allowed) // 2]
    return scores(rows)[:, best - 1], best


def _macro(reports: dict[str, dict]) -> dict:
    """Means over the findings whose metric is defined; no interval, the findings share their patients."""
    names = [name for name in next(iter(reports.values())) if name not in ("estimates", "subgroups")]
    macro: dict = {"estimates": {}}
    for name in names:
        values = np.array([report[name] for report in reports.values()])
        defined = np.isfinite(values)
        macro[name] = float(values[defined].mean()) if defined.any() else float("nan")
        macro["estimates"][name] = {
            "value": macro[name] if defined.any() else None,
            "low": None,
            "high": None,
            "n": int(defined.sum()),
            "note": f"mean over {int(defined.sum())} of {len(values)} findings",
            "patients": None,
        }
    return macro
