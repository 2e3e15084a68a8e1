"""Metrics of written CT reports: F1 of 18 labelled findings, hallucinated findings, BLEU, ROUGE-L, METEOR."""

import datasets
import evaluate

from voxelfm_hf.eval.reports.scores import MACRO, label_pairs, score_reports

INPUTS = """
Args:
    predictions: n written reports.
    references: n reference reports.
    patients: n identifiers; the bootstrap draws patients. Without them every row is its own patient.
    replicates: Bootstrap replicates of the 95 % intervals.
    seed: Seed of the bootstrap.

Returns:
    f1 (a mean over the findings that at least five references state), hallucinated, missed, bleu, rouge_l and meteor;
    "findings" with the F1 of each; "estimates" with value, low, high, n and a note for each.
"""


class CTReport(evaluate.Metric):
    """Metrics of written CT reports: F1 of 18 labelled findings, hallucinated findings, BLEU, ROUGE-L, METEOR."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, patients=None, replicates=200, seed=0) -> dict:
        found = score_reports(label_pairs(predictions, references, patients=patients), replicates=replicates, seed=seed)
        report: dict = {metric: e.value for (target, metric), e in found.items() if target == MACRO}
        report["findings"] = {target: e.value for (target, _), e in found.items() if target != MACRO}
        names = {(t, m): m if t == MACRO else f"{m} {t}" for t, m in found}
        report["estimates"] = {names[key]: estimate.as_dict() for key, estimate in found.items()}
        return report
