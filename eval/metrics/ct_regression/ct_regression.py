"""Metrics of a measured quantity: MAE, MSE, R2, Spearman."""

import datasets
import evaluate
import numpy as np

from voxelfm_hf.eval.measures import regression_measures
from voxelfm_hf.eval.metric_reports import metric_report

INPUTS = """
Args:
    predictions: n values in the unit of the target.
    references: n targets; NaN where missing.
    patients: n identifiers; the bootstrap draws patients. Without them every row is its own patient.
    subgroups: Column name -> n levels; every metric is repeated within each level.
    replicates: Bootstrap replicates of the 95 % intervals; 0, the default, gives no interval.
    seed: Seed of the bootstrap.

Returns:
    The value of every metric by name, NaN where it is not defined; "estimates" with value, low, high, n and a note for
    each; "subgroups" when asked for.
"""


class CTRegression(evaluate.Metric):
    """Metrics of a measured quantity: MAE, MSE, R2, Spearman."""

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
        patients=None,
        subgroups=None,
        replicates=0,
        seed=0,
    ) -> dict:
        measures = regression_measures()
        arrays = (np.asarray(references), np.asarray(predictions))
        return metric_report(
            measures, *arrays, patients=patients, subgroups=subgroups, replicates=replicates, seed=seed
        )
