"""Classification: findings that may occur together (one yes/no probe each), or classes that exclude each other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from voxelfm_hf.eval.labels import LabelTable, binary_target, class_target
from voxelfm_hf.eval.metrics import binary, multiclass
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.eval.metrics.scoring import metric_report
from voxelfm_hf.eval.tasks.answer import Answer, EncodedScan, by_name
from voxelfm_hf.eval.tasks.data import TaskData, open_data
from voxelfm_hf.eval.tasks.fitting import FitOptions, fit_columns, probe_outputs, too_few
from voxelfm_hf.eval.tasks.kept import (
    Judged,
    Tables,
    kept_column,
    kept_predictions,
    lists,
    number_columns,
    over_seeds,
    row_names,
)
from voxelfm_hf.eval.tasks.neighbours import fit_neighbours
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.calibration import choose_threshold, fit_temperature
from voxelfm_hf.training.probe.settings import FittedProbe
from voxelfm_hf.volumes.errors import LabelError

ANSWER = "calibrated probabilities, in the order of `probe.config.id2label`"
HEADLINES = ("auroc", "macro_auroc")
HAS_MACRO = True


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

    Raises:
        LabelError: classes that do not exclude each other, several columns of those that do, or labels that do not fit.
    """
    if classes and not exclusive:
        raise LabelError("classes are named only where they exclude each other (exclusive): say so or leave them out")
    data, labels = open_data(store, labels, task="classification", head=head, **options)
    if exclusive:
        if len(targets) != 1:
            raise LabelError(f"exclusive classes are one column, got {len(targets)}: {', '.join(targets)}")
        numbers, names = class_target(labels, targets[0], classes=classes)
        chosen = {**data.options, "exclusive": True, "column": targets[0]}
        return replace(data, targets=numbers[:, None], names=names, options=chosen)
    findings = np.stack([binary_target(labels, target) for target in targets], axis=1)
    return replace(data, targets=findings, names=list(targets), options={**data.options, "exclusive": False})


def why_unfit(targets: np.ndarray) -> str:
    """Why no probe can be fitted on training targets (n, k); empty if one can."""
    for column in np.hsplit(targets, targets.shape[1]):
        known = column[np.isfinite(column)]
        if reason := too_few(known):
            return reason
        if len(np.unique(known)) < 2:
            return f"all {len(known)} training labels are {known[0]:g}: a classifier needs both classes"
    return ""


def fit(data: TaskData, **options: Unpack[FitOptions]) -> VoxelFMProbe:
    """A probe with temperature and, for findings, threshold chosen on the validation rows.

    Args:
        data: From `read`.
        **options: See `FitOptions`; a knn head has no settings.
    """
    exclusive = data.options["exclusive"]
    if (options.get("head") or data.options["head"]) == "knn":
        probe = fit_neighbours(data, train=options.get("train"), seed=options.get("seed", 0))
    else:
        problem = "single_label_classification" if exclusive else "multi_label_classification"
        probe = fit_columns(data, fields={"problem_type": problem, "independent_outputs": not exclusive}, **options)
    calibrate(probe, data, device=options.get("device", "cpu"))
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
    found: Any = probe.answers(probe_outputs(probe, data, rows, device=device))
    return found.predictions.numpy()


def settle(
    fit: FittedProbe, logits: np.ndarray, held_logits: np.ndarray, held_labels: np.ndarray
) -> tuple[np.ndarray, float | None]:
    """Calibrated probabilities and threshold of one finding, as `calibrate` and `predict` have them.

    Args:
        fit: Of one output.
        logits: (rows,) to be turned into probabilities.
        held_logits: (m,) of labelled validation rows.
        held_labels: (m,) their labels.
    """
    temperature = fit_temperature(held_logits, held_labels)
    return _sigmoid(logits / temperature), choose_threshold(held_labels, _sigmoid(held_logits / temperature))


def answer(probe: VoxelFMProbe, scan: EncodedScan) -> Answer:
    """Calibrated probability of each finding or class, and which findings reach their threshold."""
    found = probe.predict(cls=scan.cls, patches=scan.patches)
    return Answer(values=by_name(probe, found.predictions), positive=by_name(probe, found.positive))


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
    subgroups = data.levels(rows)
    labels = data.targets[rows]
    if data.options["exclusive"]:
        known = np.isfinite(labels[:, 0])
        settings["patients"] = settings["patients"][known]
        subgroups = {c: [v for v, k in zip(values, known, strict=True) if k] for c, values in subgroups.items()}
        arrays = (labels[known, 0].astype(int), predictions[known])
        return {"classes": metric_report(multiclass.measures(data.names), *arrays, subgroups=subgroups, **settings)}
    reports = {}
    for i, name in enumerate(data.names):
        measures = binary.measures(threshold=0.5 if thresholds is None else thresholds[i])
        reports[name] = metric_report(measures, labels[:, i], predictions[:, i], subgroups=subgroups, **settings)
    if len(data.names) > 1:
        reports[MACRO] = _macro(reports)
    return reports


def counts(data: TaskData, rows: np.ndarray) -> dict[str, str]:
    """How many of some rows are positive, or in each class, by heading."""
    targets = data.targets[rows]
    if data.options["exclusive"]:
        return {name: str(int((targets[:, 0] == i).sum())) for i, name in enumerate(data.names)}
    return data.positives(rows)


def columns(predictions: np.ndarray, data: TaskData, rows: np.ndarray, *, probe: VoxelFMProbe) -> list[dict[str, Any]]:
    """truth, prediction (probability), threshold; of exclusive classes truth (number of the class), probabilities."""
    if data.options["exclusive"]:
        known = np.isfinite(data.targets[rows, 0])
        truth = data.targets[rows[known], 0].astype(int)
        kept = {"truth": truth, "probabilities": lists(predictions[known])}
        return [{**row_names(data, rows[known]), "target": data.options["column"], **kept}]
    thresholds: Sequence[float | None] = probe.config.threshold or [None] * len(data.names)
    return [target_columns(data, i, rows, predictions[:, i], threshold) for i, threshold in enumerate(thresholds)]


def target_columns(
    data: TaskData, number: int, rows: np.ndarray, predictions: np.ndarray, threshold: float | None
) -> dict[str, Any]:
    """The columns of one finding."""
    kept = number_columns(data, number, rows, predictions)
    return {**kept, "threshold": np.nan if threshold is None else threshold}


def judge(tables: Tables, options: Mapping[str, Any]) -> Judged:
    """Measures of kept predictions, each seed with its own threshold.

    Args:
        tables: By seed.
        options: Of `read`.
    """
    truth = kept_column(tables, "truth")
    if options.get("exclusive"):
        measures = over_seeds([multiclass.measures(options.get("classes") or ())] * len(tables))
        return Judged((truth.astype(int),), {"": kept_predictions(tables, "probabilities")}, measures)
    thresholds = [float(table["threshold"][0].as_py()) for table in tables.values()]
    measures = over_seeds([binary.measures(threshold=0.5 if np.isnan(t) else t) for t in thresholds])
    return Judged((truth,), {"": kept_predictions(tables, "prediction")}, measures)


def main_metric(options: Mapping[str, Any]) -> str:
    """AUROC, or its mean over exclusive classes."""
    return "macro_auroc" if options.get("exclusive") else "auroc"


def ceiling(data: TaskData) -> np.ndarray:
    """(n, k) features that know the answer."""
    return data.targets == np.arange(len(data.names)) if data.options["exclusive"] else data.targets


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))


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
