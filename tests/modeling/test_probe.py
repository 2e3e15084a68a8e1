import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter
from safetensors.torch import load_file

from voxelfm_hf.modeling.configuration_voxelfm_probe import HEADS_OF_TASK, VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.modeling.probe_heads_voxelfm import HEADS, patch_positions
from voxelfm_hf.modeling.probe_losses_voxelfm import cox_loss
from voxelfm_hf.training.probe.settings import DEFAULT_SETTINGS


@pytest.fixture(scope="module")
def published(parity):
    return load_file(parity / "probes" / "heads.safetensors")


def loaded(config, published, prefix, names):
    """A probe in evaluation mode with published weights under our names."""
    probe = VoxelFMProbe(config).eval()
    state = probe.head.state_dict()
    for ours, theirs in names.items():
        weight = published[f"{prefix}.weight.{theirs}"].float()
        state[ours] = weight.reshape(state[ours].shape)
    assert set(names) == set(state)
    probe.head.load_state_dict(state)
    return probe


ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


def test_every_head_belongs_to_a_task_and_can_be_fitted_unless_it_keeps_its_scans():
    assert {head for heads in HEADS_OF_TASK.values() for head in heads} == set(HEADS)
    assert set(HEADS) - set(DEFAULT_SETTINGS) == {"knn"}


@torch.no_grad()
def test_mlp_is_the_published_one(published):
    config = VoxelFMProbeConfig(head="mlp", feature_size=24, head_hidden_size=40, id2label={0: "finding"})
    names = {
        "hidden.weight": "mlp.0.weight",
        "hidden.bias": "mlp.0.bias",
        "weight": "mlp.3.weight",
        "bias": "mlp.3.bias",
    }
    probe = loaded(config, published, "mlp", names)
    found = probe(cls=published["mlp.input"]).logits[:, 0]
    torch.testing.assert_close(found, published["mlp.output"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_attention_pooler_is_the_published_one(published):
    config = VoxelFMProbeConfig(head="pooler", feature_size=24, head_hidden_size=16, id2label={0: "finding"})
    names = {"query": "queries", "project.weight": "token_proj.weight", "project.bias": "token_proj.bias"}
    names |= {f"attention.{name}": f"attn.{name}" for name in ATTENTION}
    names |= {"classifier.weight": "classifier.1.weight", "classifier.bias": "classifier.1.bias"}
    probe = loaded(config, published, "pooler", names)
    tokens, mask = published["pooler.input.tokens"], published["pooler.input.mask"]
    found = probe(patches=tokens[:, None, None], patch_mask=mask[:, None, None]).logits[:, 0]
    torch.testing.assert_close(found, published["pooler.output"], atol=1e-5, rtol=0)


@pytest.fixture
def position_probe(published):
    config = VoxelFMProbeConfig(
        task="localization", head="position", feature_size=24, head_hidden_size=20, position_grid="corners"
    )
    names = {"position.weight": "pos_linear.weight", "position.bias": "pos_linear.bias"}
    names |= {f"attention.{name}": f"attn.{name}" for name in ATTENTION}
    names |= {"hidden.weight": "spatial_attn.0.weight", "hidden.bias": "spatial_attn.0.bias"}
    names |= {"score.weight": "spatial_attn.2.weight", "score.bias": "spatial_attn.2.bias"}
    return loaded(config, published, "localisation", names)


@torch.no_grad()
def test_position_regressor_is_the_published_one(published, position_probe):
    for case in ("", "_flat"):
        found = position_probe(patches=published[f"localisation.input{case}"]).logits
        torch.testing.assert_close(found, published[f"localisation.output{case}"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_does_not_move_the_point(published, position_probe):
    patches = published["localisation.input"]
    padded, mask = torch.full((2, 4, 4, 7, 24), 9.0), torch.zeros((2, 4, 4, 7), dtype=torch.bool)
    padded[:, :3, :, :5], mask[:, :3, :, :5] = patches, True
    for grid in ("corners", "centres"):
        position_probe.head.position_grid = grid
        alone, beside = position_probe(patches=patches), position_probe(patches=padded, patch_mask=mask)
        torch.testing.assert_close(beside.logits, alone.logits, atol=1e-6, rtol=0)


@torch.no_grad()
def test_voxel_decoder_is_the_published_one(published):
    config = VoxelFMProbeConfig(
        task="segmentation", head="decoder", feature_size=24, id2label={i: str(i) for i in range(5)}
    )
    probe = VoxelFMProbe(config).eval()
    for number, (name, parameter) in enumerate(probe.head.named_parameters(), start=1):
        index = np.arange(parameter.numel(), dtype=np.uint64) + np.uint64(1000003 * number)
        u = (index * np.uint64(2654435761) % np.uint64(2**32)).astype(np.float64) / 2**32
        value = (2 * u - 1) * 0.08 + ("norm" in name and name.endswith("weight"))
        parameter.copy_(torch.from_numpy(value.astype(np.float32)).reshape(parameter.shape))
    found = probe(patches=published["segmentation.input"], size=(10, 13, 12)).logits
    torch.testing.assert_close(found, published["segmentation.output"], atol=1e-5, rtol=0)


def test_cox_loss_and_gradient_are_the_published_ones(parity):
    tensors = load_file(parity / "probes" / "metrics.safetensors")
    value = json.loads((parity / "probes" / "metrics.json").read_text())["cox"]["loss"]
    risks = tensors["cox.risks"].clone().requires_grad_()
    targets = torch.stack([tensors["cox.times"], tensors["cox.events"]], dim=-1)
    for ties in ("efron", "breslow"):
        loss = cox_loss(risks[None, :, None], targets[None], torch.ones(1, 40), ties)[0]
        assert loss.item() == pytest.approx(value, abs=1e-6)
        (gradient,) = torch.autograd.grad(loss, risks)
        torch.testing.assert_close(gradient, tensors["cox.grad"], atol=1e-6, rtol=0)


def test_cox_loss_with_ties_is_minimal_where_lifelines_fits():
    rng = np.random.default_rng(0)
    covariates = rng.normal(size=(120, 2))
    life = rng.exponential(np.exp(-covariates @ [0.8, -0.5]))
    censoring = rng.exponential(2.0, 120)
    times, events = np.ceil(4 * np.minimum(life, censoring)), (life <= censoring).astype(float)
    frame = pd.DataFrame({"a": covariates[:, 0], "b": covariates[:, 1], "time": times, "event": events})
    fitted = CoxPHFitter().fit(frame, "time", "event")  # Efron's treatment of ties
    beta = torch.tensor(fitted.params_.to_numpy(), dtype=torch.float64, requires_grad=True)
    risks = (torch.tensor(covariates) @ beta)[None, :, None]
    targets = torch.tensor(np.stack([times, events], axis=-1))[None]
    loss = cox_loss(risks, targets, torch.ones(1, 120))[0]
    assert loss.item() == pytest.approx(-fitted.log_likelihood_ / events.sum(), abs=1e-8)
    (gradient,) = torch.autograd.grad(loss, beta)
    assert gradient.abs().max() < 1e-5


def test_cox_loss_ignores_rows_out_of_the_fit_and_survives_large_risks():
    generator = torch.Generator().manual_seed(0)
    risks = torch.randn(1, 30, 1, generator=generator)
    targets = torch.stack([torch.rand(30, generator=generator), torch.ones(30)], -1)[None]
    weights = (torch.arange(30) < 20).float()[None]
    alone = cox_loss(risks[:, :20], targets[:, :20], torch.ones(1, 20))
    torch.testing.assert_close(cox_loss(risks, targets, weights), alone)
    targets[:, 20:] = torch.nan
    torch.testing.assert_close(cox_loss(risks, targets, torch.ones(1, 30)), alone)
    assert torch.isfinite(cox_loss(2000 * risks, targets, weights)).all()
    assert cox_loss(risks, torch.zeros(1, 30, 2), weights).item() == 0


def config_of(task, **fields):
    names = {0: "first", 1: "second", 2: "third"}
    return VoxelFMProbeConfig(task=task, feature_size=8, id2label=names, **fields)


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        (config_of("classification"), torch.tensor([[1.0, 0, torch.nan]]).repeat(4, 1)),
        (config_of("classification", head="mlp", head_hidden_size=6), torch.zeros(4, 3)),
        (config_of("classification", problem_type="single_label_classification"), torch.tensor([0, 2, -100, 1])),
        (config_of("classification", head="pooler", head_hidden_size=8), torch.ones(4, 3)),
        (config_of("regression", target_mean=[1.0] * 3, target_scale=[2.0] * 3), torch.rand(4, 3)),
        (config_of("survival"), torch.tensor([[1.0, 1], [2, 0], [2, 1], [3, 1]])),
        (config_of("localization", head="position", num_points=2), torch.rand(4, 2, 3)),
        (config_of("segmentation", head="decoder", head_hidden_size=8), torch.randint(-1, 3, (4, 5, 6, 7))),
    ],
)
def test_save_load_loss_and_gradient(config, labels, tmp_path):
    torch.manual_seed(0)
    probe = VoxelFMProbe(config).eval()
    probe.feature_mean.fill_(0.5)
    features = {"cls": torch.randn(4, 8), "patches": torch.randn(4, 2, 3, 2, 8)}
    outputs = probe(**features, labels=labels)
    assert torch.isfinite(outputs.loss)
    outputs.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in probe.parameters())
    probe.save_pretrained(tmp_path)
    again = VoxelFMProbe.from_pretrained(tmp_path)
    assert again.config.id2label == config.id2label
    torch.testing.assert_close(again(**features, labels=labels).logits, outputs.logits, atol=0, rtol=0)
    assert not list(tmp_path.glob("*.bin"))


def test_missing_labels_are_masked_not_imputed():
    probe = VoxelFMProbe(config_of("classification"))
    cls, labels = torch.randn(6, 8), torch.randint(0, 2, (6, 3)).float()
    labels[3:, 1] = torch.nan
    loss = probe(cls=cls, labels=labels).loss
    logits = probe(cls=cls).logits
    known = ~labels.isnan()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
    torch.testing.assert_close(loss, expected)


def test_predictions_are_in_natural_units():
    probe = VoxelFMProbe(config_of("classification", temperature=[2.0, 1, 1], threshold=[0.9, 0.0, 1.0]))
    cls = torch.randn(5, 8)
    found, logits = probe.predict(cls=cls), probe(cls=cls).logits
    torch.testing.assert_close(found.predictions[:, 0], (logits[:, 0] / 2).sigmoid())
    assert found.positive[:, 1].all() and not found.positive[:, 2].any()
    chances = found.predictions[0].tolist()
    probe.config.threshold = [chances[0], chances[1] - 1e-3, chances[2] + 1e-3]
    assert probe.predict(cls=cls[:1]).positive.tolist() == [[True, True, False]]  # reaching it is enough
    exclusive = VoxelFMProbe(config_of("classification", temperature=[2.0], problem_type="single_label_classification"))
    found = exclusive.predict(cls=cls)
    torch.testing.assert_close(found.predictions, (exclusive(cls=cls).logits / 2).softmax(1))
    assert found.positive is None
    fields = {"target_mean": [10.0] * 3, "target_scale": [2.0] * 3, "interval_half_width": [1.0, 2.0, 3.0]}
    probe = VoxelFMProbe(config_of("regression", **fields))
    found = probe.predict(cls=cls)
    torch.testing.assert_close(found.predictions, probe(cls=cls).logits * 2 + 10)
    torch.testing.assert_close(found.high - found.predictions, torch.tensor([[1.0, 2, 3]]).expand(5, 3))
    torch.testing.assert_close(found.predictions - found.low, torch.tensor([[1.0, 2, 3]]).expand(5, 3))


def test_points_come_one_after_the_other_and_chances_of_classes_add_up_in_each_voxel():
    patches = torch.randn(2, 3, 2, 2, 8)
    points = VoxelFMProbe(config_of("localization", head="position", num_points=2))
    logits = points(patches=patches).logits
    torch.testing.assert_close(points.predict(patches=patches).predictions[:, 1], logits[:, 3:])
    maps = VoxelFMProbe(config_of("segmentation", head="subpatch", voxels_per_patch=2))
    found = maps.predict(patches=patches, size=(6, 4, 4)).predictions
    assert found.shape == (2, 3, 6, 4, 4)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 6, 4, 4))


def test_the_loss_of_a_regression_is_in_units_of_the_spread_of_its_targets():
    probe = VoxelFMProbe(config_of("regression", target_mean=[10.0, 0.0, 0.0], target_scale=[2.0, 1.0, 5.0]))
    cls, labels = torch.randn(6, 8), torch.randn(6, 3) * 4
    wanted = (labels - torch.tensor([10.0, 0, 0])) / torch.tensor([2.0, 1, 5])
    expected = torch.nn.functional.mse_loss(probe(cls=cls).logits, wanted)
    torch.testing.assert_close(probe(cls=cls, labels=labels).loss, expected)


def test_survival_curve_steps_at_the_baseline_times_and_stops_with_the_follow_up():
    probe = VoxelFMProbe(config_of("survival", baseline_times=[1.0, 3.0], baseline_hazard=[0.1, 0.5]))
    curve = probe.survival(torch.tensor([[0.0], [np.log(2.0)]]), torch.tensor([0.5, 1.0, 2.9, 3.0, 3.1]))
    expected = np.exp(-np.outer([1, 2], [0, 0.1, 0.1, 0.5]))
    np.testing.assert_allclose(curve[:, :4].numpy(), expected, atol=1e-6)
    assert curve[:, 4].isnan().all()


def test_features_of_other_weights_or_width_are_refused():
    probe = VoxelFMProbe(config_of("classification", base_model_hash="a" * 64))
    probe.check_features("a" * 64)
    for other in ("b" * 64, None):
        with pytest.raises(ValueError, match="embed the scans with that model"):
            probe.check_features(other)
    with pytest.raises(ValueError, match=r"C 8, got \(2, 9\)"):
        probe(cls=torch.zeros(2, 9))
    with pytest.raises(ValueError, match="needs cls"):
        probe(patches=torch.zeros(2, 1, 1, 1, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "triage"}, "task must be"),
        ({"task": "survival", "head": "decoder"}, "has head linear or mlp or pooler"),
        ({"task": "localization", "head": "position", "feature_size": 10}, "multiple of num_attention_heads"),
    ],
)
def test_contradictory_configurations_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        VoxelFMProbeConfig(**fields)


def test_loads_as_remote_code_in_a_process_without_the_package(tmp_path):
    probe = VoxelFMProbe(config_of("classification", head="mlp", head_hidden_size=4))
    probe.save_pretrained(tmp_path / "probe")
    script = (
        "import sys, torch; from transformers import AutoModel\n"
        "probe = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert 'voxelfm_hf' not in sys.modules\n"
        "print(probe.predict(cls=torch.ones(1, 8)).predictions.tolist())"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "probe")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = probe.eval().predict(cls=torch.ones(1, 8)).predictions
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected.numpy(), atol=1e-6)


def test_positions_are_the_centres_of_patches():
    found = patch_positions((1, 2, 4), torch.zeros(1))
    assert found.shape == (1, 2, 4, 3)
    torch.testing.assert_close(found[0, :, 0, 1], torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(found[0, 1, :, 2], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert (found[..., 0] == 0.5).all()
