"""Regression: measured quantities, in their own unit, with a prediction interval from the validation errors."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from voxelfm_hf.eval.labels import LabelTable, number_target
from voxelfm_hf.eval.measures import regression_measures
from voxelfm_hf.eval.metric_reports import metric_report
from voxelfm_hf.eval.tasks.data import TaskData, open_data
from voxelfm_hf.eval.tasks.fitting import fit_columns, probe_outputs
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.calibration import interval_half_width
from voxelfm_hf.training.probe.settings import ProbeSettings

PATCH_HEADS = ("pooler",)


def read(
    store: FeatureStore,
    labels: LabelTable,
    *,
    targets: Sequence[str],
    head: str = "linear",
    units: Sequence[str] | None = None,
    **options,
) -> TaskData:
    """Labelled rows of one or more numeric columns.

    Args:
        store: The feature store.
        labels: The label table.
        targets: Numeric columns, empty where unknown.
        head: Decides whether CLS vectors or patch grids are loaded.
        units: Unit of each target, for the card.
        **options: Options of `open_data`.
    """
    data, labels = open_data(store, labels, task="regression", needs_patches=head in PATCH_HEADS, **options)
    columns = np.stack([number_target(labels, target) for target in targets], axis=1)
    return replace(data, targets=columns, names=list(targets), options={"head": head, "units": units})


def fit(
    data: TaskData,
    *,
    head: str | None = None,
    head_hidden_size: int | None = None,
    settings: ProbeSettings | None = None,
    train: np.ndarray | None = None,
    seed: int = 0,
    device: str = "cpu",
    interval_level: float = 0.9,
) -> VoxelFMProbe:
    """A probe whose targets are standardised by its training rows, with a conformal interval from the validation rows.

    Args:
        data: From `read`.
        head: linear, mlp or pooler; by default the one the data were read for.
        head_hidden_size: Hidden width of mlp and pooler.
        settings: How to fit.
        train: Training rows in place of the whole training split.
        seed: Of the fit.
        device: Where to compute.
        interval_level: Coverage of the prediction interval.
    """
    head = head or data.options["head"]
    units = data.options.get("units")
    probe, _ = fit_columns(
        data,
        head=head,
        head_hidden_size=head_hidden_size,
        settings=settings,
        train=train,
        seed=seed,
        device=device,
        together=head in PATCH_HEADS,
        problem_type="regression",
        target_unit=list(units) if units else None,
    )
    calibrate(probe, data, device=device, interval_level=interval_level)
    return probe


def calibrate(
    probe: VoxelFMProbe,
    data: TaskData,
    *,
    train: np.ndarray | None = None,
    device: str = "cpu",
    interval_level: float = 0.9,
) -> None:
    """Gives a fitted probe its prediction interval from the validation rows.

    Args:
        probe: Its configuration is filled in.
        data: From `read`.
        train: Not looked at.
        device: Where to compute.
        interval_level: Coverage of the prediction interval.
    """
    rows = data.rows("val")
    errors = predict(probe, data, rows, device=device) - data.targets[rows]
    widths = [interval_half_width(errors[:, i], level=interval_level) for i in range(len(data.names))]
    known = [width for width in widths if width is not None]
    if len(known) == len(widths):
        probe.config.interval_half_width, probe.config.interval_level = known, interval_level
    else:
        fitted = probe.config.fit or {}
        notes = [*fitted.get("notes", []), "too few validation rows for a prediction interval"]
        probe.config.fit = {**fitted, "notes": notes}


def predict(probe: VoxelFMProbe, data: TaskData, rows: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """Predictions (rows, targets) in the unit of the targets."""
    outputs = probe_outputs(probe, data, rows, device=device).numpy()
    return outputs * np.array(probe.config.target_scale) + np.array(probe.config.target_mean)


def evaluate(
    predictions: np.ndarray, data: TaskData, rows: np.ndarray, *, replicates: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """A report for each target.

    Args:
        predictions: (rows, targets) in the unit of the targets.
        data: The task data.
        rows: The rows they belong to.
        replicates: Bootstrap replicates.
        seed: Of the bootstrap.
    """
    settings = {"patients": data.groups[rows], "replicates": replicates, "seed": seed}
    subgroups = {column: [levels[row] for row in rows] for column, levels in data.subgroups.items()}
    return {
        name: metric_report(
            regression_measures(), data.targets[rows, i], predictions[:, i], subgroups=subgroups, **settings
        )
        for i, name in enumerate(data.names)
    }
