"""Figures: the numbers in them against independent libraries, and that every kind is drawn, odd input included."""

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from lifelines.statistics import multivariate_logrank_test
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_curve as sklearn_roc

from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.eval.metrics.catalogue import metric_title
from voxelfm_hf.eval.plots.agreement import Measured, save_agreement
from voxelfm_hf.eval.plots.dice_boxes import save_dice_boxes
from voxelfm_hf.eval.plots.error_curve import save_error_curve
from voxelfm_hf.eval.plots.forest import save_forest
from voxelfm_hf.eval.plots.kaplan_meier import save_kaplan_meier
from voxelfm_hf.eval.plots.label_efficiency import save_label_efficiency
from voxelfm_hf.eval.plots.overlays import save_localization_overlay, save_segmentation_overlay
from voxelfm_hf.eval.plots.reliability import reliability, save_reliability
from voxelfm_hf.eval.plots.retrieval_sheet import Shown, save_retrieval_sheet
from voxelfm_hf.eval.plots.roc import GRID, Scored, roc_band, roc_curve, save_roc
from voxelfm_hf.eval.plots.style import COLOURS, looks, panels, shared_legend
from voxelfm_hf.eval.statistics.survival_curves import kaplan_meier, log_rank, number_at_risk, risk_groups
from voxelfm_hf.volumes import Volume
from voxelfm_hf.volumes.errors import ScanError


@pytest.fixture
def followed():
    """Follow-up of 80 people with ties, in whole months."""
    rng = np.random.default_rng(0)
    risk = rng.normal(size=80)
    times, censored = rng.exponential(20 * np.exp(-risk)), rng.exponential(25, 80)
    return np.ceil(np.minimum(times, censored)), (times <= censored).astype(float), risk


def drawn(path):
    """The size of a PNG whose pixels are not all one colour."""
    with Image.open(path) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 24)) > 10
        return image.size


def test_kaplan_meier_is_that_of_lifelines(followed):
    times, events, _ = followed
    curve = kaplan_meier(times, events)
    fitted = KaplanMeierFitter().fit(times, events)
    np.testing.assert_allclose(curve.survival, fitted.survival_function_at_times(curve.times), atol=1e-12)
    theirs = fitted.confidence_interval_.reindex(curve.times).to_numpy()
    known = np.isfinite(curve.low)
    np.testing.assert_allclose(np.stack([curve.low, curve.high], 1)[known], theirs[known], atol=1e-9)
    assert list(curve.censored) == sorted(times[events == 0])
    np.testing.assert_array_equal(number_at_risk(times, np.array([0.0, 5.0, 1e9])), [80, (times >= 5).sum(), 0])


@pytest.mark.parametrize("count", [2, 3])
def test_log_rank_is_that_of_lifelines(followed, count):
    times, events, risk = followed
    groups = risk_groups(risk, count=count)
    theirs = multivariate_logrank_test(times, groups, events)
    statistic, p_value = log_rank(times, events, groups)
    assert statistic == pytest.approx(theirs.test_statistic) and p_value == pytest.approx(theirs.p_value, rel=1e-6)


def test_curves_without_events_or_groups_are_not_invented():
    times, nobody = np.array([1.0, 2.0, 3.0]), np.zeros(3)
    curve = kaplan_meier(times, nobody)
    assert (curve.survival == 1).all() and (curve.low == 1).all()
    assert np.isnan(log_rank(times, nobody, np.array(["a", "b", "b"]))).all()
    assert np.isnan(log_rank(times, np.ones(3), np.array(["a"] * 3))).all()


def test_groups_keep_the_edges_of_the_training_rows():
    risks = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    assert risk_groups(risks, edges=np.array([0.0])).tolist() == ["low risk"] * 2 + ["high risk"] * 3
    assert risk_groups(risks, edges=np.array([5.0, 6.0])).tolist() == ["low risk"] * 5
    assert set(risk_groups(np.arange(9.0))) == {"low risk", "medium risk", "high risk"}


def test_roc_points_are_those_of_scikit_learn_and_weights_repeat_rows():
    rng = np.random.default_rng(1)
    labels, scores = (rng.random(40) < 0.4).astype(float), rng.integers(0, 9, 40).astype(float)
    fall_out, sensitivity = roc_curve(labels, scores)
    theirs = sklearn_roc(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(fall_out, theirs[0])
    np.testing.assert_allclose(sensitivity, theirs[1])
    twice = rng.integers(0, 3, 40)
    repeated = roc_curve(np.repeat(labels, twice), np.repeat(scores, twice))
    weighted = roc_curve(labels, scores, weights=twice.astype(float))
    np.testing.assert_allclose(np.unique(weighted[0]), np.unique(repeated[0]))


def test_the_band_holds_the_curve_and_repeated_rows_of_a_patient_do_not_narrow_it():
    rng = np.random.default_rng(2)
    labels, patients = (rng.random(200) < 0.5).astype(float), np.arange(200)
    scores = labels + rng.normal(size=200)
    low, high = roc_band(Scored(labels, scores, patients))
    fall_out, sensitivity = roc_curve(labels, scores)
    at = np.interp(GRID, fall_out, sensitivity)
    assert (at >= low - 0.02).all() and (at <= high + 0.02).all()
    thrice = [np.repeat(values, 3) for values in (labels, scores, patients)]
    clustered = np.subtract(*roc_band(Scored(*thrice))[::-1])
    np.testing.assert_allclose(clustered, high - low, atol=1e-9)
    assert np.subtract(*roc_band(Scored(*thrice[:2]))[::-1]).mean() < 0.7 * clustered.mean()


def test_reliability_points_are_means_of_their_bins():
    probabilities = np.array([0.05, 0.1, 0.15, 0.95, 1.0])
    means, rates, low, high, sizes = reliability(np.array([0.0, 1, 0, 1, 1]), probabilities)
    np.testing.assert_allclose(means, [0.075, 0.15, 0.975])
    np.testing.assert_allclose(rates, [0.5, 0, 1])
    assert sizes.tolist() == [2, 1, 2] and (low <= rates).all() and (rates <= high).all()
    # Wilson's interval of 1 out of 2, in closed form
    z2 = 1.959963984540054**2
    assert low[0] == pytest.approx(0.5 - np.sqrt(z2) / (1 + z2 / 2) * np.sqrt(0.125 + z2 / 16))


def test_curves_of_findings_are_drawn_whatever_is_missing(tmp_path):
    rng = np.random.default_rng(3)
    labels = (rng.random(50) < 0.5).astype(float)
    labels[:5] = np.nan
    scores = np.clip(0.3 * np.nan_to_num(labels) + 0.7 * rng.random(50), 0, 1)
    one_class = Scored(np.ones(50), scores)
    targets = {
        "$odd_name^": {"a_b": Scored(labels, scores), "c": Scored(labels, 1 - scores)},
        "all": {"a_b": one_class},
    }
    drawn(save_roc(tmp_path / "roc.png", targets))
    drawn(save_reliability(tmp_path / "reliability.png", targets))
    first = (tmp_path / "roc.png").read_bytes()
    assert save_roc(tmp_path / "again.png", targets).read_bytes() == first


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_legend_of_roc_curves_is_outside_their_panel(tmp_path, monkeypatch, count):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (figures.append(figure), open(path, "wb").close()))
    rng = np.random.default_rng(4)
    labels = (rng.random(60) < 0.5).astype(float)
    encoders = {f"encoder {number}": Scored(labels, rng.random(60)) for number in range(count)}
    save_roc(tmp_path / "roc.png", {"one": encoders, "other": encoders})
    (figure,) = figures
    figure.canvas.draw()
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.get_legend().get_texts()]
        assert len(boxes) == count and min(box.y0 for box in boxes) >= 0
        assert max(box.y1 for box in boxes) <= axis.xaxis.label.get_window_extent().y0


def test_survival_dice_values_and_errors_are_drawn(tmp_path, followed):
    times, events, risk = followed
    times[0] = np.nan
    drawn(save_kaplan_meier(tmp_path / "km.png", times, events, risk_groups(risk), unit="months", heading="death"))
    nothing = {"probe": {"liver": np.array([0.5, 0.7, np.nan]), "spleen": np.full(3, np.nan)}}
    drawn(save_dice_boxes(tmp_path / "dice.png", nothing))
    many = {f"encoder {i}": {f"class {c}": np.array([0.2, 0.4, 0.9]) for c in range(40)} for i in range(2)}
    width, height = drawn(save_dice_boxes(tmp_path / "many.png", many))
    assert width <= 1400 and height > width
    truth = np.array([1.0, 2.0, np.nan, 4.0])
    drawn(save_agreement(tmp_path / "agreement.png", {"size": Measured(truth, truth + 0.1, 0.5, 0.9, "mm")}))
    drawn(
        save_error_curve(tmp_path / "errors.png", {"probe": np.array([3.0, np.nan, 5.0]), "none": np.full(3, np.nan)})
    )


def test_result_rows_are_drawn_as_they_come_from_a_file(tmp_path):
    rows = [
        {"encoder": encoder, "task": "classification", "target": "t", "metric": metric, "value": value, "low": low,
         "high": "", "n": "20", "fraction": fraction}
        for encoder, value, low in (("tiny", "0.8", "0.7"), ("other", "", ""), ("third", "0.6", ""))
        for metric in ("auroc", "f1")
        for fraction in ("0.05", "1")
    ]  # fmt: skip
    drawn(save_label_efficiency(tmp_path / "efficiency.png", rows))
    drawn(save_forest(tmp_path / "forest.png", [row for row in rows if row["fraction"] == "1"]))


def test_a_shared_legend_stays_in_its_figure():
    figure, (axis,) = panels(1)
    for number in range(9):
        axis.plot([number], label=f"encoder {number} of crop extents only")
    shared_legend(figure, axis)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_pictures_of_answers(tmp_path):
    phantom = make_phantom(0, spacing=(12.0, 12.0, 12.0))
    volume, labels = phantom.volume, phantom.labels
    drawn(save_segmentation_overlay(tmp_path / "maps.png", volume, labels, np.zeros_like(labels), names={1: "lung"}))
    with pytest.raises(ScanError, match="put it on its grid"):
        save_segmentation_overlay(tmp_path / "maps.png", volume, labels[1:], labels)
    middle = (volume.affine @ [*(np.array(volume.hu.shape) / 2), 1])[:3]
    drawn(save_localization_overlay(tmp_path / "point.png", volume, middle, middle + 1e4))
    query, near = Shown(volume, "effusion"), Shown(volume, "none", False, middle, 60.0)
    drawn(save_retrieval_sheet(tmp_path / "sheet.png", [(query, [near, near]), (query, [near])], heading="nearest"))


def test_a_point_in_lung_is_shown_in_the_window_of_lung(tmp_path):
    hu = np.full((40, 40, 40), 40, np.int16)
    hu[4:-4, 4:-4, 4:20] = -850
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (5, 5, 5, 1)
    volume = Volume.from_array(hu, spacing=(5.0, 5.0, 5.0), affine=affine, source="made")
    for where, window in (((60.0, 100.0, 100.0), "lung"), ((150.0, 100.0, 100.0), "soft tissue")):
        chosen, named = tmp_path / "chosen.png", tmp_path / "named.png"
        save_localization_overlay(chosen, volume, where, where)
        save_localization_overlay(named, volume, where, where, window=window)
        assert chosen.read_bytes() == named.read_bytes()


def test_the_eight_colours_differ_in_lightness_or_marker_and_names_are_words():
    shown = looks(str(i) for i in range(8))
    assert (
        len({look.marker for look in shown.values()}) == len({look.colour for look in shown.values()}) == len(COLOURS)
    )
    assert metric_title("dice_macro") == "macro Dice" and metric_title("recall_at_5") == "Recall@5"
