"""Regression: measured quantities, in their own unit, with a prediction interval from the validation errors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from voxelfm_hf.eval.labels import LabelTable, number_target
from voxelfm_hf.eval.metrics import continuous
from voxelfm_hf.eval.metrics.scoring import metric_report
from voxelfm_hf.eval.tasks.answer import Answer, EncodedScan, by_name, units_by_name
from voxelfm_hf.eval.tasks.data import TaskData, open_data
from voxelfm_hf.eval.tasks.fitting import FitOptions, fit_columns, probe_outputs, too_few
from voxelfm_hf.eval.tasks.kept import Judged, Tables, kept_column, kept_predictions, number_columns, over_seeds
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.calibration import interval_half_width
from voxelfm_hf.training.probe.settings import FittedProbe
from voxelfm_hf.volumes.errors import LabelError

ANSWER = "the targets in their units, `low` and `high` the prediction interval"
HEADLINES = ("mae",)
HAS_MACRO = True
# Coverage of the prediction interval.
INTERVAL_LEVEL = 0.9


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

    Raises:
        LabelError: units for fewer or more targets, or labels that do not fit.
    """
    if units and len(units) != len(targets):
        given = f"{', '.join(units)} for {', '.join(targets)}"
        raise LabelError(f"a regression has a unit for each target: got {given}; name one for each")
    data, labels = open_data(store, labels, task="regression", head=head, **options)
    values = np.stack([number_target(labels, target) for target in targets], axis=1)
    return replace(data, targets=values, names=list(targets), options={**data.options, "units": units})


def why_unfit(targets: np.ndarray) -> str:
    """Why no probe can be fitted on training targets (n, k); empty if one can."""
    return too_few(targets)


def fit(data: TaskData, **options: Unpack[FitOptions]) -> VoxelFMProbe:
    """A probe whose targets are standardised by its training rows, with a conformal interval from the validation rows.

    Args:
        data: From `read`.
        **options: See `FitOptions`.
    """
    units = data.options.get("units")
    fields = {"problem_type": "regression", "target_unit": list(units) if units else None}
    probe = fit_columns(data, fields=fields, **options)
    calibrate(probe, data, device=options.get("device", "cpu"))
    return probe


def calibrate(probe: VoxelFMProbe, data: TaskData, *, train: np.ndarray | None = None, device: str = "cpu") -> None:
    """Gives a fitted probe its prediction interval from the validation rows.

    Args:
        probe: Its configuration is filled in.
        data: From `read`.
        train: Not looked at.
        device: Where to compute.
    """
    rows = data.rows("val")
    errors = predict(probe, data, rows, device=device) - data.targets[rows]
    widths = [interval_half_width(errors[:, i], level=INTERVAL_LEVEL) for i in range(len(data.names))]
    known = [width for width in widths if width is not None]
    if len(known) == len(widths):
        probe.config.interval_half_width, probe.config.interval_level = known, INTERVAL_LEVEL
    else:
        fitted = probe.config.fit or {}
        notes = [*fitted.get("notes", []), "too few validation rows for a prediction interval"]
        probe.config.fit = {**fitted, "notes": notes}


def predict(probe: VoxelFMProbe, data: TaskData, rows: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """Predictions (rows, targets) in the unit of the targets."""
    found: Any = probe.answers(probe_outputs(probe, data, rows, device=device).double())
    return found.predictions.numpy()


def settle(
    fit: FittedProbe, logits: np.ndarray, held_logits: np.ndarray, held_labels: np.ndarray
) -> tuple[np.ndarray, float | None]:
    """Values in the unit of the target, without a threshold; arguments as in `classification.settle`."""
    return logits * np.array(fit.target_scale) + np.array(fit.target_mean), None


def answer(probe: VoxelFMProbe, scan: EncodedScan) -> Answer:
    """Each target in its unit, with its prediction interval."""
    found = probe.predict(cls=scan.cls, patches=scan.patches)
    low, high = by_name(probe, found.low), by_name(probe, found.high)
    intervals = {name: (low[name], high[name]) for name in low}
    return Answer(values=by_name(probe, found.predictions), intervals=intervals, units=units_by_name(probe))


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
    subgroups = data.levels(rows)
    return {
        name: metric_report(
            continuous.measures(), data.targets[rows, i], predictions[:, i], subgroups=subgroups, **settings
        )
        for i, name in enumerate(data.names)
    }


def counts(data: TaskData, rows: np.ndarray) -> dict[str, str]:
    """How many of some rows have each target, by heading."""
    return {f"{name} known": str(int(np.isfinite(data.targets[rows, i]).sum())) for i, name in enumerate(data.names)}


def columns(predictions: np.ndarray, data: TaskData, rows: np.ndarray, *, probe: VoxelFMProbe) -> list[dict[str, Any]]:
    """truth, prediction."""
    return [target_columns(data, number, rows, predictions[:, number]) for number in range(len(data.names))]


def target_columns(
    data: TaskData, number: int, rows: np.ndarray, predictions: np.ndarray, threshold: None = None
) -> dict[str, Any]:
    """The columns of one target."""
    return number_columns(data, number, rows, predictions)


def judge(tables: Tables, options: Mapping[str, Any]) -> Judged:
    """Measures of kept predictions by seed."""
    measures = over_seeds([continuous.measures()] * len(tables))
    return Judged((kept_column(tables, "truth"),), {"": kept_predictions(tables, "prediction")}, measures)


def main_metric(options: Mapping[str, Any]) -> str:
    """The share of the variance that is explained."""
    return "r2"


def ceiling(data: TaskData) -> np.ndarray:
    """(n, k) features that know the answer."""
    return data.targets
