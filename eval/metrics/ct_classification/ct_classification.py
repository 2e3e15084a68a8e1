"""Metrics of a yes/no finding: AUROC, AUPRC, F1, sensitivity at a specificity, balanced accuracy, Brier, ECE."""

import datasets
import evaluate
import numpy as np

from voxelfm_hf.eval.measures import classification_measures
from voxelfm_hf.eval.metric_reports import metric_report

INPUTS = """
Args:
    predictions: n probabilities of the finding.
    references: n labels, 0 or 1; NaN where the label is missing.
    threshold: Probability from which F1 and balanced accuracy call the finding.
    specificity: Specificity at which the sensitivity is taken.
    patients: n identifiers; the bootstrap draws patients. Without them every row is its own patient.
    subgroups: Column name -> n levels; every metric is repeated within each level.
    replicates: Bootstrap replicates of the 95 % intervals; 0, the default, gives no interval.
    seed: Seed of the bootstrap.

Returns:
    The value of every metric by name, NaN where it is not defined; "estimates" with value, low, high, n and a note for
    each; "subgroups" when asked for.
"""


class CTClassification(evaluate.Metric):
    """Metrics of a yes/no finding: AUROC, AUPRC, F1, sensitivity at a specificity, balanced accuracy, Brier, ECE."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        threshold=0.5,
        specificity=0.9,
        patients=None,
        subgroups=None,
        replicates=0,
        seed=0,
    ) -> dict:
        measures = classification_measures(threshold=threshold, specificity=specificity)
        arrays = (np.asarray(references), np.asarray(predictions))
        return metric_report(
            measures, *arrays, patients=patients, subgroups=subgroups, replicates=replicates, seed=seed
        )
