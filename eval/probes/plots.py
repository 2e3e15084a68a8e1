"""Figures of a probe's own test rows, one function a task family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.plots.agreement import Measured, save_agreement
from voxelfm_hf.eval.plots.dice_boxes import save_dice_boxes
from voxelfm_hf.eval.plots.error_curve import save_error_curve
from voxelfm_hf.eval.plots.kaplan_meier import save_kaplan_meier
from voxelfm_hf.eval.plots.reliability import save_reliability
from voxelfm_hf.eval.plots.roc import Scored, save_roc
from voxelfm_hf.eval.statistics.survival_curves import risk_groups
from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.eval.tasks.localization import row_errors
from voxelfm_hf.eval.tasks.segmentation import row_scores
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe

NAME = "probe"


def save_probe_plots(folder: Path, probe: VoxelFMProbe, data: TaskData, predictions: Any) -> dict[str, str]:
    """Draws what suits the task.

    Args:
        folder: Of the probe.
        probe: The probe.
        data: The task data.
        predictions: Of the test rows.

    Returns:
        File name -> caption, in the order of the card.
    """
    draw = _FIGURES.get(data.task)
    return draw(folder, probe, data, predictions) if draw and len(data.rows("test")) else {}


def _classification(folder: Path, probe: VoxelFMProbe, data: TaskData, predictions: np.ndarray) -> dict[str, str]:
    test = data.rows("test")
    labels, patients = data.targets[test], data.groups[test]
    if data.options["exclusive"]:
        known = np.isfinite(labels[:, 0])
        columns = [np.where(known, labels[:, 0] == number, np.nan) for number in range(len(data.names))]
    else:
        columns = list(labels.T)
    targets = {
        name: {NAME: Scored(column, predictions[:, number], patients)}
        for number, (name, column) in enumerate(zip(data.names, columns, strict=True))
    }
    save_roc(folder / "roc.png", targets)
    save_reliability(folder / "reliability.png", targets)
    against = " (each class against the others)" if data.options["exclusive"] else ""
    each, all_of = ("row", "rows") if data.patient_column is None else ("patient", "patients")
    return {
        "roc.png": f"ROC curves on the test rows{against}: AUROC with DeLong's 95 % interval by {each}, which may "
        f"differ a little from the bootstrap's in the table; the band is a pointwise bootstrap over {all_of}.",
        "reliability.png": f"Observed frequency against calibrated probability on the test rows{against}, with "
        "Wilson's 95 % intervals.",
    }


def _regression(folder: Path, probe: VoxelFMProbe, data: TaskData, predictions: np.ndarray) -> dict[str, str]:
    config, test = probe.config, data.rows("test")
    widths, units = config.interval_half_width, config.target_unit
    targets = {
        name: Measured(
            data.targets[test, i],
            predictions[:, i],
            widths[i] if widths else None,
            config.interval_level,
            units[i] if units else None,
        )
        for i, name in enumerate(data.names)
    }
    save_agreement(folder / "agreement.png", targets)
    return {"agreement.png": "Predicted against measured values on the test rows; the band is the prediction interval."}


def _survival(folder: Path, probe: VoxelFMProbe, data: TaskData, predictions: np.ndarray) -> dict[str, str]:
    train, test = data.rows("train"), data.rows("test")
    usual = load_task("survival").predict(probe, data, train)[:, 0]
    groups = risk_groups(predictions[:, 0], edges=np.quantile(usual, (1 / 3, 2 / 3)))
    times, events = data.targets[test].T
    if not np.isfinite(times).any():
        return {}
    save_kaplan_meier(
        folder / "survival.png", times, events, groups, unit=data.options.get("unit"), heading=data.names[0]
    )
    return {
        "survival.png": "Kaplan-Meier curves of the test rows in thirds of the training rows' risk, with 95 % bands; "
        "the log-rank test takes rows for independent."
    }


def _localization(folder: Path, probe: VoxelFMProbe, data: TaskData, predictions: np.ndarray) -> dict[str, str]:
    errors = row_errors(predictions, data, data.rows("test"))
    shown = {NAME: errors["error_mm"], "mean training position": errors["mean_position_error_mm"]}
    save_error_curve(folder / "errors.png", shown, heading=data.names[0])
    return {"errors.png": "Share of the test scans within each distance, beside always answering the mean position."}


def _segmentation(folder: Path, probe: VoxelFMProbe, data: TaskData, predictions: list[np.ndarray]) -> dict[str, str]:
    scores = row_scores(predictions, data, data.rows("test"), surfaces=False)
    save_dice_boxes(folder / "dice.png", {NAME: {name: scores[f"dice_{name}"] for name in data.names[1:]}})
    return {"dice.png": "Dice of each test scan where the class is annotated."}


_FIGURES: dict[str, Callable[[Path, VoxelFMProbe, TaskData, Any], dict[str, str]]] = {
    "classification": _classification,
    "regression": _regression,
    "survival": _survival,
    "localization": _localization,
    "segmentation": _segmentation,
}
