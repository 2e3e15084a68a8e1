"""All overlap and surface metrics of one scan, a value for each class and their mean."""

from collections.abc import Sequence

import numpy as np

from voxelfm_hf.eval.metrics.segmentation import dice_per_class, hausdorff95, surface_dice


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
