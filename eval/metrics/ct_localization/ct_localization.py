"""`evaluate.load` of the errors of predicted points."""

import datasets
import numpy as np

from voxelfm_hf.eval.metrics import loadable
from voxelfm_hf.eval.metrics.localization import point_errors_mm, point_errors_normalised
from voxelfm_hf.eval.metrics.scoring import per_row_report


class CTLocalization(loadable.LoadableMetric):
    """Errors of predicted points: mean Euclidean distance in mm and in units of the field of view."""

    predictions = references = datasets.Sequence(loadable.NUMBER, length=3)
    arguments = {
        "predictions": "n points (z, y, x) in mm.",
        "references": "n points (z, y, x) in mm; NaN where not annotated.",
        "extent_mm": "Field of view along z, y, x in mm, one for all or one a row; without it there is no normalised "
        "error.",
    }

    def _compute(self, predictions, references, extent_mm=None, **settings) -> dict:
        targets, points = np.asarray(references, dtype=float), np.asarray(predictions, dtype=float)
        values = {"error_mm": point_errors_mm(targets, points)}
        if extent_mm is not None:
            values["error_normalised"] = point_errors_normalised(targets, points, extent_mm=extent_mm)
        return per_row_report(values, **settings)
