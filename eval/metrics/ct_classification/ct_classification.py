"""`evaluate.load` of the metrics of a yes/no finding."""

import numpy as np

from voxelfm_hf.eval.metrics import binary, loadable
from voxelfm_hf.eval.metrics.scoring import metric_report


class CTClassification(loadable.LoadableMetric):
    """Metrics of a yes/no finding: AUROC, AUPRC, F1, sensitivity at a specificity, balanced accuracy, Brier, ECE."""

    arguments = {
        "predictions": "n probabilities of the finding.",
        "references": "n labels, 0 or 1; NaN where the label is missing.",
        "threshold": "Probability from which F1 and balanced accuracy call the finding.",
        "specificity": "Specificity at which the sensitivity is taken.",
    }

    def _compute(self, predictions, references, threshold=0.5, specificity=0.9, **settings) -> dict:
        measures = binary.measures(threshold=threshold, specificity=specificity)
        return metric_report(measures, np.asarray(references), np.asarray(predictions), **settings)
