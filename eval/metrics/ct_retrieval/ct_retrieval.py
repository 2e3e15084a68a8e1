"""`evaluate.load` of the metrics of ranked lists."""

import datasets
import numpy as np

from voxelfm_hf.eval.metrics import loadable
from voxelfm_hf.eval.metrics.retrieval import average_precision, recall_at_k
from voxelfm_hf.eval.metrics.scoring import per_row_report


class CTRetrieval(loadable.LoadableMetric):
    """Metrics of ranked lists: Recall@k and mAP, averaged over queries; ties count as a random order."""

    predictions = datasets.Sequence(loadable.NUMBER)
    references = datasets.Sequence(datasets.Value("int64"))
    arguments = {
        "predictions": "n lists of similarities, one list a query, of any length.",
        "references": "n lists of 0 or 1, the relevance of the same items.",
        "k": "Lengths at which recall is taken.",
    }

    def _compute(self, predictions, references, k=(1, 5, 10), **settings) -> dict:
        queries = [(np.asarray(s), np.asarray(r)) for s, r in zip(predictions, references, strict=True)]
        values = {f"recall_at_{size}": np.array([recall_at_k(s, r, k=size) for s, r in queries]) for size in k}
        values["map"] = np.array([average_precision(s, r) for s, r in queries])
        return per_row_report(values, **settings)
