"""Overlap and surface metrics of label maps, a value a class; surfaces are measured in millimetres."""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from voxelfm_hf.eval.metrics.measure import Measure, mean_measure

# Name of a metric of one class -> what a reader calls it, and whether higher is better.
_OF_CLASSES = {"dice": ("Dice", True), "hd95": ("HD95 (mm)", False), "nsd": ("surface Dice", True)}
METRICS = tuple(_OF_CLASSES)  # the overlap, then those of surfaces


def measure(name: str) -> Measure | None:
    """The measure of one value a scan, by a name of `segmentation_scores`; None for other names."""
    metric, _, part = name.partition("_")
    if metric not in _OF_CLASSES:
        return None
    title, higher_is_better = _OF_CLASSES[metric]
    if part in ("macro", "voxel_weighted"):
        title = f"{part.replace('_', '-')} {title}"
    elif part:
        title = f"{title} of {part}"
    return mean_measure(name, title, higher_is_better=higher_is_better)


def segmentation_scores(
    prediction: np.ndarray,
    target: np.ndarray,
    *,
    class_names: Sequence[str],
    spacing: Sequence[float] | None = None,
    tolerance_mm: float = 2.0,
    annotated: Sequence[bool] | None = None,
) -> dict[str, float]:
    """Scores of one label map against another.

    Args:
        prediction: (D, H, W) classes.
        target: (D, H, W) classes; negative voxels are not annotated and left out.
        class_names: Names of the classes; the first one is the background and is not scored.
        spacing: (z, y, x) in mm; without it the surface metrics are left out.
        tolerance_mm: Tolerance of the surface Dice.
        annotated: For each class, whether this scan has it contoured; others are NaN. All are by default.

    Returns:
        "dice_NAME" ("hd95_NAME" in mm, "nsd_NAME") for each class, "dice_macro" (...) the mean over the defined
        ones, and "dice_voxel_weighted", weighted by the voxels of the class in the target; NaN where undefined.
    """
    names = list(class_names)
    known = np.ones(len(names), dtype=bool) if annotated is None else np.asarray(annotated, dtype=bool)
    prediction, target = np.asarray(prediction), np.asarray(target)
    prediction = np.where(target < 0, 0, prediction)
    columns = {"dice": np.where(known, dice_per_class(prediction, target, num_classes=len(names)), np.nan)[1:]}
    if spacing is not None:
        z, y, x = (float(s) for s in spacing)
        columns["hd95"], columns["nsd"] = np.full((2, len(names) - 1), np.nan)
        for index in np.flatnonzero(known[1:]):
            masks = (prediction == index + 1, target == index + 1)
            columns["hd95"][index] = hausdorff95(*masks, spacing=(z, y, x))
            columns["nsd"][index] = surface_dice(*masks, spacing=(z, y, x), tolerance_mm=tolerance_mm)
    scores: dict[str, float] = {}
    for metric, values in columns.items():
        defined = np.isfinite(values)
        scores[f"{metric}_macro"] = float(values[defined].mean()) if defined.any() else float("nan")
        scores |= {f"{metric}_{name}": float(value) for name, value in zip(names[1:], values, strict=True)}
    dice, voxels = columns["dice"], np.array([(target == c).sum() for c in range(1, len(names))])
    counted = np.isfinite(dice) & (voxels > 0)
    weighted = np.average(dice[counted], weights=voxels[counted]) if counted.any() else float("nan")
    return scores | {"dice_voxel_weighted": float(weighted)}


def dice_per_class(prediction: np.ndarray, target: np.ndarray, *, num_classes: int) -> np.ndarray:
    """Dice of each class: 2 |P and T| / (|P| + |T|).

    Args:
        prediction: Label map of any shape, classes 0 .. num_classes - 1.
        target: Label map of the same shape; negative voxels are left out (not annotated).
        num_classes: Number of classes, background included.

    Returns:
        (num_classes,) values; NaN for a class in neither map.
    """
    prediction, target = _same_shape(prediction, target)
    annotated = target >= 0
    counts = [np.bincount(m[annotated].ravel(), minlength=num_classes)[:num_classes] for m in (prediction, target)]
    both = np.bincount(target[annotated & (prediction == target)].ravel(), minlength=num_classes)[:num_classes]
    total = (counts[0] + counts[1]).astype(float)
    return np.divide(2.0 * both, total, out=np.full(num_classes, np.nan), where=total > 0)


def hausdorff95(prediction: np.ndarray, target: np.ndarray, *, spacing: tuple[float, float, float]) -> float:
    """The larger of the two directed 95th percentiles of surface distances, in mm.

    Args:
        prediction: (D, H, W) bool.
        target: (D, H, W) bool.
        spacing: (z, y, x) mm.

    Returns:
        Distance in mm; NaN when either mask is empty.
    """
    there, back = surface_distances(prediction, target, spacing=spacing)
    if not len(there) or not len(back):
        return float("nan")
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def surface_dice(
    prediction: np.ndarray, target: np.ndarray, *, spacing: tuple[float, float, float], tolerance_mm: float
) -> float:
    """Normalised surface Dice (NSD): share of both surfaces that lies within a tolerance of the other.

    Args:
        prediction: (D, H, W) bool.
        target: (D, H, W) bool.
        spacing: (z, y, x) mm.
        tolerance_mm: Tolerance in mm.

    Returns:
        A share in [0, 1]: 0 when one mask is empty, NaN when both are.
    """
    prediction, target = _same_shape(np.asarray(prediction) > 0, np.asarray(target) > 0)
    if not prediction.any() or not target.any():
        return 0.0 if prediction.any() or target.any() else float("nan")
    there, back = surface_distances(prediction, target, spacing=spacing)
    # Distances come as float32: the slack keeps a distance of exactly the tolerance inside.
    limit = tolerance_mm + 1e-4
    return float(((there <= limit).sum() + (back <= limit).sum()) / (len(there) + len(back)))


def surface_distances(
    prediction: np.ndarray, target: np.ndarray, *, spacing: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every surface voxel of one mask to the surface of the other, both ways.

    A surface voxel has a face neighbour outside the mask; the border of the volume counts as outside.

    Args:
        prediction: (D, H, W) bool.
        target: (D, H, W) bool.
        spacing: (z, y, x) mm.

    Returns:
        Distances in mm from prediction to target, and from target to prediction; empty when either mask is.
    """
    prediction, target = _same_shape(np.asarray(prediction) > 0, np.asarray(target) > 0)
    if prediction.ndim != 3:
        raise ValueError(f"masks must be (D, H, W), got {prediction.shape}")
    if not prediction.any() or not target.any():
        return np.zeros(0), np.zeros(0)
    box = _bounding_box(prediction | target)
    surfaces = [_surface(mask[box]) for mask in (prediction, target)]
    maps = [_distance_map(surface, spacing) for surface in surfaces]
    return maps[1][surfaces[0]], maps[0][surfaces[1]]


def _same_shape(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, target = np.asarray(prediction), np.asarray(target)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape} must have one shape")
    return prediction, target


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    sides = (np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
    return tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides)


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with at least one of six neighbours outside it."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(mask)
    for axis in range(3):
        for shift in (0, 2):
            window = tuple(slice(shift, shift + n) if a == axis else slice(1, 1 + n) for a, n in enumerate(mask.shape))
            inner &= padded[window]
    return mask & ~inner


def _distance_map(surface: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Euclidean distance in mm of every voxel to the nearest surface voxel, 0 on the surface."""
    image = sitk.GetImageFromArray(surface.astype(np.uint8))
    image.SetSpacing([float(s) for s in spacing[::-1]])
    signed = sitk.SignedMaurerDistanceMap(
        image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True, backgroundValue=0
    )
    return np.where(surface, 0.0, np.abs(sitk.GetArrayFromImage(signed)))
