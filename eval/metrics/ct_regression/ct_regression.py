"""`evaluate.load` of the metrics of a measured quantity."""

import numpy as np

from voxelfm_hf.eval.metrics import continuous, loadable
from voxelfm_hf.eval.metrics.scoring import metric_report


class CTRegression(loadable.LoadableMetric):
    """Metrics of a measured quantity: MAE, MSE, R2, Spearman."""

    arguments = {
        "predictions": "n values in the unit of the target.",
        "references": "n targets; NaN where missing.",
    }

    def _compute(self, predictions, references, **settings) -> dict:
        return metric_report(continuous.measures(), np.asarray(references), np.asarray(predictions), **settings)
