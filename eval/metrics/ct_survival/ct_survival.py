"""Metrics of a risk against censored times: Harrell's C-index and the AUROC at horizons (IPCW)."""

import datasets
import evaluate
import numpy as np

from voxelfm_hf.eval.measures import survival_measures
from voxelfm_hf.eval.metric_reports import metric_report

INPUTS = """
Args:
    predictions: n risks, higher means earlier.
    references: n pairs (time, event), event 0 or 1; NaN where missing.
    horizons: Times, in the unit of the references, at which a cumulative/dynamic AUROC is given.
    patients: n identifiers; the bootstrap draws patients. Without them every row is its own patient.
    subgroups: Column name -> n levels; every metric is repeated within each level.
    replicates: Bootstrap replicates of the 95 % intervals; 0, the default, gives no interval.
    seed: Seed of the bootstrap.

Returns:
    The value of every metric by name, NaN where it is not defined; "estimates" with value, low, high, n and a note for
    each; "subgroups" when asked for.
"""


class CTSurvival(evaluate.Metric):
    """Metrics of a risk against censored times: Harrell's C-index and the AUROC at horizons (IPCW)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float64"),
                    "references": datasets.Sequence(datasets.Value("float64"), length=2),
                }
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        horizons=(),
        patients=None,
        subgroups=None,
        replicates=0,
        seed=0,
    ) -> dict:
        measures = survival_measures(horizons=horizons)
        times, events = np.asarray(references, dtype=float).reshape(-1, 2).T
        arrays = (times, events, np.asarray(predictions))
        return metric_report(
            measures, *arrays, patients=patients, subgroups=subgroups, replicates=replicates, seed=seed
        )
