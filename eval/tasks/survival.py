"""Survival: time to an event with censoring, a Cox model on full risk sets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from voxelfm_hf.eval.labels import LabelTable, survival_target
from voxelfm_hf.eval.metrics import survival
from voxelfm_hf.eval.metrics.scoring import metric_report
from voxelfm_hf.eval.tasks.answer import LOG_RISK, Answer, EncodedScan, by_name
from voxelfm_hf.eval.tasks.data import TaskData, open_data
from voxelfm_hf.eval.tasks.fitting import FitOptions, fit_columns, probe_outputs, too_few, training_rows
from voxelfm_hf.eval.tasks.kept import Judged, Tables, kept_column, kept_predictions, number_columns, over_seeds
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.calibration import baseline_hazard
from voxelfm_hf.training.probe.settings import FittedProbe
from voxelfm_hf.volumes.errors import LabelError

ANSWER = "log risks, which `probe.survival(log_risks, times)` turns into chances of no event"
HEADLINES = ("c_index",)
HAS_MACRO = False


def read(
    store: FeatureStore,
    labels: LabelTable,
    *,
    time: str = "time",
    event: str = "event",
    unit: str | Sequence[str] | None = None,
    horizons: Sequence[float] = (),
    head: str = "linear",
    **options,
) -> TaskData:
    """Labelled rows with follow-up times and events.

    Args:
        store: The feature store.
        labels: The label table.
        time: Column of the follow-up time.
        event: Column with 1 for an event at that time, 0 for censored.
        unit: Unit of the time, for the card; a sequence holds one.
        horizons: Times at which an AUROC is given, in that unit.
        head: Decides whether CLS vectors or patch grids are loaded.
        **options: Options of `open_data`.

    Raises:
        LabelError: several units, a horizon that is no time, no event among the training rows, or labels that do not
            fit.
    """
    units = [unit] if isinstance(unit, str) else list(unit or ())
    if len(units) > 1:
        raise LabelError(f"a survival has one unit, that of its time: got {', '.join(units)}; name one")
    impossible = [horizon for horizon in horizons if not (math.isfinite(horizon) and horizon > 0)]
    if impossible:
        raise LabelError(f"horizons are times above 0, got {impossible[0]:g}: name times of the follow-up")
    data, labels = open_data(store, labels, task="survival", head=head, **options)
    target = survival_target(labels, time=time, event=event)
    if not (target[data.rows("train"), 1] == 1).any():
        raise LabelError(f"{labels.source}: no training row has an event in column {event}")
    chosen = {**data.options, "unit": units[0] if units else None, "horizons": tuple(horizons)}
    return replace(data, targets=target, names=[event], options=chosen)


def why_unfit(targets: np.ndarray) -> str:
    """Why no probe can be fitted on training times and events (n, 2); empty if one can."""
    if reason := too_few(targets):
        return reason
    return "" if (targets[:, 1] == 1).any() else f"no event among {len(targets)} training scans"


def fit(data: TaskData, **options: Unpack[FitOptions]) -> VoxelFMProbe:
    """A Cox probe with the baseline hazard of its training rows.

    Args:
        data: From `read`.
        **options: See `FitOptions`.
    """
    unit = data.options.get("unit")
    probe = fit_columns(data, fields={"target_unit": [unit] if unit else None}, **options)
    calibrate(probe, data, train=options.get("train"), device=options.get("device", "cpu"))
    return probe


def calibrate(probe: VoxelFMProbe, data: TaskData, *, train: np.ndarray | None = None, device: str = "cpu") -> None:
    """Gives a fitted probe the baseline hazard of its training rows.

    Args:
        probe: Its configuration is filled in.
        data: From `read`.
        train: Training rows in place of the whole training split.
        device: Where to compute.
    """
    train = training_rows(data, train)
    known = train[np.isfinite(data.targets[train, 0])]
    risks = predict(probe, data, known, device=device)[:, 0]
    times, events = data.targets[known].T
    probe.config.baseline_times, probe.config.baseline_hazard = baseline_hazard(times, events, risks)


def predict(probe: VoxelFMProbe, data: TaskData, rows: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """Log risks (rows, 1); `probe.survival(risks, times)` turns them into curves."""
    found: Any = probe.answers(probe_outputs(probe, data, rows, device=device))
    return found.predictions.numpy()


def settle(
    fit: FittedProbe, logits: np.ndarray, held_logits: np.ndarray, held_labels: np.ndarray
) -> tuple[np.ndarray, float | None]:
    """Log risks as they are, without a threshold; arguments as in `classification.settle`."""
    return logits, None


def answer(probe: VoxelFMProbe, scan: EncodedScan) -> Answer:
    """The log risk, and the chance of no event until each time at which there was one in training."""
    risks: Any = probe.predict(cls=scan.cls, patches=scan.patches).predictions
    times = probe.config.baseline_times or []
    curve = probe.survival(risks, risks.new_tensor(times))[0].tolist() if times else []
    survival = dict(zip(times, curve, strict=True))
    values = by_name(probe, risks)
    unit = next((unit for unit in probe.config.target_unit or () if unit), "")
    return Answer(values=values, units=dict.fromkeys(values, LOG_RISK), survival=survival, time_unit=unit)


def evaluate(
    predictions: np.ndarray, data: TaskData, rows: np.ndarray, *, replicates: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """One report, named after the event column.

    Args:
        predictions: (rows, 1) log risks.
        data: The task data.
        rows: The rows they belong to.
        replicates: Bootstrap replicates.
        seed: Of the bootstrap.
    """
    times, events = data.targets[rows].T
    report = metric_report(
        survival.measures(horizons=data.options["horizons"]),
        times,
        events,
        predictions[:, 0],
        subgroups=data.levels(rows),
        patients=data.groups[rows],
        replicates=replicates,
        seed=seed,
    )
    return {data.names[0]: report}


def counts(data: TaskData, rows: np.ndarray) -> dict[str, str]:
    """How many of some rows have the event."""
    return {f"{data.names[0]}: events": str(int(np.nansum(data.targets[rows, 1])))}


def columns(predictions: np.ndarray, data: TaskData, rows: np.ndarray, *, probe: VoxelFMProbe) -> list[dict[str, Any]]:
    """time, event, prediction (log risk)."""
    return [target_columns(data, 0, rows, predictions[:, 0])]


def target_columns(
    data: TaskData, number: int, rows: np.ndarray, predictions: np.ndarray, threshold: None = None
) -> dict[str, Any]:
    """The columns of the one event."""
    return number_columns(data, number, rows, predictions, truth=("time", "event"))


def judge(tables: Tables, options: Mapping[str, Any]) -> Judged:
    """Measures of kept predictions.

    Args:
        tables: By seed.
        options: Of `read`: horizons.
    """
    truth = (kept_column(tables, "time"), kept_column(tables, "event"))
    measures = over_seeds([survival.measures(horizons=options.get("horizons", ()))] * len(tables))
    return Judged(truth, {"": kept_predictions(tables, "prediction")}, measures)


def main_metric(options: Mapping[str, Any]) -> str:
    """Harrell's C-index."""
    return "c_index"


def ceiling(data: TaskData) -> np.ndarray:
    """(n, 1) features that know the answer: the follow-up times."""
    return data.targets[:, :1]
