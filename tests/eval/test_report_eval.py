"""Scores of written reports against independent implementations, and the rows of the report benchmark."""

import importlib

import numpy as np
import pytest

from voxelfm_hf.eval.labeller import FINDINGS
from voxelfm_hf.eval.metrics.text import bleu_counts, corpus_bleu, meteor, rouge_l, words
from voxelfm_hf.eval.reports.scores import (
    MACRO,
    VISIBLE,
    compare_reports,
    hallucinated_rate,
    label_pairs,
    macro_f1,
    missed_rate,
    score_reports,
)

WORDS = ["small", "large", "left", "right", "pleural", "effusion", "emphysema", "nodule", "the", "lung", "no", "is"]


@pytest.fixture
def pairs() -> list[tuple[list[str], list[str]]]:
    """Written text that shares runs of words with its reference."""
    draws = np.random.default_rng(0)
    found = []
    for _ in range(40):
        reference = [WORDS[i] for i in draws.integers(0, len(WORDS), draws.integers(6, 15))]
        start, stop = sorted(draws.integers(0, len(reference), 2))
        written = [*reference[start:], *(WORDS[i] for i in draws.integers(0, len(WORDS), 3)), *reference[:stop]]
        found.append((written, reference))
    return found


def test_bleu_is_that_of_sacrebleu_and_nltk(pairs):
    sacrebleu = pytest.importorskip("sacrebleu")
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    counts = np.array([bleu_counts(*pair) for pair in pairs])
    mine = float(corpus_bleu(counts, weights=np.ones(len(pairs))))
    hypotheses, references = [" ".join(w) for w, _ in pairs], [" ".join(r) for _, r in pairs]
    theirs = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none", smooth_method="none")
    assert mine == pytest.approx(theirs.score / 100, abs=1e-9) and mine > 0
    assert mine == pytest.approx(nltk.corpus_bleu([[r] for _, r in pairs], [w for w, _ in pairs]), abs=1e-9)
    twice = float(corpus_bleu(counts, weights=np.array([2.0] + [1.0] * 39)))
    hypotheses, references = [hypotheses[0], *hypotheses], [references[0], *references]
    theirs = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none", smooth_method="none")
    assert twice == pytest.approx(theirs.score / 100, abs=1e-9)


def test_rouge_l_is_that_of_rouge_score(pairs):
    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge.RougeScorer(["rougeL"], use_stemmer=False)
    for written, reference in pairs:
        theirs = scorer.score(" ".join(reference), " ".join(written))["rougeL"].fmeasure
        assert rouge_l(written, reference) == pytest.approx(theirs)
    assert rouge_l([], ["a"]) == rouge_l(["a"], []) == rouge_l(["a"], ["b"]) == 0


def test_meteor_is_that_of_nltk_without_stems_and_synonyms(pairs):
    nltk = pytest.importorskip("nltk.translate.meteor_score")

    class NoStems:
        def stem(self, word):
            return word

    class NoSynonyms:
        def synsets(self, word):
            return []

    for written, reference in pairs:
        theirs = nltk.single_meteor_score(reference, written, stemmer=NoStems(), wordnet=NoSynonyms())
        assert meteor(written, reference) == pytest.approx(theirs)
    assert meteor([], ["a"]) == meteor(["b"], ["a"]) == 0


def test_words_ignore_case_and_punctuation():
    assert words("Lungs: A 12 mm nodule, ground-glass.") == ["lungs", "a", "12", "mm", "nodule", "ground", "glass"]
    assert corpus_bleu(np.zeros((1, 10)), weights=np.ones(1)) == 0


def test_finding_scores_are_those_of_scikit_learn():
    from sklearn.metrics import f1_score

    draws = np.random.default_rng(1)
    true, stated = draws.integers(0, 2, (2, 60, 4))
    assert macro_f1(true, stated, weights=np.ones(60)) == pytest.approx(f1_score(true, stated, average="macro"))
    weights = draws.integers(0, 3, 60).astype(float)
    theirs = f1_score(true.repeat(weights.astype(int), 0), stated.repeat(weights.astype(int), 0), average="macro")
    assert macro_f1(true, stated, weights=weights) == pytest.approx(theirs)
    false, said = (stated * (1 - true)).sum(), stated.sum()
    assert hallucinated_rate(true, stated, weights=np.ones(60)) == pytest.approx(false / said)
    assert missed_rate(true, stated, weights=np.ones(60)) == pytest.approx((true * (1 - stated)).sum() / true.sum())
    assert np.isnan(hallucinated_rate(true, np.zeros_like(true), weights=np.ones(60)))


REPORTS = [
    "Lungs: Small left pleural effusion.",
    "Lungs: Severe emphysema.",
    "Lungs: Emphysema and a pleural effusion.",
    "No abnormal findings.",
] * 5


def test_perfect_and_silent_reports_have_known_scores():
    perfect = score_reports(label_pairs(REPORTS, REPORTS), replicates=20)
    assert {metric: e.value for (t, metric), e in perfect.items() if t == MACRO} == {
        "f1": 1, "hallucinated": 0, "missed": 0, "bleu": 1, "rouge_l": 1, "meteor": pytest.approx(1, abs=0.05)
    }  # fmt: skip
    assert {t for t, _ in perfect if t != MACRO} == {"Pleural effusion", "Emphysema"}
    silent = score_reports(label_pairs(["No abnormal findings."] * 20, REPORTS), replicates=20)
    assert silent[MACRO, "f1"].value == 0 and silent[MACRO, "missed"].value == 1
    assert not silent[MACRO, "hallucinated"].defined


def test_macro_over_visible_findings_leaves_the_others_out():
    wrong = label_pairs([text.replace("mphysema", "mpty") for text in REPORTS], REPORTS)
    scores = score_reports(wrong, visible=["Emphysema", "Cardiomegaly"], replicates=20)
    assert scores[VISIBLE, "f1"].value == scores["Emphysema", "f1"].value == 0
    assert scores[MACRO, "f1"].value == pytest.approx(scores["Pleural effusion", "f1"].value / 2)
    assert (VISIBLE, "f1") not in score_reports(wrong, visible=["Cardiomegaly"], replicates=20)
    perfect = label_pairs(REPORTS, REPORTS)
    assert compare_reports(perfect, wrong, findings=["Emphysema"], replicates=20).difference == 1


def test_intervals_resample_patients_and_differences_are_paired():
    patients = [str(i // 4) for i in range(20)]
    wrong = [REPORTS[1], *REPORTS[1:]]
    good, worse = (label_pairs(texts, REPORTS, patients=patients) for texts in (REPORTS, wrong))
    estimate = score_reports(worse, replicates=200)[MACRO, "f1"]
    assert estimate.patients == 5 and estimate.low < estimate.value <= estimate.high
    difference = compare_reports(good, worse, replicates=200)
    assert difference.difference == pytest.approx(1 - estimate.value) and difference.low >= 0


def test_the_metric_loads_by_path_and_agrees():
    import evaluate

    from voxelfm_hf.eval.metrics import ct_report

    metric = evaluate.load(str(list(ct_report.__path__)[0]) + "/ct_report.py")
    wrong = [REPORTS[3], *REPORTS[1:]]
    found = metric.compute(predictions=wrong, references=REPORTS, replicates=20)
    expected = score_reports(label_pairs(wrong, REPORTS), replicates=20)
    assert found["f1"] == expected[MACRO, "f1"].value
    assert found["findings"]["Emphysema"] == expected["Emphysema", "f1"].value
    assert set(found["estimates"]) >= {"f1", "bleu", "f1 Emphysema"}


def test_templates_are_read_back_by_the_labeller():
    module = importlib.import_module("voxelfm_hf.eval.reports.baselines")
    from voxelfm_hf.eval.labeller import label_report

    for finding in FINDINGS:
        stated = label_report(module.template_report([finding]))
        assert stated[finding] == 1 and sum(stated.values()) == 1, finding
    assert label_report(module.template_report(FINDINGS)) == dict.fromkeys(FINDINGS, 1)
    assert module.template_report([]) == "No abnormal findings."
