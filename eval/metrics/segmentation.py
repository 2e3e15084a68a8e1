"""Overlap and surface metrics of label maps, a value a class; surfaces are measured in millimetres."""

import numpy as np
import SimpleITK as sitk


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
