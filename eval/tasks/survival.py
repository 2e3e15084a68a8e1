"""Survival: time to an event with censoring, a Cox model on full risk sets."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from voxelfm_hf.eval.labels import LabelTable, survival_target
from voxelfm_hf.eval.measures import survival_measures
from voxelfm_hf.eval.metric_reports import metric_report
from voxelfm_hf.eval.tasks.data import TaskData, open_data
from voxelfm_hf.eval.tasks.fitting import fit_columns, probe_outputs
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.calibration import baseline_hazard
from voxelfm_hf.training.probe.settings import ProbeSettings
from voxelfm_hf.volumes.errors import LabelError

PATCH_HEADS = ("pooler",)


def read(
    store: FeatureStore,
    labels: LabelTable,
    *,
    time: str = "time",
    event: str = "event",
    unit: str | None = None,
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
        unit: Unit of the time, for the card.
        horizons: Times at which an AUROC is given, in that unit.
        head: Decides whether CLS vectors or patch grids are loaded.
        **options: Options of `open_data`.
    """
    data, labels = open_data(store, labels, task="survival", needs_patches=head in PATCH_HEADS, **options)
    target = survival_target(labels, time=time, event=event)
    if not (target[data.rows("train"), 1] == 1).any():
        raise LabelError(f"{labels.source}: no training row has an event in column {event}")
    return replace(
        data, targets=target, names=[event], options={"head": head, "unit": unit, "horizons": tuple(horizons)}
    )


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
    """A Cox probe with the baseline hazard of its training rows.

    Args:
        data: From `read`.
        head: linear, mlp or pooler; by default the one the data were read for.
        head_hidden_size: Hidden width of mlp and pooler.
        settings: How to fit.
        train: Training rows in place of the whole training split.
        seed: Of the fit.
        device: Where to compute.
    """
    train = data.rows("train") if train is None else np.asarray(train)
    unit = data.options.get("unit")
    probe, _ = fit_columns(
        data,
        head=head or data.options["head"],
        head_hidden_size=head_hidden_size,
        settings=settings,
        train=train,
        seed=seed,
        device=device,
        target_unit=[unit] if unit else None,
    )
    calibrate(probe, data, train=train, device=device)
    return probe


def calibrate(probe: VoxelFMProbe, data: TaskData, *, train: np.ndarray | None = None, device: str = "cpu") -> None:
    """Gives a fitted probe the baseline hazard of its training rows.

    Args:
        probe: Its configuration is filled in.
        data: From `read`.
        train: Training rows in place of the whole training split.
        device: Where to compute.
    """
    train = data.rows("train") if train is None else np.asarray(train)
    known = train[np.isfinite(data.targets[train, 0])]
    risks = predict(probe, data, known, device=device)[:, 0]
    times, events = data.targets[known].T
    probe.config.baseline_times, probe.config.baseline_hazard = baseline_hazard(times, events, risks)


def predict(probe: VoxelFMProbe, data: TaskData, rows: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """Log risks (rows, 1); `probe.survival(risks, times)` turns them into curves."""
    return probe_outputs(probe, data, rows, device=device).numpy()


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
    subgroups = {column: [levels[row] for row in rows] for column, levels in data.subgroups.items()}
    report = metric_report(
        survival_measures(horizons=data.options["horizons"]),
        times,
        events,
        predictions[:, 0],
        subgroups=subgroups,
        patients=data.groups[rows],
        replicates=replicates,
        seed=seed,
    )
    return {data.names[0]: report}
