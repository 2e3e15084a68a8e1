"""How good written reports are: F1 of the labelled findings, hallucinated findings, text scores, with intervals.

Findings are labelled in both texts by the rules of `labeller`: these F1 do not compare with those of another labeller.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelfm_hf.eval.labeller import FINDINGS, label_report
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.eval.metrics.text import bleu_counts, corpus_bleu, meteor, rouge_l, words
from voxelfm_hf.eval.statistics.bootstrap import bootstrap, paired_bootstrap
from voxelfm_hf.eval.statistics.estimates import Comparison, Estimate

# The same over the findings that a probe sees in the features.
VISIBLE = "visible"
# A finding in fewer reference reports is not scored by itself and not part of the macro mean.
FEWEST_POSITIVES = 5


@dataclass(frozen=True, eq=False)
class LabelledReports:
    """Written reports and their references, n pairs.

    Attributes:
        written, reference: The texts.
        stated, true: (n, 18) 0 or 1: findings that the written text and the reference state.
        patients: n identifiers, or None.
    """

    written: list[str]
    reference: list[str]
    stated: np.ndarray
    true: np.ndarray
    patients: list[str] | None = None

    @property
    def scored(self) -> list[int]:
        """The findings that enough references state."""
        return [i for i, count in enumerate(self.true.sum(0)) if count >= FEWEST_POSITIVES]

    def scored_among(self, findings: Collection[str]) -> list[int]:
        """Those of `scored` that are among some findings."""
        return [i for i in self.scored if FINDINGS[i] in findings]


def label_texts(texts: Sequence[str]) -> np.ndarray:
    """(n, 18) findings that texts state, in the order of `FINDINGS`."""
    return np.array([list(label_report(text).values()) for text in texts], dtype=int).reshape(len(texts), len(FINDINGS))


def label_pairs(
    written: Sequence[str], reference: Sequence[str], *, patients: Sequence[str] | None = None
) -> LabelledReports:
    """Labels both texts of every pair."""
    return LabelledReports(
        list(written),
        list(reference),
        label_texts(written),
        label_texts(reference),
        None if patients is None else list(patients),
    )


def macro_f1(true: np.ndarray, stated: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """Mean over findings of 2 TP / (2 TP + FP + FN); findings that neither text states in a draw are left out.

    Args:
        true, stated: (n, findings) 0 or 1.
        weights: (..., n).
    """
    hits = weights @ (true * stated)
    both = weights @ (true + stated)
    with np.errstate(invalid="ignore"):
        scores = np.where(both > 0, 2 * hits / both, np.nan)
    known = np.isfinite(scores)
    with np.errstate(invalid="ignore"):
        return np.where(known, scores, 0).sum(-1) / known.sum(-1)


def hallucinated_rate(true: np.ndarray, stated: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """Share of the stated findings that the reference does not state; NaN where nothing is stated."""
    false, said = weights @ (stated * (1 - true)).sum(1), weights @ stated.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(said > 0, false / said, np.nan)


def missed_rate(true: np.ndarray, stated: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """Share of the findings of the reference that are not stated."""
    return hallucinated_rate(stated, true, weights=weights)


def score_reports(
    reports: LabelledReports, *, visible: Collection[str] = (), replicates: int = 1000, seed: int = 0
) -> dict[tuple[str, str], Estimate]:
    """Every score of written reports.

    Args:
        reports: Labelled pairs.
        visible: Findings that a probe sees in the features, chosen on other scans.
        replicates: Bootstrap draws of patients.
        seed: Of the draws.

    Returns:
        (target, metric) -> estimate. Target macro: f1, hallucinated, missed, bleu, rouge_l, meteor; the findings that
        at least five references state: f1. Target visible, where findings are: f1 over those of them.
    """
    settings: dict[str, Any] = {"patients": reports.patients, "replicates": replicates, "seed": seed}
    settings["method"] = "percentile"
    scored = reports.scored
    found: dict[tuple[str, str], Estimate] = {}
    if scored:
        found[MACRO, "f1"] = bootstrap(macro_f1, reports.true[:, scored], reports.stated[:, scored], **settings)
    if seen := reports.scored_among(visible):
        found[VISIBLE, "f1"] = bootstrap(macro_f1, reports.true[:, seen], reports.stated[:, seen], **settings)
    for name, metric in (("hallucinated", hallucinated_rate), ("missed", missed_rate)):
        found[MACRO, name] = bootstrap(metric, reports.true, reports.stated, **settings)
    pairs = [(words(w), words(r)) for w, r in zip(reports.written, reports.reference, strict=True)]
    counts = np.array([bleu_counts(*pair) for pair in pairs])
    found[MACRO, "bleu"] = bootstrap(corpus_bleu, counts, **settings)
    for name, score in (("rouge_l", rouge_l), ("meteor", meteor)):
        found[MACRO, name] = bootstrap(_mean, np.array([score(*pair) for pair in pairs]), **settings)
    for index in scored:
        columns = reports.true[:, [index]], reports.stated[:, [index]]
        found[FINDINGS[index], "f1"] = bootstrap(macro_f1, *columns, **settings)
    return found


def compare_reports(
    first: LabelledReports,
    second: LabelledReports,
    *,
    findings: Collection[str] = FINDINGS,
    replicates: int = 1000,
) -> Comparison:
    """The difference of the macro F1 (over some findings) of two sets of texts, under the same draws of patients."""
    scored = first.scored_among(findings)
    return paired_bootstrap(
        macro_f1,
        first.true[:, scored],
        first.stated[:, scored],
        second.stated[:, scored],
        patients=first.patients,
        replicates=replicates,
    )


def _mean(values: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(-1)
