"""`evaluate.load` of the metrics of written CT reports."""

import datasets

from voxelfm_hf.eval.metrics import loadable
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.eval.reports.scores import label_pairs, score_reports


class CTReport(loadable.LoadableMetric):
    """Metrics of written CT reports: F1 of 18 labelled findings, hallucinated findings, BLEU, ROUGE-L, METEOR."""

    predictions = references = datasets.Value("string")
    arguments = {
        "predictions": "n written reports.",
        "references": "n reference reports.",
    }
    settings = {
        "patients": loadable.SETTINGS["patients"],
        "replicates": "Bootstrap replicates of the 95 % intervals.",
        "seed": loadable.SETTINGS["seed"],
    }
    answer = (
        "f1 (a mean over the findings that at least five references state), hallucinated, missed, bleu, rouge_l and "
        'meteor; "findings" with the F1 of each; "estimates" with value, low, high, n and a note for each.'
    )

    def _compute(self, predictions, references, patients=None, replicates=200, seed=0) -> dict:
        found = score_reports(label_pairs(predictions, references, patients=patients), replicates=replicates, seed=seed)
        report: dict = {metric: e.value for (target, metric), e in found.items() if target == MACRO}
        report["findings"] = {target: e.value for (target, _), e in found.items() if target != MACRO}
        names = {(t, m): m if t == MACRO else f"{m} {t}" for t, m in found}
        report["estimates"] = {names[key]: estimate.as_dict() for key, estimate in found.items()}
        return report
