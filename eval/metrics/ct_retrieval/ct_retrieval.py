"""Metrics of ranked lists: Recall@k and mAP, averaged over queries; ties count as a random order."""

import datasets
import evaluate
import numpy as np

from voxelfm_hf.eval.metric_reports import per_row_report
from voxelfm_hf.eval.metrics.retrieval import average_precision, recall_at_k

INPUTS = """
Args:
    predictions: n lists of similarities, one list a query, of any length.
    references: n lists of 0 or 1, the relevance of the same items.
    k: Lengths at which recall is taken.
    patients: n identifiers; the bootstrap draws patients. Without them every row is its own patient.
    subgroups: Column name -> n levels; every metric is repeated within each level.
    replicates: Bootstrap replicates of the 95 % intervals; 0, the default, gives no interval.
    seed: Seed of the bootstrap.

Returns:
    The mean of every metric by name, NaN where it is not defined; "estimates" with value, low, high, n and a note for
    each; "subgroups" when asked for.
"""


class CTRetrieval(evaluate.Metric):
    """Metrics of ranked lists: Recall@k and mAP, averaged over queries; ties count as a random order."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        k=(1, 5, 10),
        patients=None,
        subgroups=None,
        replicates=0,
        seed=0,
    ) -> dict:
        queries = [(np.asarray(s), np.asarray(r)) for s, r in zip(predictions, references, strict=True)]
        values = {f"recall_at_{size}": np.array([recall_at_k(s, r, k=size) for s, r in queries]) for size in k}
        values["map"] = np.array([average_precision(s, r) for s, r in queries])
        return per_row_report(
            values,
            patients=patients,
            subgroups=subgroups,
            replicates=replicates,
            seed=seed,
        )
