from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.probe_losses_voxelfm import cox_loss
from voxelfm_hf.training.probe import fit_probes, make_probe, probe_logits
from voxelfm_hf.training.probe.data import ProbeFeatures, ProbeJob
from voxelfm_hf.training.probe.loop import FitGroup
from voxelfm_hf.training.probe.settings import DEFAULT_SETTINGS, ProbeSettings

TRAIN, VALIDATION, TEST = np.arange(160), np.arange(160, 220), np.arange(220, 300)
TO_THE_END = ProbeSettings(
    epochs=1500, optimizer="nesterov", learning_rate=1.0, weight_decay=0, noise=0, balance=False, evaluate_every=50
)


@pytest.fixture(scope="module")
def data():
    """300 rows of 20 features; findings that are noisy, clear and pure noise, a size, a survival."""
    rng = np.random.default_rng(0)
    cls = rng.normal(size=(300, 20))
    signal = cls @ rng.normal(size=20) / np.sqrt(20)
    life, censoring = rng.exponential(np.exp(-signal)), rng.exponential(2, 300)
    return {
        "features": ProbeFeatures(cls=torch.tensor(cls, dtype=torch.float32)),
        "finding": (2 * signal + rng.logistic(size=300) > 1).astype(float)[:, None],
        "clear": (signal > 0.3).astype(float)[:, None],
        "noise": rng.integers(0, 2, (300, 1)).astype(float),
        "size": (40 + 5 * signal + rng.normal(size=300))[:, None],
        "survival": np.stack([np.ceil(10 * np.minimum(life, censoring)), life <= censoring], axis=1),
    }


def job(data, target, **changes):
    return replace(ProbeJob(target, data[target], TRAIN, VALIDATION), **changes)


def config(task="classification", head="linear", **fields):
    return VoxelFMProbeConfig(task=task, head=head, feature_size=20, id2label={0: "target"}, **fields)


def coefficients(fit):
    return fit.state["weight"][0].double().numpy(), float(fit.state["bias"][0])


def test_unregularised_logistic_fit_is_the_one_of_scikit_learn(data):
    (fit,) = fit_probes(data["features"], [job(data, "finding", validation=[])], config(), settings=TO_THE_END)
    oracle = LogisticRegression(C=np.inf, tol=1e-8, max_iter=500)
    oracle.fit(data["features"].cls[TRAIN].numpy(), data["finding"][TRAIN, 0])
    weight, bias = coefficients(fit)
    np.testing.assert_allclose(weight, oracle.coef_[0], atol=2e-3)
    assert bias == pytest.approx(oracle.intercept_[0], abs=2e-3)
    assert "no validation" in fit.notes[0]


def test_unregularised_cox_fit_with_ties_is_the_one_of_lifelines(data):
    fits = fit_probes(data["features"], [job(data, "survival", validation=[])], config("survival"), settings=TO_THE_END)
    frame = pd.DataFrame(data["features"].cls[TRAIN].double().numpy())
    frame["time"], frame["event"] = data["survival"][TRAIN].T
    oracle = CoxPHFitter().fit(frame, "time", "event")
    np.testing.assert_allclose(coefficients(fits[0])[0], oracle.params_.to_numpy(), atol=2e-3)


def test_unregularised_regression_is_least_squares_in_the_unit_of_the_target(data):
    (fit,) = fit_probes(data["features"], [job(data, "size", validation=[])], config("regression"), settings=TO_THE_END)
    features = data["features"]
    oracle = LinearRegression().fit(features.cls[TRAIN].numpy(), data["size"][TRAIN, 0])
    probe = make_probe(config("regression"), [fit], features)
    found = probe.predict(cls=features.cls[TEST]).predictions[:, 0]
    np.testing.assert_allclose(found, oracle.predict(features.cls[TEST].numpy()), atol=2e-2)
    # Standardised by the training rows alone.
    assert probe.config.target_mean == pytest.approx([data["size"][TRAIN].mean()])
    assert probe.config.target_scale == pytest.approx([data["size"][TRAIN].std()])


@pytest.mark.parametrize(("head", "ceiling"), [("linear", 0.97), ("mlp", 0.92)])
def test_ceiling_and_floor(data, head, ceiling):
    features = data["features"].standardised(TRAIN)
    shape = config(head=head, head_hidden_size=32 if head == "mlp" else None)
    fits = fit_probes(features, [job(data, "clear"), job(data, "noise")], shape)
    strong, chance = probe_logits(features, fits, shape, TEST)[..., 0]
    assert roc_auc_score(data["clear"][TEST, 0], strong) > ceiling
    assert 0.3 < roc_auc_score(data["noise"][TEST, 0], chance) < 0.7


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_fit_does_not_depend_on_its_neighbours_and_the_seed_fixes_it(data, head):
    shape = config(head=head, head_hidden_size=16 if head == "mlp" else None)
    few = job(data, "finding", train=TRAIN[:40], name="few")
    jobs = [job(data, "noise"), few, job(data, "finding", seed=3), job(data, "finding")]
    together = fit_probes(data["features"], jobs, shape)
    assert [fit.name for fit in together] == ["noise", "few", "finding", "finding"]
    for index in (1, 2, 3):
        (alone,) = fit_probes(data["features"], [jobs[index]], shape)
        assert alone.best_epoch == together[index].best_epoch
        for name, value in alone.state.items():
            torch.testing.assert_close(value, together[index].state[name], atol=1e-5, rtol=1e-4)
    assert not torch.equal(together[2].state["weight"], together[3].state["weight"])


def test_fitting_leaves_the_random_state_of_the_caller_alone(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_probes(data["features"], [job(data, "noise")], config())
    assert torch.equal(torch.rand(3), expected)


def test_missing_labels_and_test_rows_take_no_part(data):
    gaps = data["finding"].copy()
    gaps[TRAIN[100:]] = np.nan
    masked, subset = fit_probes(
        data["features"], [job(data, "finding", targets=gaps), job(data, "finding", train=TRAIN[:100])], config()
    )
    torch.testing.assert_close(masked.state["weight"], subset.state["weight"], atol=1e-5, rtol=1e-4)
    spoiled = data["finding"].copy()
    spoiled[TEST] = 1 - spoiled[TEST]
    (same,) = fit_probes(data["features"], [job(data, "finding", targets=spoiled)], config())
    (honest,) = fit_probes(data["features"], [job(data, "finding")], config())
    assert torch.equal(same.state["weight"], honest.state["weight"])


def test_a_fit_stops_when_its_patience_is_out_and_keeps_its_best_epoch(data):
    linear = DEFAULT_SETTINGS["linear"]
    (fit,) = fit_probes(data["features"], [job(data, "finding")], config())
    assert 1 < fit.best_epoch == fit.epochs - linear.patience
    short = replace(linear, epochs=fit.best_epoch)
    (until_then,) = fit_probes(data["features"], [job(data, "finding")], config(), settings=short)
    assert torch.equal(until_then.state["weight"], fit.state["weight"]) and until_then.score == fit.score


def test_epochs_are_told_from_the_first_on_over_all_groups_of_fits(data):
    short = replace(DEFAULT_SETTINGS["mlp"], epochs=3, evaluate_every=2)
    jobs = [job(data, "finding", seed=seed) for seed in (0, 0, 1)]  # fits of one seed run side by side
    told = []
    fit_probes(
        data["features"],
        jobs,
        config(head="mlp", head_hidden_size=4),
        settings=short,
        on_epoch=lambda done, total: told.append((done, total)),
    )
    assert told == [(done, 6) for done in (0, 1, 2, 3, 3, 4, 5, 6)]


def test_balanced_fits_keep_the_prevalence(data):
    rare = ((data["finding"][:, 0] == 1) & (np.arange(300) % 3 == 0)).astype(float)[:, None]
    prevalence = rare[TRAIN].mean()
    for head in ("linear", "mlp"):
        shape = config(head=head, head_hidden_size=16 if head == "mlp" else None)
        fits = fit_probes(data["features"], [job(data, "finding", targets=rare)], shape)
        chance = 1 / (1 + np.exp(-probe_logits(data["features"], fits, shape, TEST)[0, :, 0]))
        assert chance.mean() == pytest.approx(prevalence, abs=0.08)
        assert log_loss(rare[TEST, 0], chance) < log_loss(rare[TEST, 0], np.full(len(TEST), 0.5))


def test_multiclass_and_the_probe_of_many_labels(data):
    features = data["features"].standardised(TRAIN)
    classes = np.digitize(data["size"], np.quantile(data["size"], [0.33, 0.66])).astype(float)
    shape = VoxelFMProbeConfig(
        feature_size=20, problem_type="single_label_classification", id2label={0: "s", 1: "m", 2: "l"}
    )
    (fit,) = fit_probes(features, [ProbeJob("class", classes, TRAIN, VALIDATION)], shape)
    chance = make_probe(shape, [fit], features).predict(cls=features.cls[TEST]).predictions
    assert (chance.argmax(1).numpy() == classes[TEST, 0]).mean() > 0.65
    for head in ("linear", "mlp"):
        hidden = {"head_hidden_size": 16} if head == "mlp" else {}
        fits = fit_probes(features, [job(data, "noise"), job(data, "finding")], config(head=head, **hidden))
        both = VoxelFMProbeConfig(head=head, feature_size=20, id2label={0: "noise", 1: "finding"}, **hidden)
        logits = make_probe(both, fits, features)(cls=features.cls[TEST]).logits
        expected = probe_logits(features, fits, config(head=head, **hidden), TEST)[..., 0].T
        np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-5)


def test_pooler_finds_the_patch_that_matters():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (60, 1)).astype(float)
    grids = []
    for label in labels[:, 0]:
        grid = rng.normal(size=(2, int(rng.integers(2, 4)), 3, 16)).astype(np.float32)
        grid[tuple(rng.integers(0, n) for n in grid.shape[:3])][:4] += 8 * label
        grids.append(grid)
    features = ProbeFeatures(patches=grids.__getitem__)
    shape = VoxelFMProbeConfig(head="pooler", feature_size=16, head_hidden_size=16, dropout=0.1, id2label={0: "a"})
    settings = replace(DEFAULT_SETTINGS["pooler"], learning_rate=1e-2, epochs=30)
    fits = fit_probes(features, [ProbeJob("a", labels, np.arange(30), np.arange(30, 40))], shape, settings=settings)
    logits = probe_logits(features, fits, shape, np.arange(40, 60))[0, :, 0]
    assert roc_auc_score(labels[40:, 0], logits) > 0.9


def test_full_batch_gradient_of_a_patch_head_is_the_one_of_a_single_pass():
    rng = np.random.default_rng(2)
    grids = rng.normal(size=(20, 2, 2, 2, 8)).astype(np.float32)
    targets = np.stack([rng.integers(1, 6, 20), np.ones(20)], axis=1).astype(float)
    shape = VoxelFMProbeConfig(
        task="survival", head="pooler", feature_size=8, head_hidden_size=8, dropout=0, attention_dropout=0
    )
    settings = ProbeSettings(batch_size=None, noise=0)
    features = ProbeFeatures(patches=lambda row: grids[row])
    group = FitGroup(features, [ProbeJob("s", targets, np.arange(20))], shape, settings, "cpu")
    group._backward_full_batch()
    gradients = [parameter.grad.clone() for parameter in group.stack.parameters()]
    group.stack.zero_grad()
    outputs = group.stack(list(torch.from_numpy(grids)))
    cox_loss(outputs, torch.from_numpy(targets)[None], torch.ones(1, 20)).sum().backward()
    for found, parameter in zip(gradients, group.stack.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, atol=1e-6, rtol=1e-5)


def test_position_head_learns_where_a_patch_shines():
    rng = np.random.default_rng(3)
    grids, points = [], []
    for _ in range(40):
        shape = (3, 4, int(rng.integers(3, 5)))
        grid, place = rng.normal(size=(*shape, 8)).astype(np.float32), [int(rng.integers(0, n)) for n in shape]
        grid[tuple(place)] += 5
        grids.append(grid)
        points.append([(i + 0.5) / n for i, n in zip(place, shape, strict=True)])
    points = np.array(points)
    shape = VoxelFMProbeConfig(task="localization", head="position", feature_size=8, head_hidden_size=16)
    settings = replace(DEFAULT_SETTINGS["position"], learning_rate=1e-2, accumulate=1, epochs=25)
    features = ProbeFeatures(patches=grids.__getitem__)
    fits = fit_probes(features, [ProbeJob("p", points, np.arange(24), np.arange(24, 30))], shape, settings=settings)
    found = probe_logits(features, fits, shape, np.arange(30, 40))[0]
    error = np.linalg.norm(found - points[30:], axis=1).mean()
    assert error < 0.5 * np.linalg.norm(points[:24].mean(0) - points[30:], axis=1).mean()


def test_a_class_that_was_not_looked_for_is_not_learned_as_background():
    rng = np.random.default_rng(5)
    grids = rng.normal(size=(9, 3, 3, 3, 8)).astype(np.float32)
    organs = [np.kron(grid[..., 0] > 0.5, np.ones((2, 2, 2))).astype(np.int64) for grid in grids]
    looked_for = np.ones((9, 2), dtype=bool)
    looked_for[3:, 1] = False
    maps = [organ * int(looked_for[row, 1]) for row, organ in enumerate(organs)]
    shape = VoxelFMProbeConfig(
        task="segmentation", head="decoder", feature_size=8, head_hidden_size=8, id2label={0: "background", 1: "organ"}
    )
    settings = replace(DEFAULT_SETTINGS["decoder"], learning_rate=3e-3, accumulate=1, epochs=8)
    features = ProbeFeatures(patches=lambda row: grids[row])
    task = ProbeJob("m", maps.__getitem__, np.arange(8))
    found = {}
    for name, told in (("told", looked_for.__getitem__), ("not told", None)):
        (fit,) = fit_probes(features, [replace(task, annotated=told)], shape, settings=settings)
        logits = make_probe(shape, [fit], features)(patches=torch.from_numpy(grids[3:8]), size=(6, 6, 6)).logits
        found[name] = logits.softmax(1)[:, 1][torch.from_numpy(np.stack(organs[3:8])) == 1].mean().item()
    assert found["told"] > found["not told"] + 0.1


def test_decoder_learns_a_map_and_skips_what_is_not_annotated():
    rng = np.random.default_rng(4)
    grids = rng.normal(size=(8, 4, 4, 4, 8)).astype(np.float32)
    for grid in grids:
        grid[..., 0] = 3 * np.sign(np.arange(4) - rng.integers(1, 4) + 0.5)  # an organ that fills one side
    masks = [np.kron(grid[..., 0] > 0, np.ones((3, 3, 3))).astype(np.int64) for grid in grids]
    hidden = [mask.copy() for mask in masks]
    for mask in hidden:
        mask[0] = -1
    shape = VoxelFMProbeConfig(
        task="segmentation", head="decoder", feature_size=8, head_hidden_size=16, id2label={0: "background", 1: "organ"}
    )
    settings = replace(DEFAULT_SETTINGS["decoder"], learning_rate=3e-3, accumulate=1, epochs=30)
    features = ProbeFeatures(patches=lambda row: grids[row])
    (fit,) = fit_probes(features, [ProbeJob("m", hidden.__getitem__, np.arange(6), [6])], shape, settings=settings)
    probe = make_probe(shape, [fit], features)
    found = probe.predict(patches=torch.from_numpy(grids[7:]), size=(12, 12, 12)).predictions[0].argmax(0).numpy()
    dice = 2 * (found * masks[7]).sum() / (found.sum() + masks[7].sum())
    assert dice > 0.9
