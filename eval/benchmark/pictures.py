"""Pictures of scans from a finished benchmark: nearest neighbours, predicted label maps and points over the scan."""

import numpy as np

from voxelfm_hf.eval.benchmark.figures import FIRST_SEED, FOLDER
from voxelfm_hf.eval.benchmark.finished import FinishedBenchmark
from voxelfm_hf.eval.benchmark.folder import label_map_path, slug
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.eval.plots.overlays import save_localization_overlay, save_segmentation_overlay
from voxelfm_hf.eval.plots.retrieval_sheet import Shown, save_retrieval_sheet
from voxelfm_hf.eval.tasks.segmentation import MASK_COLUMNS, read_mask
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import VoxelFMError

QUERIES, NEIGHBOURS = 3, 5


def draw_pictures(benchmark: FinishedBenchmark, task: str, data: BenchmarkData) -> dict[str, str]:
    """The picture that suits a task's family; none where it has none or its files are gone.

    Args:
        benchmark: The benchmark.
        task: Name of the task.
        data: Its data set.

    Returns:
        Path below the folder -> caption.
    """
    draw = {"retrieval": _sheet, "segmentation": _maps, "localization": _points}.get(benchmark.families()[task])
    encoders = benchmark.encoders(task)
    if draw is None or not encoders:
        return {}
    try:
        return draw(benchmark, task, encoders[0], data)
    except VoxelFMError:
        return {}  # a scan that has gone since; its scores are kept


def _sheet(benchmark: FinishedBenchmark, task: str, encoder: str, data: BenchmarkData) -> dict[str, str]:
    table = benchmark.predictions(encoder, task)
    if table is None or "neighbours" not in table.column_names:
        return {}
    target = table["target"][0].as_py()
    rows = [row for row in table.select(["id", "target", "neighbours"]).to_pylist() if row["target"] == target]
    positive = dict(
        zip(data.labels.ids, [str(v) in ("1", "1.0", "True") for v in data.labels.column(target)], strict=True)
    )
    chosen = rows[:: max(1, len(rows) // QUERIES)][:QUERIES]

    def shown(identifier: str, match: bool | None) -> Shown:
        volume, centre, edge = _scan(data, identifier)
        label = target if positive.get(identifier) else f"not {target}"
        return Shown(volume, label.replace("_", " "), match, centre, edge)

    lines = [
        (shown(row["id"], None), [shown(n, positive.get(n, False)) for n in row["neighbours"][:NEIGHBOURS]])
        for row in chosen
    ]
    name = f"{FOLDER}/neighbours-{slug(task)}.png"
    save_retrieval_sheet(benchmark.folder / name, lines, heading=f"{target}: nearest by {encoder}")
    return {name: f"Test rows with the finding {target} and their nearest neighbours of other patients, by {encoder}."}


def _maps(benchmark: FinishedBenchmark, task: str, encoder: str, data: BenchmarkData) -> dict[str, str]:
    found = benchmark.by_target(encoder, task).get(MACRO)
    column = data.labels.first_of(MASK_COLUMNS)
    if found is None or column is None:
        return {}
    identifier = _middle(found["id"], found["dice"].astype(float))
    path = label_map_path(benchmark.folder, encoder, task, identifier)
    mask_file = data.folder / str(data.labels.column(column)[data.labels.ids.index(identifier)])
    if not path.is_file():
        return {}
    volume, _, _ = _scan(data, identifier)
    reference, predicted = (read_mask(file, num_classes=len(data.classes)) for file in (mask_file, path))
    if reference.hu.shape != volume.hu.shape or not np.allclose(reference.affine, volume.affine, atol=1e-2):
        return {}
    names = {number: name for number, name in enumerate(data.classes) if number}
    name = f"{FOLDER}/maps-{slug(task)}.png"
    save_segmentation_overlay(
        benchmark.folder / name, volume, reference.hu, predicted.hu, names=names, heading=f"{task}, {encoder}"
    )
    return {name: f"The test scan of median macro Dice: reference above, {encoder} below, {FIRST_SEED}."}


def _points(benchmark: FinishedBenchmark, task: str, encoder: str, data: BenchmarkData) -> dict[str, str]:
    table = benchmark.predictions(encoder, task)
    if table is None or "error_mm" not in table.column_names:
        return {}
    rows = table.select(["id", "truth", "prediction", "error_mm"]).to_pylist()
    identifier = _middle(np.array([row["id"] for row in rows]), np.array([row["error_mm"] for row in rows], float))
    row = next(row for row in rows if row["id"] == identifier)
    volume, _, _ = _scan(data, identifier)
    name = f"{FOLDER}/point-{slug(task)}.png"
    save_localization_overlay(
        benchmark.folder / name, volume, row["truth"][:3], row["prediction"][:3], heading=f"{task}, {encoder}"
    )
    return {name: f"The test row of median error, {encoder}, {FIRST_SEED}."}


def _middle(ids: np.ndarray, values: np.ndarray) -> str:
    """The id of the median value."""
    known = np.flatnonzero(np.isfinite(values))
    return str(ids[known[np.argsort(values[known], kind="stable")[len(known) // 2]]])


def _scan(data: BenchmarkData, identifier: str) -> tuple[Volume, tuple[float, ...] | None, float | None]:
    """The scan of a row, and centre and edge of its region where it is one."""
    for task in data.tasks:
        if identifier not in task.identifiers:
            continue
        region = next((r for r in task.regions if r.identifier == identifier), None)
        volume = read_volume(task.scan.path)
        return volume, (region.centre_lps if region else None), (region.edge_mm if region else None)
    raise VoxelFMError(f"{identifier} is no scan of the data set")
