"""Figures of a finished benchmark, drawn from its folder."""

from collections.abc import Mapping

import numpy as np

from voxelfm_hf.eval.benchmark.finished import FinishedBenchmark
from voxelfm_hf.eval.benchmark.folder import slug
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.eval.plots.agreement import Measured, save_agreement
from voxelfm_hf.eval.plots.dice_boxes import save_dice_boxes
from voxelfm_hf.eval.plots.error_curve import save_error_curve
from voxelfm_hf.eval.plots.forest import save_forest
from voxelfm_hf.eval.plots.kaplan_meier import save_kaplan_meier
from voxelfm_hf.eval.plots.label_efficiency import save_label_efficiency
from voxelfm_hf.eval.plots.reliability import save_reliability
from voxelfm_hf.eval.plots.roc import Scored, save_roc
from voxelfm_hf.eval.statistics.survival_curves import risk_groups

FOLDER = "plots"
# As many as there are looks; every score is in results.csv.
MAX_CURVES = 8
# Two have room for the intervals of their bins.
MAX_RELIABILITY = 2
FIRST_SEED = "the fits of the first seed"


def draw_task(benchmark: FinishedBenchmark, task: str) -> dict[str, str]:
    """Every figure of one task.

    Args:
        benchmark: The benchmark.
        task: Name of the task.

    Returns:
        Path below the folder -> caption, in the order of the card.
    """
    (benchmark.folder / FOLDER).mkdir(exist_ok=True)
    drawn: dict[str, str] = {}
    rows = [row for row in benchmark.main_rows(task) if row["value"] is not None]
    if rows:
        name = f"{FOLDER}/forest-{slug(task)}.png"
        save_forest(benchmark.folder / name, rows)
        drawn[name] = "Mean over seeds with 95 % intervals; ceiling: features that are the answer; floor: noise."
    curves = [row for row in benchmark.main_rows(task, whole=False) if row["kind"] != "reference"]
    if len({row["fraction"] for row in curves}) > 1:
        macro = [row for row in curves if row["target"] == MACRO]
        chosen = [{**row, "train": row["train_rows"]} for row in (macro or curves)]
        name = f"{FOLDER}/labels-{slug(task)}.png"
        save_label_efficiency(benchmark.folder / name, chosen)
        drawn[name] = "The score against the number of labelled training rows, with 95 % intervals."
    figure = _FIGURES.get(benchmark.families()[task])
    return drawn | (figure(benchmark, task) if figure else {})


def _classification(benchmark: FinishedBenchmark, task: str) -> dict[str, str]:
    targets: dict[str, dict[str, Scored]] = {}
    for encoder in benchmark.encoders(task)[:MAX_CURVES]:
        for target, columns in benchmark.by_target(encoder, task).items():
            if "truth" in columns and "prediction" in columns:
                scored = Scored(columns["truth"], columns["prediction"], columns["patient"])
                targets.setdefault(target, {})[encoder] = scored
    if not targets:
        return {}
    roc, reliability = (f"{FOLDER}/{what}-{slug(task)}.png" for what in ("roc", "reliability"))
    save_roc(benchmark.folder / roc, targets)
    few = {target: dict(list(found.items())[:MAX_RELIABILITY]) for target, found in targets.items()}
    save_reliability(benchmark.folder / reliability, few)
    return {
        roc: f"ROC curves of {FIRST_SEED}: AUROC with DeLong's 95 % interval by patient (in the tables: a bootstrap's "
        "over all seeds).",
        reliability: f"Reliability of {FIRST_SEED}, calibrated on the validation rows.",
    }


def _regression(benchmark: FinishedBenchmark, task: str) -> dict[str, str]:
    encoder = benchmark.encoders(task)[0]
    found = benchmark.by_target(encoder, task)
    targets = {name: Measured(c["truth"], c["prediction"]) for name, c in found.items() if "prediction" in c}
    if not targets:
        return {}
    name = f"{FOLDER}/agreement-{slug(task)}.png"
    save_agreement(benchmark.folder / name, targets)
    return {name: f"Predicted against measured values, {encoder}, {FIRST_SEED}."}


def _survival(benchmark: FinishedBenchmark, task: str) -> dict[str, str]:
    drawn = {}
    encoder = benchmark.encoders(task)[0]
    unit = benchmark.options(task).get("unit")
    for target, columns in benchmark.by_target(encoder, task).items():
        if "time" not in columns or "prediction" not in columns:
            continue
        groups = risk_groups(columns["prediction"].astype(float))
        name = f"{FOLDER}/survival-{slug(task)}-{slug(target)}.png"
        save_kaplan_meier(
            benchmark.folder / name,
            columns["time"],
            columns["event"],
            groups,
            unit=unit,
            heading=f"{target}, {encoder}",
        )
        drawn[name] = (
            f"Survival in thirds of the test rows by predicted risk, {encoder}, {FIRST_SEED}; the log-rank test takes "
            "rows for independent."
        )
    return drawn


def _localization(benchmark: FinishedBenchmark, task: str) -> dict[str, str]:
    errors: dict[str, np.ndarray] = {}
    floor: dict[str, np.ndarray] = {}
    for encoder in benchmark.encoders(task):
        for columns in benchmark.by_target(encoder, task).values():
            if "error_mm" in columns:
                errors[encoder] = columns["error_mm"].astype(float)
                floor = {"mean training position": columns["mean_position_error_mm"].astype(float)}
    if not errors:
        return {}
    name = f"{FOLDER}/errors-{slug(task)}.png"
    save_error_curve(benchmark.folder / name, {**errors, **floor}, heading=task)
    return {name: f"Share of the test rows within each distance, {FIRST_SEED}."}


def _segmentation(benchmark: FinishedBenchmark, task: str) -> dict[str, str]:
    scores: dict[str, Mapping[str, np.ndarray]] = {}
    for encoder in benchmark.encoders(task):
        found = benchmark.by_target(encoder, task)
        classes = {n: c["dice"].astype(float) for n, c in found.items() if "dice" in c and n != MACRO}
        if classes:
            scores[encoder] = classes
    if not scores:
        return {}
    name = f"{FOLDER}/dice-{slug(task)}.png"
    save_dice_boxes(benchmark.folder / name, scores)
    return {name: f"Dice of each test scan where the class is annotated, {FIRST_SEED}."}


_FIGURES = {
    "classification": _classification,
    "regression": _regression,
    "survival": _survival,
    "localization": _localization,
    "segmentation": _segmentation,
}
