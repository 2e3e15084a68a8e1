"""`evaluate.load` of the metrics of a risk against censored times."""

import datasets
import numpy as np

from voxelfm_hf.eval.metrics import loadable, survival
from voxelfm_hf.eval.metrics.scoring import metric_report


class CTSurvival(loadable.LoadableMetric):
    """Metrics of a risk against censored times: Harrell's C-index and the AUROC at horizons (IPCW)."""

    references = datasets.Sequence(loadable.NUMBER, length=2)
    arguments = {
        "predictions": "n risks, higher means earlier.",
        "references": "n pairs (time, event), event 0 or 1; NaN where missing.",
        "horizons": "Times, in the unit of the references, at which a cumulative/dynamic AUROC is given.",
    }

    def _compute(self, predictions, references, horizons=(), **settings) -> dict:
        times, events = np.asarray(references, dtype=float).reshape(-1, 2).T
        return metric_report(survival.measures(horizons=horizons), times, events, np.asarray(predictions), **settings)
