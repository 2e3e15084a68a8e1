"""From a feature store and a label table to a released probe: fit, calibrate, evaluate once on test, save."""

import os
import platform
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.probes.card import ProbeFacts, write_probe_card, write_retrieval_card
from voxelfm_hf.eval.probes.plots import save_probe_plots
from voxelfm_hf.eval.result_files import write_csv, write_json
from voxelfm_hf.eval.statistics.estimates import forget_patients
from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.files import written_folder
from voxelfm_hf.hub import without_bars
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.progress import Progress, unwatched
from voxelfm_hf.store import FeatureStore


def fit_and_evaluate(
    store: FeatureStore,
    labels: LabelTable,
    *,
    task: str,
    read: Mapping[str, Any],
    fit: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    progress: Progress = unwatched,
) -> tuple[VoxelFMProbe | None, dict[str, dict], TaskData, Any]:
    """Fits a probe and scores it on the test rows, which nothing before has looked at.

    Args:
        store: The feature store.
        labels: The label table.
        task: Name of the task.
        read: Options of the task's `read`: targets and so on.
        fit: Options of its `fit`: head, settings, seed...
        evaluate: Options of its `evaluate`: replicates, seed...
        progress: Told how far reading, fitting and scoring are.

    Returns:
        The probe with its metrics in the config (None for retrieval), the reports by target, the data, the test
        predictions.
    """
    module = load_task(task)
    progress("reading", 0, 1)
    data = module.read(store, labels, **read)
    progress("reading", 1, 1)
    started = time.perf_counter()
    probe = module.fit(data, **{"on_epoch": partial(progress, "fitting"), **(fit or {})})
    progress("scores", 0, 1)
    test = data.rows("test")
    predictions = module.predict(probe, data, test)
    seconds = time.perf_counter() - started
    if probe is None:
        reports = _evaluated(predictions, data, test, **(evaluate or {}))
    else:
        probe.config.fit = {**(probe.config.fit or {}), "seconds": round(seconds, 1), "machine": machine()}
        reports = score_predictions(predictions, probe, data, test, **(evaluate or {}))
    progress("scores", 1, 1)
    return probe, reports, data, predictions


def score_predictions(
    predictions: Any, probe: VoxelFMProbe, data: TaskData, rows: np.ndarray, **options: Any
) -> dict[str, dict]:
    """The reports of a task's `evaluate` by target, at the probe's own thresholds and kept in its config.

    Args:
        predictions: Of the rows, from the task's `predict`.
        probe: Its config gets the metrics.
        data: The task data.
        rows: Which rows.
        **options: Of the task's `evaluate`.
    """
    if probe.config.threshold is not None:
        options.setdefault("thresholds", probe.config.threshold)
    reports = _evaluated(predictions, data, rows, **options)
    probe.config.metrics = {
        f"{target}/{name}": estimate
        for target, report in reports.items()
        for name, estimate in report["estimates"].items()
    }
    return reports


def _evaluated(predictions: Any, data: TaskData, rows: np.ndarray, **options: Any) -> dict[str, dict]:
    """The task's reports, without a number of patients where the label table does not tell them apart."""
    reports: dict[str, dict] = load_task(data.task).evaluate(predictions, data, rows, **options)
    if data.patient_column is None:
        for report in reports.values():
            forget_patients([*report["estimates"].values(), *report.get("subgroups", ())])
    return reports


def machine(device: torch.device | None = None) -> str:
    """What a fit ran on, in words for its card; with the name of a GPU where the device is one."""
    cores = f"{os.cpu_count()} cores of {platform.machine()}"
    on_gpu = device is not None and device.type == "cuda"
    return f"{torch.cuda.get_device_name(device)} and {cores}" if on_gpu else cores


def save_probe(
    folder: str | Path,
    probe: VoxelFMProbe,
    reports: Mapping[str, dict],
    data: TaskData,
    predictions: Any,
    *,
    facts: ProbeFacts | None = None,
) -> None:
    """Writes a probe that is ready to share: weights, config.json, the card with its figures, results.json.

    Where a scan has a row of numbers there is a predictions.csv too, which stays private: it names the scans.

    Args:
        folder: New or empty.
        probe: The probe.
        reports: From the task's `evaluate`.
        data: The task data.
        predictions: Of the test rows.
        facts: What the card should say of data, licence and command.
    """
    with written_folder(folder) as temporary:
        with without_bars():
            probe.save_pretrained(temporary)
        pictures = save_probe_plots(temporary, probe, data, predictions)
        card = write_probe_card(probe, reports, data, pictures=pictures, facts=facts)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        write_json(temporary / "results.json", reports)
        if isinstance(predictions, np.ndarray):
            flat = predictions.reshape(len(predictions), -1)
            names = data.names if len(data.names) == flat.shape[1] else range(flat.shape[1])
            fields = [f"predicted_{name}" for name in names]
            rows = [
                {"id": data.ids[row], **dict(zip(fields, (f"{value:.6g}" for value in values), strict=True))}
                for row, values in zip(data.rows("test"), flat, strict=True)
            ]
            write_csv(temporary / "predictions.csv", rows, fields=("id", *fields))


def save_retrieval(
    folder: str | Path, reports: Mapping[str, dict], data: TaskData, *, facts: ProbeFacts | None = None
) -> None:
    """Writes card and results.json of a retrieval, which has no weights; arguments as in `save_probe`."""
    with written_folder(folder) as temporary:
        (temporary / "README.md").write_text(write_retrieval_card(reports, data, facts=facts), encoding="utf-8")
        write_json(temporary / "results.json", reports)
