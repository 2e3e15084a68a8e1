import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss, roc_curve

from voxelfm_hf.training.probe.calibration import (
    baseline_hazard,
    choose_threshold,
    fit_temperature,
    interval_half_width,
)


@pytest.fixture
def overconfident():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=300)
    return 3 * truth, (rng.logistic(size=300) < truth).astype(float)


def test_temperature_minimises_the_log_loss(overconfident):
    logits, labels = overconfident
    oracle = minimize_scalar(lambda t: log_loss(labels, 1 / (1 + np.exp(-logits / t))), bounds=(0.1, 10)).x
    assert fit_temperature(logits, labels) == pytest.approx(oracle, abs=1e-2)
    assert fit_temperature(logits, labels) > 2
    with_gaps = np.r_[labels, [np.nan] * 5], np.r_[logits, [9.0] * 5]
    assert fit_temperature(with_gaps[1], with_gaps[0]) == pytest.approx(oracle, abs=1e-2)


def test_temperature_of_exclusive_classes_agrees_with_the_binary_one(overconfident):
    logits, labels = overconfident
    two = np.stack([np.zeros_like(logits), logits], axis=1) + 7
    assert fit_temperature(two, labels) == pytest.approx(fit_temperature(logits, labels))


def test_temperature_stays_at_one_or_in_range_where_nothing_can_be_learned():
    assert fit_temperature(np.array([1.0, 2.0]), np.ones(2)) == 1
    assert fit_temperature(np.zeros(0), np.zeros(0)) == 1
    separated = fit_temperature(np.array([-5.0, 5.0]), np.array([0, 1]))
    assert 0.05 <= separated < 0.2


def test_threshold_is_at_the_largest_youden_index(overconfident):
    logits, labels = overconfident
    probabilities = np.round(1 / (1 + np.exp(-logits)), 2)
    fpr, tpr, _ = roc_curve(labels, probabilities)
    called = probabilities >= choose_threshold(labels, probabilities)
    assert called[labels == 1].mean() - called[labels == 0].mean() == pytest.approx((tpr - fpr).max())
    assert choose_threshold(np.array([0, 1, np.nan]), np.array([0.2, 0.4, 0.9])) == pytest.approx(0.3)
    assert choose_threshold(np.ones(3), np.ones(3)) == choose_threshold(np.array([0, 1]), np.ones(2)) == 0.5


def test_conformal_interval_covers_new_errors():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        width = interval_half_width(rng.normal(size=39), level=0.9)
        covered.append(np.mean(np.abs(rng.normal(size=50)) <= width))
    assert np.mean(covered) == pytest.approx(0.9, abs=0.015)
    assert interval_half_width(np.array([1.0, -2, 3]), level=0.75) == 3
    assert interval_half_width(np.array([1.0, np.nan]), level=0.9) is None


def test_baseline_hazard_is_the_one_of_lifelines():
    rng = np.random.default_rng(2)
    covariate = rng.normal(size=150)
    life, censoring = rng.exponential(np.exp(-covariate)), rng.exponential(2, 150)
    frame = pd.DataFrame({"x": covariate, "time": np.ceil(5 * np.minimum(life, censoring)), "event": life <= censoring})
    model = CoxPHFitter().fit(frame, "time", "event")
    risks = (covariate - covariate.mean()) * model.params_["x"]
    times, hazard = baseline_hazard(frame["time"], frame["event"], risks)
    expected = model.baseline_cumulative_hazard_["baseline cumulative hazard"]
    np.testing.assert_allclose(hazard, expected[times].to_numpy(), rtol=1e-5)
    assert times[-1] == frame["time"].max()
    many, _ = baseline_hazard(np.arange(1.0, 501), np.ones(500), np.zeros(500))
    assert len(many) == 100 and many[0] == 1 and many[-1] == 500
