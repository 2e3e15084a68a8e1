"""One cell of a benchmark: an encoder, a task and a seed become a table of predictions on the test rows.

Columns of every table: id, patient, target, fraction, train_rows, note; seconds, peak_memory_mb, trainable_parameters
of a fine-tuning; beside them what `columns` of the task's file gives.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe, TaskRecipe
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.splits import training_subset
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.eval.tasks.grid import GridFit, fit_grid, has_grid
from voxelfm_hf.eval.tasks.kept import row_names
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes.errors import LabelError

# Changes the features of task data: the identity, or the ceiling and floor in their place.
Change = Callable[[TaskData], TaskData]
SaveMap = Callable[[str, np.ndarray], None]
# A probe, the data with the features it is for, and columns of what it took.
Fit = Callable[[TaskData, TaskRecipe, np.ndarray, int], tuple[VoxelFMProbe, TaskData, dict[str, Any]]]


def read_task(task: TaskRecipe, store: FeatureStore, data: BenchmarkData, labels: LabelTable) -> TaskData:
    """The task data of one encoder.

    Args:
        task: The task.
        store: Features of the encoder.
        data: The data set, for classes and mask paths.
        labels: Its rows that every encoder has.
    """
    known = inspect.signature(task.module.read).parameters
    given: dict[str, Any] = {"head": task.probe_head, "targets": task.targets, "name": task.title}
    if "folder" in known:  # a task of label maps
        given |= {"classes": list(data.classes), "folder": data.folder}
    options = {name: value for name, value in given.items() if name in known}
    return task.module.read(store, labels, **{"subgroup_columns": [], **options, **task.read})


def fit_cell(
    data: TaskData,
    task: TaskRecipe,
    recipe: BenchmarkRecipe,
    *,
    seed: int,
    change: Change = lambda data: data,
    save_map: SaveMap | None = None,
    fit: Fit | None = None,
) -> pa.Table:
    """Fits and predicts.

    Args:
        data: From `read_task`.
        task: The task.
        recipe: The benchmark.
        seed: Of subsets and fits.
        change: Applied to the data first; once a target where nothing is fitted.
        save_map: Takes the id and label map (on the mask's LPS+ grid) of each test scan of a segmentation.
        fit: Fits in place of the task's own probe on frozen features.

    Returns:
        Predictions, see the module.
    """
    if task.fits_nothing:
        # One target at a time: the ceiling's features are the answer to one.
        return _table(part for i in range(len(data.names)) for part in _compared(task, change(_narrowed(data, i))))
    data = change(data)
    fractions = recipe.fractions_of(task)
    if task.is_grid and fit is None:
        fits = fit_grid(data, head=task.probe_head, fractions=fractions, seeds=[seed], settings=task.probe_settings)
        return _table(_of_grid(task, data, fit) for fit in fits)
    parts = []
    for fraction in fractions:
        train = training_subset(data.rows("train"), data.groups, fraction=fraction, seed=seed)
        head = {"train_rows": len(train), "fraction": fraction}
        saved = save_map if fraction == fractions[-1] else None
        parts += [{**head, **part} for part in _fitted(data, task, train, seed, saved, fit)]
    return _table(parts)


def _fitted(
    data: TaskData, task: TaskRecipe, train: np.ndarray, seed: int, save_map: SaveMap | None, fit: Fit | None
) -> list[dict[str, Any]]:
    """Column sets of one fit through the task's own `fit` and `predict`, or another fit."""
    test = data.rows("test")
    cost: dict[str, Any] = {}
    try:
        if fit is None:
            probe = task.module.fit(data, head=task.probe_head, settings=task.probe_settings, train=train, seed=seed)
        else:
            probe, data, cost = fit(data, task, train, seed)
    except LabelError as error:
        if len(train) == len(data.rows("train")):
            raise
        return [_unfit(data, test, str(error))]
    predictions = task.module.predict(probe, data, test)
    if data.maps is not None and save_map is not None:
        for row, label_map in zip(test, predictions, strict=True):
            save_map(data.ids[row], label_map)
    parts = task.module.columns(predictions, data, test, probe=probe, **task.evaluate)
    return [{**part, **cost, **_labelled(task, data, number, train)} for number, part in enumerate(parts)]


def _labelled(task: TaskRecipe, data: TaskData, number: int, train: np.ndarray) -> dict[str, int]:
    """How many training rows have a label of one target, for tasks with a label of each."""
    if not has_grid(task.module):
        return {}
    return {"train_rows": int(np.isfinite(data.column(number)[train, 0]).sum())}


def _of_grid(task: TaskRecipe, data: TaskData, fit: GridFit) -> dict[str, Any]:
    number = data.names.index(fit.target)
    head = {"fraction": fit.fraction, "train_rows": fit.train_rows, "note": fit.note}
    return {**head, **task.module.target_columns(data, number, fit.rows, fit.predictions, fit.threshold)}


def _unfit(data: TaskData, test: np.ndarray, note: str) -> dict[str, Any]:
    """An empty row that says why there is no fit."""
    return {**row_names(data, test[:1]), "target": data.options.get("column", data.names[0]), "note": note}


def _narrowed(data: TaskData, number: int) -> TaskData:
    """Only one of the targets."""
    return replace(data, targets=data.column(number), names=[data.names[number]])


def _compared(task: TaskRecipe, data: TaskData) -> list[dict[str, Any]]:
    """Columns of a task that fits nothing."""
    test = data.rows("test")
    found = task.module.columns(task.module.predict(None, data, test), data, test)
    return [{**part, "fraction": 1.0, "train_rows": 0} for part in found]


def _table(parts: Iterable[dict[str, Any]]) -> pa.Table:
    """Column sets as one table; single values are repeated."""
    tables = []
    for part in parts:
        count = len(part["id"])
        columns: dict[str, Any] = {"note": "", **part}
        tables.append(pa.table({name: _column(value, count) for name, value in columns.items()}))
    return (
        pa.concat_tables(tables, promote_options="default") if tables else pa.table({"id": pa.array([], pa.string())})
    )


def _column(value: Any, count: int) -> Any:
    if isinstance(value, (str, int, float, np.number)):
        return [value] * count
    return value
