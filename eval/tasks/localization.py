"""Localisation: points (a box is two) in the scan, predicted from the patch grid and judged in millimetres."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Unpack

import numpy as np
import torch

from voxelfm_hf.eval.labels import LabelTable, point_target
from voxelfm_hf.eval.metrics import localization
from voxelfm_hf.eval.metrics.scoring import per_row_report
from voxelfm_hf.eval.tasks.answer import Answer, EncodedScan
from voxelfm_hf.eval.tasks.data import TaskData, open_data
from voxelfm_hf.eval.tasks.fitting import FitOptions, fit_columns, probe_outputs, too_few
from voxelfm_hf.eval.tasks.kept import Judged, Tables, judge_row_values, lists, row_names
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.modeling.probe_heads_voxelfm import pooled_grid
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes.errors import LabelError

ANSWER = "points (z, y, x) from 0 to 1 across the patch grid"
HEADLINES = ("error_mm",)
HAS_MACRO = False
# Patches that a scan is localised on, as many as a published crop has; their attention grows with the square.
MAX_POSITIONS = 512
CACHED_GRIDS = 256


def read(
    store: FeatureStore,
    labels: LabelTable,
    *,
    targets: Sequence[str],
    name: str = "point",
    head: str = "position",
    max_positions: int | None = MAX_POSITIONS,
    **options,
) -> TaskData:
    """Labelled rows with points.

    Args:
        store: The feature store, with patches.
        labels: The label table.
        targets: Columns x, y, z of each point in LPS millimetres, point after point.
        name: Of what is located, for the card.
        head: "position".
        max_positions: Patches of a scan; larger grids are averaged down to so many.
        **options: Options of `open_data`.
    """
    data, labels = open_data(store, labels, task="localization", head=head, **options)
    points = point_target(labels, targets)
    normalised = np.stack([to_normalised(p, a, g) for p, a, g in zip(points, data.affines, data.grids, strict=True)])
    outside = int(((normalised < 0) | (normalised > 1)).any(axis=(1, 2)).sum())
    if outside == np.isfinite(normalised).any(axis=(1, 2)).sum():
        raise LabelError(
            f"{labels.source}: every point lies outside its scan: give LPS millimetres (RAS has the signs of x and y "
            "the other way round)"
        )
    notes = data.notes
    if outside:
        notes += (f"{outside} scans have a point outside the part the model saw; they are kept",)
    targets_flat = normalised.reshape(len(points), -1)
    whole = data.features.patches

    @lru_cache(maxsize=CACHED_GRIDS)
    def pooled(row: int) -> np.ndarray:
        assert whole is not None
        return pooled_grid(torch.from_numpy(np.asarray(whole(row))), max_positions).numpy()

    return replace(
        data,
        features=replace(data.features, patches=pooled),
        targets=targets_flat,
        names=[name],
        notes=notes,
        options={**data.options, "points": points, "max_positions": max_positions},
    )


def why_unfit(targets: np.ndarray) -> str:
    """Why no probe can be fitted on training points (n, 3 points); empty if one can."""
    return too_few(targets)


def fit(data: TaskData, **options: Unpack[FitOptions]) -> VoxelFMProbe:
    """A position regressor on patch centres.

    Args:
        data: From `read`.
        **options: See `FitOptions`.
    """
    fields = {"num_points": data.targets.shape[1] // 3, "max_positions": data.options["max_positions"]}
    return fit_columns(data, fields=fields, **options)


def predict(probe: VoxelFMProbe, data: TaskData, rows: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """Points (rows, points, 3) in LPS millimetres (x, y, z)."""
    found: Any = probe.answers(probe_outputs(probe, data, rows, device=device))
    points = zip(found.predictions.numpy(), rows, strict=True)
    return np.array([to_lps(point, data.affines[row], data.grids[row]) for point, row in points])


def answer(probe: VoxelFMProbe, scan: EncodedScan) -> Answer:
    """The points in LPS millimetres."""
    patches = pooled_grid(scan.patches[0], probe.config.max_positions)[None]
    points: Any = probe.predict(patches=patches).predictions
    return Answer(points_lps=to_lps(points[0].cpu().numpy(), scan.patch_affine, np.array(scan.patches.shape[1:4])))


def evaluate(
    predictions: np.ndarray, data: TaskData, rows: np.ndarray, *, replicates: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """One report: mean error in mm and in coordinates from 0 to 1 across the grid, and that of a constant answer.

    The constant is the mean training position, the floor that a probe must beat.

    Args:
        predictions: (rows, points, 3) LPS millimetres.
        data: The task data.
        rows: The rows they belong to.
        replicates: Bootstrap replicates.
        seed: Of the bootstrap.
    """
    report = per_row_report(
        row_errors(predictions, data, rows),
        patients=data.groups[rows],
        subgroups=data.levels(rows),
        replicates=replicates,
        seed=seed,
    )
    return {data.names[0]: report}


def row_errors(predictions: np.ndarray, data: TaskData, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Errors (rows,) of the points and of a constant answer, by name; arguments as in `evaluate`."""
    points = data.options["points"]
    normalised = data.targets.reshape(len(points), -1, 3)
    found = np.array([to_normalised(p, data.affines[r], data.grids[r]) for p, r in zip(predictions, rows, strict=True)])
    usual = np.nanmean(normalised[data.rows("train")], axis=0)
    always = np.array([to_lps(usual, data.affines[r], data.grids[r]) for r in rows])
    return {
        "error_mm": localization.point_errors_mm(points[rows], predictions),
        "error_normalised": localization.point_errors_mm(normalised[rows], found),
        "mean_position_error_mm": localization.point_errors_mm(points[rows], always),
    }


def counts(data: TaskData, rows: np.ndarray) -> dict[str, str]:
    """How many of some rows have the point."""
    return {f"{data.names[0]} located": str(int(np.isfinite(data.targets[rows]).all(axis=1).sum()))}


def columns(predictions: np.ndarray, data: TaskData, rows: np.ndarray, *, probe: VoxelFMProbe) -> list[dict[str, Any]]:
    """truth, prediction (LPS mm x, y, z of each point), error_mm, error_normalised, mean_position_error_mm."""
    kept = {"truth": lists(data.options["points"][rows]), "prediction": lists(predictions)}
    return [{**row_names(data, rows), "target": data.names[0], **kept, **row_errors(predictions, data, rows)}]


def judge(tables: Tables, options: Mapping[str, Any]) -> Judged:
    """Measures of kept predictions by seed."""
    return judge_row_values(tables, localization.measures().values())


def main_metric(options: Mapping[str, Any]) -> str:
    """The distance in millimetres."""
    return "error_mm"


def to_normalised(points_lps: np.ndarray, patch_affine: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """LPS mm (..., 3) -> positions (z, y, x) along the axes of the patch grid, 0 and 1 at its outer faces."""
    inverse = np.linalg.inv(patch_affine)
    index = points_lps @ inverse[:3, :3].T + inverse[:3, 3]
    return (index + 0.5) / np.asarray(grid)


def to_lps(positions: np.ndarray, patch_affine: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The inverse of `to_normalised`."""
    index = positions * np.asarray(grid) - 0.5
    return index @ patch_affine[:3, :3].T + patch_affine[:3, 3]
