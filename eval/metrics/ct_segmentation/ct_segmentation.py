"""`evaluate.load` of the overlap of label maps."""

import datasets
import numpy as np

from voxelfm_hf.eval.metrics import loadable
from voxelfm_hf.eval.metrics.scoring import per_row_report
from voxelfm_hf.eval.metrics.segmentation import segmentation_scores


class CTSegmentation(loadable.LoadableMetric):
    """Overlap of label maps: Dice and, when asked for, HD95 and surface Dice, of each class and their mean."""

    predictions = references = datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("int32"))))
    arguments = {
        "predictions": "n label maps (D, H, W) as nested lists or arrays; their sizes may differ from row to row.",
        "references": "n label maps; negative voxels are not annotated and left out.",
        "class_names": "Names of the classes 0, 1, ...; the first is the background and is not scored.",
        "spacing": "(z, y, x) in mm, one for all or one a row; needed for the surface metrics, left out without it.",
        "tolerance_mm": "Tolerance of the surface Dice.",
    }

    def _compute(self, predictions, references, class_names, spacing=None, tolerance_mm=2.0, **settings) -> dict:
        n = len(references)
        spacings = [None] * n if spacing is None else np.broadcast_to(np.asarray(spacing, dtype=float), (n, 3))
        rows = [
            segmentation_scores(_volume(p), _volume(r), class_names=class_names, spacing=s, tolerance_mm=tolerance_mm)
            for p, r, s in zip(predictions, references, spacings, strict=True)
        ]
        values = {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}
        return per_row_report(values, **settings)


def _volume(nested) -> np.ndarray:
    """Nested lists, or the object arrays that the cache gives back, as one (D, H, W) array."""
    return np.array([[np.asarray(line) for line in plane] for plane in nested])
