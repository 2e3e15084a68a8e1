"""One cell of a benchmark: an encoder, a task and a seed become a table of predictions on the test rows.

Columns of every table: id, patient, target, fraction, train_rows, note; seconds, peak_memory_mb, trainable_parameters
of a fine-tuning; beside them by family

    classification  truth, prediction (probability), threshold; exclusive classes: truth, probabilities
    regression      truth, prediction
    survival        time, event, prediction (log risk)
    localization    truth, prediction (LPS mm x, y, z of each point), error_mm, error_normalised, mean_position_error_mm
    segmentation    one row a scan and class: dice, hd95 (mm), nsd; "macro" is the mean over the classes of a scan
    retrieval       one row a query: pairs_at_K (recall for every query as the positive, -1 where they may not meet),
                    map, pool, neighbours (ids, most similar first)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe, TaskRecipe
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.splits import training_subset
from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.eval.tasks.grid import GridFit, fit_grid
from voxelfm_hf.eval.tasks.localization import row_errors
from voxelfm_hf.eval.tasks.retrieval import query_values
from voxelfm_hf.eval.tasks.segmentation import row_scores
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes.errors import LabelError

RECALLS_AT = (1, 5, 10)
NEIGHBOURS_KEPT = 10
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
    options: dict[str, Any] = {"subgroup_columns": [], **task.read}
    if task.task in ("classification", "regression", "survival"):
        options["head"] = task.probe_head
    if task.task in ("classification", "regression", "retrieval", "localization"):
        options["targets"] = task.targets
    if task.task == "localization":
        options.setdefault("name", task.title)
    if task.task == "segmentation":
        options = {"classes": list(data.classes), "folder": data.folder, **options}
    return load_task(task.task).read(store, labels, **options)


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
        change: Applied to the data first; for retrieval once a target.
        save_map: Takes the id and label map (on the mask's LPS+ grid) of each test scan of a segmentation.
        fit: Fits in place of the task's own probe on frozen features.

    Returns:
        Predictions, see the module.
    """
    if task.task == "retrieval":
        return _table(part for i in range(len(data.names)) for part in _retrieved(change(_narrowed(data, i))))
    data = change(data)
    fractions = recipe.fractions_of(task)
    if task.is_grid and fit is None:
        fits = fit_grid(data, head=task.probe_head, fractions=fractions, seeds=[seed], settings=task.probe_settings)
        return _table(_of_grid(data, fit) for fit in fits)
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
    module, test = load_task(task.task), data.rows("test")
    cost: dict[str, Any] = {}
    try:
        if fit is None:
            probe = module.fit(data, head=task.probe_head, settings=task.probe_settings, train=train, seed=seed)
        else:
            probe, data, cost = fit(data, task, train, seed)
    except LabelError as error:
        if len(train) == len(data.rows("train")):
            raise
        return [_unfit(data, task, test, str(error))]
    predictions = module.predict(probe, data, test)
    parts = _column_sets(data, task, probe, predictions, save_map)
    return [{**part, **cost, **_labelled(data, number, train)} for number, part in enumerate(parts)]


def _labelled(data: TaskData, number: int, train: np.ndarray) -> dict[str, int]:
    """How many training rows have a label of one target, for tasks with a column of numbers each."""
    width = 2 if data.task == "survival" else 1
    if data.task not in ("classification", "regression", "survival"):
        return {}
    return {"train_rows": int(np.isfinite(data.targets[train, number * width]).sum())}


def _column_sets(
    data: TaskData, task: TaskRecipe, probe: VoxelFMProbe, predictions: Any, save_map: SaveMap | None
) -> list[dict[str, Any]]:
    """What a fit says about the test rows, by target."""
    test = data.rows("test")
    rows = {"id": [data.ids[row] for row in test], "patient": data.groups[test]}
    if task.task == "segmentation":
        for identifier, label_map in zip(rows["id"], predictions, strict=True):
            if save_map is not None:
                save_map(identifier, label_map)
        scores = row_scores(predictions, data, test, **task.evaluate)
        metrics = ("dice", "hd95", "nsd") if task.evaluate.get("surfaces", True) else ("dice",)
        return [
            {**rows, "target": name, **{metric: scores[f"{metric}_{name}"] for metric in metrics}}
            for name in (*data.names[1:], "macro")
        ]
    if task.task == "localization":
        points = data.options["points"][test]
        found = {"truth": _lists(points), "prediction": _lists(predictions), **row_errors(predictions, data, test)}
        return [{**rows, "target": data.names[0], **found}]
    if data.options.get("exclusive"):
        known = np.isfinite(data.targets[test, 0])
        truth = data.targets[test[known], 0].astype(int)
        parts = {name: np.asarray(values)[known] for name, values in rows.items()}
        return [{**parts, "target": task.targets[0], "truth": truth, "probabilities": _lists(predictions[known])}]
    thresholds = probe.config.threshold if task.task == "classification" else [None] * len(data.names)
    return [
        _scalar(data, number, test, predictions[:, number], threshold)
        for number, threshold in enumerate(thresholds or [None] * len(data.names))
    ]


def _of_grid(data: TaskData, fit: GridFit) -> dict[str, Any]:
    number = data.names.index(fit.target)
    head = {"fraction": fit.fraction, "train_rows": fit.train_rows, "note": fit.note}
    return {**head, **_scalar(data, number, fit.rows, fit.predictions, fit.threshold)}


def _scalar(
    data: TaskData, number: int, rows: np.ndarray, predictions: np.ndarray, threshold: float | None
) -> dict[str, Any]:
    """Columns of one target with one number a row; rows without a label are left out."""
    width = 2 if data.task == "survival" else 1
    truth = data.targets[rows, number * width : (number + 1) * width]
    known = np.isfinite(truth).all(axis=1)
    columns: dict[str, Any] = {
        "id": [data.ids[row] for row in rows[known]],
        "patient": data.groups[rows[known]],
        "target": data.names[number],
    }
    if data.task == "survival":
        columns |= {"time": truth[known, 0], "event": truth[known, 1]}
    else:
        columns["truth"] = truth[known, 0]
    columns["prediction"] = np.asarray(predictions, dtype=float)[known]
    if data.task == "classification":
        columns["threshold"] = np.nan if threshold is None else threshold
    return columns


def _unfit(data: TaskData, task: TaskRecipe, test: np.ndarray, note: str) -> dict[str, Any]:
    """An empty row that says why there is no fit."""
    target = task.targets[0] if data.options.get("exclusive") else data.names[0]
    return {"id": [data.ids[test[0]]], "patient": data.groups[test[:1]], "target": target, "note": note}


def _narrowed(data: TaskData, number: int) -> TaskData:
    """Only one of the targets."""
    return replace(data, targets=data.targets[:, number : number + 1], names=[data.names[number]])


def _retrieved(data: TaskData) -> list[dict[str, Any]]:
    """Columns of the queries of one finding."""
    test = data.rows("test")
    similarities = load_task("retrieval").predict(None, data, test)
    found = query_values(similarities, data, test, k=RECALLS_AT)
    if not len(found.queries):
        return []
    others = np.where(data.groups[test][:, None] == data.groups[test][None], -np.inf, similarities)
    nearest = np.argsort(-others, axis=1, kind="stable")[:, :NEIGHBOURS_KEPT]
    return [
        {
            "id": [data.ids[row] for row in test[found.queries]],
            "patient": data.groups[test[found.queries]],
            "target": data.names[0],
            "fraction": 1.0,
            "train_rows": 0,
            **{f"pairs_at_{k}": _lists(found.pairs[:, :, column]) for column, k in enumerate(RECALLS_AT)},
            "map": found.precisions,
            "pool": found.pools,
            "neighbours": [[data.ids[row] for row in test[nearest[query]]] for query in found.queries],
        }
    ]


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


def _lists(values: np.ndarray) -> Sequence[list[float]]:
    return np.asarray(values, dtype=float).reshape(len(values), -1).tolist()


def label_map_path(folder: Path, identifier: str) -> Path:
    """Where the predicted label map of a scan lies below the folder of its cell."""
    return folder / "maps" / f"{identifier.replace('/', '_')}.nii.gz"
