import json
from itertools import permutations

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index
from safetensors.numpy import load_file
from scipy import ndimage, stats
from sklearn import metrics as oracle

from voxelfm_hf.eval.metrics import (
    binary,
    catalogue,
    continuous,
    localization,
    multiclass,
    retrieval,
    segmentation,
    survival,
)


@pytest.fixture(scope="module")
def resamples():
    """Labels, tied probabilities, row counts of five resamples and the same resamples written out."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    probabilities = np.round(np.clip(0.3 * labels + rng.uniform(0, 0.7, 120), 0, 1), 2)
    drawn = [np.arange(120), *rng.integers(0, 120, size=(4, 120))]
    return labels, probabilities, np.stack([np.bincount(rows, minlength=120) for rows in drawn]), drawn


def best_sensitivity(labels, scores):
    fpr, tpr, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    return tpr[fpr <= 0.2 + 1e-12].max()


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (binary.auroc, oracle.roc_auc_score),
        (binary.auprc, oracle.average_precision_score),
        (binary.brier, oracle.brier_score_loss),
        (binary.f1, lambda y, p: oracle.f1_score(y, p >= 0.5)),
        (binary.balanced_accuracy, lambda y, p: oracle.balanced_accuracy_score(y, p >= 0.5)),
        (
            lambda y, p, weights: binary.sensitivity_at_specificity(y, p, specificity=0.8, weights=weights),
            best_sensitivity,
        ),
        (continuous.mae, oracle.mean_absolute_error),
        (continuous.mse, oracle.mean_squared_error),
        (continuous.r2, oracle.r2_score),
        (continuous.spearman, lambda y, p: stats.spearmanr(y, p).statistic),
    ],
)
def test_against_libraries_on_resampled_rows(resamples, ours, reference):
    labels, probabilities, counts, drawn = resamples
    expected = [reference(labels[rows], probabilities[rows]) for rows in drawn]
    np.testing.assert_allclose(ours(labels, probabilities, weights=counts), expected, atol=1e-10)


def test_r2_and_spearman_of_measured_values_with_a_large_offset():
    rng = np.random.default_rng(1)
    targets = 1e6 + rng.normal(size=50)
    predictions = targets + rng.normal(size=50)
    assert continuous.r2(targets, predictions) == pytest.approx(oracle.r2_score(targets, predictions), abs=1e-6)
    assert continuous.spearman(targets, predictions) == pytest.approx(stats.spearmanr(targets, predictions).statistic)


def test_calibration_error_by_hand():
    # Bins of width 0.5: (0.1, 0.3; labels 0, 1) has a gap of 0.3, (0.9; label 1) one of 0.1.
    found = binary.expected_calibration_error(np.array([0, 1, 1]), np.array([0.1, 0.3, 0.9]), bins=2)
    assert found == pytest.approx((2 * 0.3 + 0.1) / 3)
    # The edge 0.5 belongs to the lower bin: mean probability 0.45 against frequency 0.5.
    assert binary.expected_calibration_error(np.array([0, 1]), np.array([0.4, 0.5]), bins=2) == pytest.approx(0.05)


def test_undefined_is_nan():
    ones, scores = np.ones(4), np.array([0.1, 0.2, 0.3, 0.4])
    for metric in (binary.auroc, binary.auprc, binary.balanced_accuracy, binary.sensitivity_at_specificity):
        assert np.isnan(metric(ones, scores))
    assert np.isnan(binary.f1(np.zeros(4), scores))
    assert np.isnan(continuous.r2(np.full(4, 0.1), scores)) and np.isnan(continuous.spearman(ones, scores))
    assert np.isnan(survival.concordance(scores, np.zeros(4), scores))
    assert np.isnan(survival.time_dependent_auroc(scores, ones, scores, horizon=1.0))
    assert np.isnan(retrieval.recall_at_k(scores, np.zeros(4), k=2))
    with pytest.raises(ValueError, match="0 or 1"):
        binary.why_not_two_classes(np.array([0, 1, 2]))


def test_multiclass_against_scikit_learn():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 90)
    probabilities = rng.dirichlet(np.ones(3), 90) + 0.5 * np.eye(3)[labels]
    probabilities /= probabilities.sum(1, keepdims=True)
    called = probabilities.argmax(1)
    assert multiclass.macro_auroc(labels, probabilities) == pytest.approx(
        oracle.roc_auc_score(labels, probabilities, multi_class="ovr")
    )
    assert multiclass.macro_f1(labels, probabilities) == pytest.approx(oracle.f1_score(labels, called, average="macro"))
    assert multiclass.accuracy(labels, probabilities) == pytest.approx(oracle.accuracy_score(labels, called))
    assert multiclass.balanced_accuracy(labels, probabilities) == pytest.approx(
        oracle.balanced_accuracy_score(labels, called)
    )
    assert np.isnan(multiclass.macro_auroc(np.zeros(5, dtype=int), probabilities[:5]))
    assert "class 1, 2" in multiclass.why_not_all_classes(np.zeros(5, dtype=int), range(3))


def test_concordance_against_lifelines_with_ties_and_resamples(parity):
    case = json.loads((parity / "probes" / "metrics.json").read_text())["cindex"]
    times, events, risks = (np.array(case[key]) for key in ("times", "events", "risks"))
    assert survival.concordance(times, events, risks) == pytest.approx(case["value"], abs=1e-9)
    rng = np.random.default_rng(3)
    times, events = rng.integers(1, 9, 60).astype(float), rng.integers(0, 2, 60)
    risks = np.round(rng.normal(size=60) - 0.2 * times, 1)
    drawn = rng.integers(0, 60, size=(3, 60))
    counts = np.stack([np.bincount(rows, minlength=60) for rows in drawn])
    expected = [concordance_index(times[rows], -risks[rows], events[rows]) for rows in drawn]
    np.testing.assert_allclose(survival.concordance(times, events, risks, weights=counts), expected, atol=1e-12)


def test_horizon_labels_are_the_published_ones(parity):
    metrics = json.loads((parity / "probes" / "metrics.json").read_text())
    case, follow_up = metrics["horizon"], metrics["cindex"]
    labels = survival.horizon_labels(follow_up["times"], follow_up["events"], horizon=case["at"])
    assert np.isfinite(labels).tolist() == case["valid"]
    assert (1 - labels[np.isfinite(labels)]).tolist() == case["survived"]


def test_time_dependent_auroc_without_censoring_is_the_plain_one():
    rng = np.random.default_rng(4)
    times, risks = rng.exponential(size=80), np.round(rng.normal(size=80), 1)
    found = survival.time_dependent_auroc(times, np.ones(80), risks, horizon=0.7)
    assert found == pytest.approx(oracle.roc_auc_score(times <= 0.7, risks))


def test_time_dependent_auroc_against_its_sum_with_a_kaplan_meier_of_the_censoring():
    rng = np.random.default_rng(5)
    life, censoring = rng.exponential(1.0, 150), rng.exponential(1.5, 150)
    times, events = np.round(np.minimum(life, censoring), 4), life <= censoring
    risks = np.round(-np.log(life) + rng.normal(size=150), 1)
    curve = KaplanMeierFitter().fit(times, ~events)
    weight = 1 / curve.survival_function_at_times(times - 1e-6).to_numpy()
    top = bottom = 0.0
    for i in np.flatnonzero(events & (times <= 1.0)):
        for j in np.flatnonzero(times > 1.0):
            top += weight[i] * ((risks[i] > risks[j]) + 0.5 * (risks[i] == risks[j]))
            bottom += weight[i]
    found = survival.time_dependent_auroc(times, events, risks, horizon=1.0)
    assert found == pytest.approx(top / bottom)
    # One censored early is neither case nor control, unlike the published negative.
    assert found != pytest.approx(oracle.roc_auc_score(events & (times <= 1.0), risks), abs=1e-3)


def test_recall_averages_over_the_orders_of_ties():
    similarities, relevant = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([0, 1, 0, 1, 0])
    for k in range(1, 6):
        orders = [sorted(range(5), key=lambda i, p=p: (-similarities[i], p[i])) for p in permutations(range(5))]
        expected = np.mean([relevant[order[:k]].sum() / 2 for order in orders])
        assert retrieval.recall_at_k(similarities, relevant, k=k) == pytest.approx(expected)
    assert retrieval.recall_at_k(np.zeros(100), np.arange(100) == 0, k=1) == pytest.approx(0.01)


def test_average_precision_averages_over_the_orders_of_ties():
    similarities, relevant = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([0, 1, 0, 1, 1])
    precisions = []
    for p in permutations(range(5)):
        hits = relevant[sorted(range(5), key=lambda i, p=p: (-similarities[i], p[i]))]
        precisions.append((hits * np.cumsum(hits) / np.arange(1, 6)).sum() / 3)
    assert retrieval.average_precision(similarities, relevant) == pytest.approx(np.mean(precisions))
    rng = np.random.default_rng(6)
    distinct, relevant = rng.normal(size=40), rng.integers(0, 2, 40)
    assert retrieval.average_precision(distinct, relevant) == pytest.approx(
        oracle.average_precision_score(relevant, distinct)
    )


def test_published_retrieval_trials(parity):
    case = json.loads((parity / "probes" / "metrics.json").read_text())["retrieval"]
    embeddings = load_file(parity / "probes" / "metrics.safetensors")["retrieval.embeddings"].astype(float)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    positives = [i for i in range(130) if i % 19 == 0]
    negatives = [i for i in range(130) if i % 19]
    rng = np.random.default_rng(4)
    recall = {k: [] for k in (1, 5, 10)}
    for query in positives:
        for other in positives:
            if other == query:
                continue
            pool = [other, *rng.choice(negatives, 99, replace=False)]
            for k in recall:
                relevant = np.arange(100) == 0
                recall[k].append(retrieval.recall_at_k(embeddings[pool] @ embeddings[query], relevant, k=k))
    assert len(recall[1]) == case["trials"]
    for k, values in recall.items():
        assert np.mean(values) == pytest.approx(case["recall"][str(k)], abs=1e-9)


def test_dice_is_the_published_one(parity):
    case = json.loads((parity / "probes" / "metrics.json").read_text())["dice"]
    tensors = load_file(parity / "probes" / "metrics.safetensors")
    predictions, targets = tensors["segmentation.logits"].argmax(1), tensors["segmentation.target"]
    scans = [segmentation.dice_per_class(p, t, num_classes=5) for p, t in zip(predictions, targets, strict=True)]
    per_class = np.mean(scans, axis=0)[1:]
    # The published value of class 4, absent from the targets, is the epsilon of its denominator: ours is 0.
    np.testing.assert_allclose(per_class, list(case["per_class"].values()), atol=1e-6)
    assert per_class.mean() == pytest.approx(case["macro"], abs=1e-6)
    voxels = np.array([np.bincount(t.ravel(), minlength=5)[1:] for t in targets])
    weighted = (np.array(scans)[:, 1:] * voxels).sum() / voxels.sum()
    assert weighted == pytest.approx(case["voxel_weighted"], abs=1e-6)


def test_dice_skips_what_is_absent_or_not_annotated():
    target = np.array([[0, 1, 1, -1], [0, 0, 1, -1]])
    prediction = np.array([[0, 1, 0, 3], [0, 0, 1, 2]])
    found = segmentation.dice_per_class(prediction, target, num_classes=4)
    np.testing.assert_allclose(found, [6 / 7, 4 / 5, np.nan, np.nan])


def scipy_surface_distances(prediction, target, spacing):
    surfaces = [m & ~ndimage.binary_erosion(np.pad(m, 1))[1:-1, 1:-1, 1:-1] for m in (prediction, target)]
    maps = [ndimage.distance_transform_edt(~s, sampling=spacing) for s in surfaces]
    return maps[1][surfaces[0]], maps[0][surfaces[1]]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.7)])
def test_surface_distances_against_scipy(spacing):
    rng = np.random.default_rng(7)
    prediction, target = (ndimage.gaussian_filter(rng.normal(size=(16, 24, 20)), 2) > 0.05 for _ in range(2))
    found = segmentation.surface_distances(prediction, target, spacing=spacing)
    for ours, reference in zip(found, scipy_surface_distances(prediction, target, spacing), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4)


def test_surface_metrics_of_two_boxes_by_hand():
    target = np.zeros((12, 12, 12), dtype=bool)
    target[3:7, 3:7, 3:7] = True
    moved = np.roll(target, 2, axis=0)
    spacing = (3.0, 1.0, 1.0)
    assert segmentation.hausdorff95(moved, target, spacing=spacing) == pytest.approx(6)
    assert segmentation.surface_dice(target, target, spacing=spacing, tolerance_mm=0) == 1
    assert segmentation.surface_dice(moved, target, spacing=spacing, tolerance_mm=6) == 1
    assert segmentation.surface_dice(moved, target, spacing=spacing, tolerance_mm=0.5) < 0.6
    voxel = np.zeros_like(target)
    voxel[0, 0, 0] = True
    assert segmentation.hausdorff95(voxel, np.roll(voxel, 4, axis=2), spacing=spacing) == pytest.approx(4)


def test_surface_metrics_of_empty_masks():
    empty = np.zeros((4, 4, 4), dtype=bool)
    full = ~empty
    spacing = (1.0, 1.0, 1.0)
    assert np.isnan(segmentation.hausdorff95(empty, full, spacing=spacing))
    assert segmentation.surface_dice(empty, full, spacing=spacing, tolerance_mm=2) == 0
    assert np.isnan(segmentation.surface_dice(empty, empty, spacing=spacing, tolerance_mm=2))


def test_point_errors():
    targets = np.array([[[0.0, 0, 0], [10, 0, 0]], [[1, 2, 3], [np.nan] * 3], [[np.nan] * 3, [np.nan] * 3]])
    predictions = np.zeros((3, 2, 3))
    predictions[0, 0] = (0, 3, 4)
    np.testing.assert_allclose(localization.point_errors_mm(targets, predictions), [7.5, np.sqrt(14), np.nan])
    found = localization.point_errors_normalised(
        np.array([[30.0, 40, 0]]), np.zeros((1, 3)), extent_mm=np.array([[100.0, 100, 50]])
    )
    assert found == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "title", "error", "chance"),
    [
        ("auroc", "AUROC", False, 0.5),
        ("sensitivity_at_specificity_0.9", "sensitivity at specificity 0.9", False, None),
        ("auroc_at_365", "AUROC at time 365", False, None),
        ("mae", "mean absolute error", True, None),
        ("r2", "R²", False, 0.0),
        ("recall_at_10", "Recall@10", False, None),
        ("error_mm", "mean error (mm)", True, None),
        ("hd95_left_lung", "HD95 (mm) of left_lung", True, None),
        ("dice_voxel_weighted", "voxel-weighted Dice", False, None),
        ("rouge_l", "rouge l", False, None),
    ],
)
def test_tables_and_figures_find_what_is_said_of_a_metric_by_its_name(name, title, error, chance):
    assert (catalogue.metric_title(name), catalogue.is_error(name), catalogue.chance_of(name)) == (title, error, chance)


def test_the_lowest_scores_count_as_the_others_do():
    # Ties and positives at the very bottom, where cumulative counts begin.
    for labels, scores in (([1, 0, 1, 0], [0, 0, 1, 1]), ([1, 0], [0, 1]), ([1, 1, 0, 1], [0, 0, 0, 1])):
        labels, scores = np.array(labels), np.array(scores, dtype=float)
        assert binary.auroc(labels, scores) == pytest.approx(oracle.roc_auc_score(labels, scores))


def test_errors_of_boxes_are_means_over_their_points_in_units_of_each_scan():
    rng = np.random.default_rng(3)
    targets, predictions = rng.normal(size=(2, 4, 2, 3))
    extents = rng.uniform(1, 2, size=(4, 3))
    expected = [
        np.mean([np.linalg.norm((predictions[scan, point] - targets[scan, point]) / extents[scan]) for point in (0, 1)])
        for scan in range(4)
    ]
    found = localization.point_errors_normalised(targets, predictions, extent_mm=extents)
    np.testing.assert_allclose(found, expected)
