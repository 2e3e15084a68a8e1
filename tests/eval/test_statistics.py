import json
from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from voxelfm_hf.eval.metrics import binary, survival
from voxelfm_hf.eval.metrics.binary import auroc
from voxelfm_hf.eval.metrics.measure import mean
from voxelfm_hf.eval.metrics.scoring import by_subgroup, estimate
from voxelfm_hf.eval.statistics.bootstrap import bootstrap, paired_bootstrap
from voxelfm_hf.eval.statistics.delong import delong, delong_test, hanley_mcneil
from voxelfm_hf.eval.statistics.estimates import holm
from voxelfm_hf.eval.tasks.data import bands


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    first = labels + rng.normal(0, 1.2, 80)
    second = labels + rng.normal(0, 2.5, 80)
    return labels, first, second


def test_bootstrap_of_the_mean_matches_scipy():
    values = np.random.default_rng(1).exponential(size=60)
    expected = stats.bootstrap((values,), np.mean, n_resamples=9000, method="BCa", rng=np.random.default_rng(2))
    found = bootstrap(mean, values, replicates=9000, seed=3)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.01)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.015)
    plain = bootstrap(mean, values, replicates=9000, seed=3, method="percentile")
    expected = stats.bootstrap((values,), np.mean, n_resamples=9000, method="percentile", rng=np.random.default_rng(2))
    assert plain.high == pytest.approx(expected.confidence_interval.high, abs=0.015)


def test_bootstrap_resamples_patients_not_rows():
    rng = np.random.default_rng(4)
    of_patient = rng.normal(size=25)
    rows, patients = np.repeat(of_patient, 8), np.repeat(np.arange(25), 8)
    clustered = bootstrap(mean, rows, patients=patients, replicates=4000)
    alone = bootstrap(mean, of_patient, replicates=4000)
    naive = bootstrap(mean, rows, replicates=4000)
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)
    assert (clustered.n, clustered.patients) == (200, 25)


def test_bootstrap_weights_are_exact_resamples(scores):
    labels, first, _ = scores
    drawn = np.random.default_rng(5).integers(0, 80, size=(6, 80))
    weights = np.stack([np.bincount(rows, minlength=80) for rows in drawn])
    expected = [roc_auc_score(labels[rows], first[rows]) for rows in drawn]
    np.testing.assert_allclose(auroc(labels, first, weights=weights), expected, atol=1e-12)


def test_seed_fixes_the_interval_and_level_widens_it(scores):
    labels, first, _ = scores
    one, same = (bootstrap(auroc, labels, first, replicates=500, seed=1) for _ in range(2))
    assert one == same
    wide = bootstrap(auroc, labels, first, replicates=500, seed=1, level=0.99)
    assert wide.low < one.low < one.value < one.high < wide.high


def test_undefined_cases_are_a_sentence_and_nan():
    measures = binary.measures()
    one_class = estimate(measures["auroc"], np.ones(9), np.linspace(0, 1, 9))
    assert np.isnan(one_class.value) and "two classes" in one_class.note and one_class.n == 9
    assert one_class.as_dict()["value"] is None
    nothing = estimate(measures["brier"], np.full(3, np.nan), np.ones(3))
    assert not nothing.defined and nothing.n == 0 and nothing.note
    no_event = estimate(survival.measures()["c_index"], np.arange(1.0, 5), np.zeros(4), np.zeros(4))
    assert not no_event.defined and "no event" in no_event.note
    far = estimate(survival.measures(horizons=[9])["auroc_at_9"], np.arange(1.0, 5), np.ones(4), np.zeros(4))
    assert not far.defined and "beyond 9" in far.note
    lone = estimate(measures["auroc"], np.array([0, 1, 0]), np.array([0.1, 0.9, 0.2]), patients=["a", "a", "a"])
    assert lone.value == 1 and np.isnan(lone.low) and "one patient" in lone.note
    rare = estimate(measures["auroc"], np.r_[1, np.zeros(9)], np.linspace(1, 0, 10), replicates=400)
    assert rare.value == 1 and "replicates" in rare.note


def test_missing_labels_are_left_out(scores):
    labels, first, _ = scores
    with_gaps = np.r_[labels.astype(float), np.full(20, np.nan)]
    measure = binary.measures()["auroc"]
    found = estimate(measure, with_gaps, np.r_[first, np.zeros(20)], replicates=0)
    assert found.n == 80 and found.value == pytest.approx(roc_auc_score(labels, first))


def brute_force_delong_variance(labels, scores):
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative[None]) + 0.5 * (positive[:, None] == negative[None])
    return wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)


def test_delong_against_its_definition(scores):
    labels, first, _ = scores
    first = np.round(first, 1)  # ties
    found = delong(labels, first)
    margin = 1.959963984540054 * np.sqrt(brute_force_delong_variance(labels, first))
    assert found.value == pytest.approx(roc_auc_score(labels, first))
    assert found.high - found.value == pytest.approx(margin)


def test_paired_delong_against_its_definition(scores):
    labels, first, second = scores

    def components(model):
        positive, negative = model[labels == 1], model[labels == 0]
        wins = (positive[:, None] > negative[None]).astype(float)
        return wins.mean(1), wins.mean(0)

    (p1, n1), (p2, n2) = components(first), components(second)
    variance = (p1 - p2).var(ddof=1) / len(p1) + (n1 - n2).var(ddof=1) / len(n1)
    found = delong_test(labels, first, second)
    difference = roc_auc_score(labels, first) - roc_auc_score(labels, second)
    assert found.difference == pytest.approx(difference)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))
    assert delong_test(labels, first, 3 * first + 1).p_value == 1


def test_delong_with_repeated_rows_of_a_patient_does_not_shrink(scores):
    labels, first, second = scores
    once = delong(labels, first)
    doubled, patients = [np.repeat(a, 2) for a in (labels, first, second)], np.repeat(np.arange(80), 2)
    twice = delong(doubled[0], doubled[1], patients=patients)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    pair = delong_test(*doubled, patients=patients)
    assert pair.p_value == pytest.approx(delong_test(labels, first, second).p_value)


def test_hanley_mcneil_is_the_published_one(parity):
    case = json.loads((parity / "probes" / "metrics.json").read_text())["auroc"]
    found = hanley_mcneil(case["y"], case["p"])
    assert (found.value, found.low, found.high) == pytest.approx((case["value"], *case["hanley_ci95"]), abs=1e-6)


def test_analytic_intervals_of_one_class_are_sentences():
    for function in (delong, hanley_mcneil):
        assert "two classes" in function(np.zeros(5), np.arange(5)).note
    assert np.isnan(delong_test(np.zeros(5), np.arange(5), np.arange(5)).p_value)
    assert "two positives" in delong(np.array([1, 0, 0, 0]), np.array([0.2, 0.1, 0.3, 0.4])).note


def test_paired_bootstrap_agrees_with_paired_delong(scores):
    labels, first, second = scores
    found = paired_bootstrap(auroc, labels, first, second, replicates=4000)
    reference = delong_test(labels, first, second)
    assert found.difference == pytest.approx(reference.difference)
    assert found.low == pytest.approx(reference.low, abs=0.03)
    assert found.p_value == pytest.approx(reference.p_value, abs=0.03)
    same = paired_bootstrap(auroc, labels, first, first, replicates=200)
    assert (same.difference, same.p_value) == (0, 1)


def test_holm_against_the_closed_testing_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005, np.nan])

    def closed(i):  # the largest Bonferroni p-value over all subsets that hold i
        others = [j for j in range(4) if j != i]
        subsets = [[i, *chosen[:size]] for chosen in permutations(others) for size in range(4)]
        return max(min(1.0, len(s) * p[s].min()) for s in subsets)

    adjusted = holm(p)
    np.testing.assert_allclose(adjusted[:4], [closed(i) for i in range(4)])
    assert np.isnan(adjusted[4])


def test_subgroups_carry_their_n(scores):
    labels, first, _ = scores
    sex = np.array((["F", "M", None, "F"] * 20), dtype=object)
    found = by_subgroup(
        binary.measures()["auroc"],
        labels,
        first,
        columns={"sex": sex, "age": bands(np.linspace(30, 79, 80), (50, 65))},
        replicates=50,
    )
    table = {(s.column, s.level): s.estimate for s in found}
    assert [key[1] for key in table] == ["F", "M", "unknown", "50-65", "<50", ">=65"]
    assert table["sex", "F"].n == 40 and table["sex", "unknown"].n == 20
    rows = sex == "M"
    assert table["sex", "M"].value == pytest.approx(roc_auc_score(labels[rows], first[rows]))
    assert bands([50, 64.9, 65, np.nan], (50, 65)) == ["50-65", "50-65", ">=65", ""]


def test_delong_of_means_over_seeds():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 80)
    first, second = labels[:, None] + rng.normal(size=(80, 3)), labels[:, None] + 2 * rng.normal(size=(80, 3))
    patients = np.arange(80) // 2
    one = delong_test(labels, first[:, 0], second[:, 0], patients=patients)
    doubled = delong_test(labels, first[:, [0, 0]], second[:, 0], patients=patients)
    assert (doubled.difference, doubled.p_value) == pytest.approx((one.difference, one.p_value))
    several = delong_test(labels, first, second, patients=patients)
    means = [np.mean([roc_auc_score(labels, s) for s in scores.T]) for scores in (first, second)]
    assert several.difference == pytest.approx(means[0] - means[1])
    # Its standard error against a bootstrap over patients.
    draws = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(patients == p) for p in rng.integers(0, 40, 40)])
        areas = [np.mean([_area(labels[rows], s[rows]) for s in scores.T]) for scores in (first, second)]
        draws.append(areas[0] - areas[1])
    assert (several.high - several.low) / 3.92 == pytest.approx(np.std(draws), rel=0.2)


def _area(labels, scores):
    """The share of pairs that are in order, much quicker than scikit-learn's on few rows."""
    difference = scores[labels == 1][:, None] - scores[labels == 0][None]
    return np.mean((difference > 0) + (difference == 0) / 2)


def test_adjusted_p_values_end_at_one():
    np.testing.assert_array_equal(holm([0.6, 0.7, 0.9]), [1, 1, 1])


def test_two_patients_give_an_interval_and_one_none():
    values, weights = np.array([1.0, 2.0, 4.0]), np.array(["a", "a", "b"])
    two = bootstrap(mean, values, patients=weights, method="percentile", replicates=200)
    assert (two.low, two.high) == (1.5, 4.0) and two.patients == 2
    one = bootstrap(mean, values[:2], patients=weights[:2], replicates=200)
    assert one.value == 1.5 and np.isnan(one.low) and one.note
    none = bootstrap(mean, values[:0], patients=weights[:0])
    assert np.isnan(none.value) and none.n == 0


def test_an_interval_beside_its_own_value_is_none():
    """The expected calibration error of calibrated probabilities is larger in nearly all resamples."""
    kinds = set()
    for seed in range(40):
        draws = np.random.default_rng(seed)
        probabilities = draws.uniform(size=104)
        labels = (draws.uniform(size=104) < probabilities).astype(float)
        found = bootstrap(binary.expected_calibration_error, labels, probabilities, replicates=200)
        assert np.isfinite(found.value)
        if np.isfinite(found.low):
            assert found.low <= found.value <= found.high and not found.note
        else:
            assert np.isnan(found.high) and "no interval" in found.note
        kinds.add(bool(np.isfinite(found.low)))
    assert kinds == {True, False}
    assert bootstrap(mean, np.full(20, 0.1), replicates=200).low == pytest.approx(0.1)
