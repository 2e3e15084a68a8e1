"""Errors of predicted points."""

import numpy as np

from voxelfm_hf.eval.metrics.measure import Measure, by_name, mean_measure


def measures() -> dict[str, Measure]:
    """Measures of one error a row."""
    return by_name(
        mean_measure(name, title, higher_is_better=False)
        for name, title in (
            ("error_mm", "mean error (mm)"),
            ("error_normalised", "mean error (share of the field of view)"),
            ("mean_position_error_mm", "mean error of a constant answer (mm)"),
        )
    )


def point_errors_mm(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Euclidean distance of each predicted point to its target.

    Args:
        targets: (n, 3) or (n, points, 3) in mm; NaN where a point is not annotated.
        predictions: The same shape.

    Returns:
        (n,) mm, the mean over the annotated points of a row; NaN where a row has none.
    """
    return _mean_distance(targets, predictions, np.ones(3))


def point_errors_normalised(targets: np.ndarray, predictions: np.ndarray, *, extent_mm: np.ndarray) -> np.ndarray:
    """Distance in coordinates that run from 0 to 1 along each axis of the field of view.

    Args:
        targets: (n, 3) or (n, points, 3) in mm, axes z, y, x.
        predictions: The same shape.
        extent_mm: (3,) or (n, 3) field of view along z, y, x in mm.

    Returns:
        (n,) without unit; NaN where a row has no annotated point.
    """
    return _mean_distance(targets, predictions, np.asarray(extent_mm, dtype=float))


def _mean_distance(targets: np.ndarray, predictions: np.ndarray, scale: np.ndarray) -> np.ndarray:
    targets, predictions = np.asarray(targets, dtype=float), np.asarray(predictions, dtype=float)
    if targets.shape != predictions.shape or targets.shape[-1] != 3:
        shapes = f"{targets.shape} and {predictions.shape}"
        raise ValueError(f"points must be (n, 3) or (n, points, 3) on both sides, got {shapes}")
    if targets.ndim == 3 and scale.ndim == 2:
        scale = scale[:, None]
    distance = np.sqrt((((predictions - targets) / scale) ** 2).sum(-1))
    if distance.ndim == 1:
        return distance
    known = np.isfinite(distance)
    total = np.where(known, distance, 0).sum(-1)
    return np.divide(total, known.sum(-1), out=np.full(len(total), np.nan), where=known.any(-1))
