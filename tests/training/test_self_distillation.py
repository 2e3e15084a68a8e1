"""Student, teacher and their steps, against two optimisation steps of the published code."""

import copy
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.published_names import published_value
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.training.pretrain.collapse import collapse_metrics
from voxelfm_hf.training.pretrain.heads import HeadSettings
from voxelfm_hf.training.pretrain.optimizer import parameter_groups, set_rates
from voxelfm_hf.training.pretrain.self_distillation import LOSSES, LossSettings, Student, Teacher

CONFIG = VoxelFMConfig(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    patch_size=7,
    num_register_tokens=2,
    layerscale_value=0.3,
)
HEAD = HeadSettings(hidden_size=64, bottleneck_size=32, num_prototypes=64)


def make_pair(*, loss: LossSettings | None = None, seed: int = 0, max_logits: int = 2**25, **changes):
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIG)
    config.drop_path_rate = changes.pop("drop_path_rate", 0.0)
    student = Student(config, HeadSettings(64, 32, 64, **changes), loss or LossSettings(), max_logits=max_logits)
    return student, Teacher(student)


def make_batch(seed: int = 0, samples: int = 2, num_locals: int = 3, masked: bool = True):
    generator = torch.Generator().manual_seed(seed)
    global_crops = torch.randn(2 * samples, 1, 21, 21, 21, generator=generator)
    local_crops = torch.randn(num_locals * samples, 1, 14, 14, 14, generator=generator)
    masks = torch.rand(2 * samples, 27, generator=generator) < (0.3 if masked else 0.0)
    return global_crops, local_crops, masks


@pytest.mark.parametrize("max_logits", [2**25, 300])
def test_two_published_steps(parity: Path, max_logits):
    tensors = load_file(parity / "pretraining" / "step.safetensors")
    student = Student(CONFIG, HEAD, LossSettings(), max_logits=max_logits)
    teacher = Teacher(student)
    for name, module in (("student", student), ("teacher", teacher)):
        for key, parameter in module.named_parameters():
            parameter.data.copy_(published_value(tensors, f"input.{name}.", key))
    optimizer = torch.optim.AdamW(parameter_groups(student, num_layers=2), betas=(0.9, 0.999))
    tiny_gradient: dict[str, torch.Tensor] = {}
    for step, (temperature, rate, last_rate) in enumerate([(0.04, 1e-3, 0.0), (0.055, 2e-3, 2e-3)]):
        inputs = {kind: tensors[f"step{step}.input.{kind}"] for kind in ("global_crops", "local_crops", "masks")}
        global_crops, local_crops = inputs["global_crops"].float()[:, None], inputs["local_crops"].float()[:, None]
        student.train()
        output = teacher(global_crops, inputs["masks"], temperature=temperature)
        losses = student(global_crops, local_crops, inputs["masks"], output)
        expected = {
            "total": "loss_total",
            "dino_local": "dino_local_crops_loss",
            "dino_global": "dino_global_crops_loss",
            "ibot": "ibot_loss",
        }
        for ours, theirs in expected.items():
            assert losses[ours].item() == pytest.approx(tensors[f"step{step}.output.{theirs}"].item(), rel=1e-5)
        # the published log shows half of the weighted term that enters the total
        logged = tensors[f"step{step}.output.koleo_loss"].item()
        assert 0.1 * losses["koleo"].item() == pytest.approx(2 * logged, rel=1e-5)
        optimizer.zero_grad()
        assert set(losses) == {name for names in LOSSES.values() for name in names}  # each has a place in the picture
        losses["total"].backward()
        compared = 0
        for key, parameter in student.named_parameters():
            tiny_gradient[key] = tiny_gradient.get(key, False) | (parameter.grad.abs() < 1e-7)
            gradient = published_value(tensors, f"step{step}.output.grad.", key)
            if gradient is not None:
                atol = 1e-5 * gradient.abs().max().item()
                torch.testing.assert_close(
                    parameter.grad, gradient, atol=max(atol, 1e-9), rtol=1e-5, msg=lambda m, k=key: k + m
                )
                compared += 1
        assert compared > 40 or step == 1
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        assert norm.item() == pytest.approx(tensors[f"step{step}.output.grad_norm"].item(), rel=1e-5)
        set_rates(optimizer, learning_rate=rate, last_layer_learning_rate=last_rate, weight_decay=0.04)
        optimizer.step()
        teacher.update(student, momentum=0.9)
        for kind in ("dino", "ibot"):
            centre = getattr(teacher, f"{kind}_centre").value
            torch.testing.assert_close(centre, tensors[f"step{step}.output.{kind}_centre"], atol=1e-6, rtol=1e-5)
    compared = 0
    for name, module in (("student", student), ("teacher", teacher)):
        for key, parameter in module.named_parameters():
            wanted = published_value(tensors, f"step1.output.{name}.", key)
            if wanted is not None:
                error = (parameter - wanted).abs()
                assert error[~tiny_gradient[key]].max() < 1e-5, key
                assert error.max() < 6e-3, key  # where a gradient is zero, Adam follows its rounding
                compared += 1
    assert compared >= 22


def test_the_gain_starts_at_one_and_outputs_are_unit_vectors():
    student, _ = make_pair()
    assert torch.equal(student.dino_head.last_layer.parametrizations.weight.original0, torch.ones(64, 1))
    rows = student.dino_head(torch.randn(5, 24))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(student.dino_head.prototypes().norm(dim=1), torch.ones(64))


def test_teacher_ignores_stochastic_depth_and_train():
    student, teacher = make_pair(drop_path_rate=0.5)
    assert teacher.train().training is False and teacher.backbone.config.drop_path_rate == 0.0
    assert student.backbone.config.drop_path_rate == 0.5
    global_crops, _, masks = make_batch()
    first, second = (teacher(global_crops, masks, temperature=0.05) for _ in range(2))
    assert torch.equal(first.cls_targets, second.cls_targets)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_teacher_targets_only_masked_patches():
    _, teacher = make_pair()
    global_crops, _, masks = make_batch()
    output = teacher(global_crops, masks, temperature=0.05)
    assert output.patch_rows.shape[0] == masks.sum()
    torch.testing.assert_close(output.cls_targets.sum(1), torch.ones(4))


@pytest.mark.parametrize("targets", ["centring", "sinkhorn"])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("samples", "num_locals", "masked"), [(2, 3, True), (1, 2, True), (2, 0, True), (2, 3, False)])
def test_losses_are_finite_and_every_parameter_gets_a_gradient(targets, separate, samples, num_locals, masked):
    student, teacher = make_pair(loss=LossSettings(targets=targets), separate_ibot_head=separate)
    global_crops, local_crops, masks = make_batch(samples=samples, num_locals=num_locals, masked=masked)
    losses = student(global_crops, local_crops, masks, teacher(global_crops, masks, temperature=0.05))
    losses["total"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    teacher.update(student, momentum=0.9)


def test_two_micro_batches_accumulate_to_one_large_batch():
    """Equal but for the groups in which KoLeo looks for neighbours, when the masked patches are equally many."""
    weights = LossSettings(koleo_weight=0.0)
    first, second = make_batch(seed=1, samples=2), make_batch(seed=2, samples=2)
    second = (*second[:2], first[2][[1, 0, 3, 2]])

    def joined(parts, views):
        pairs = [part.unflatten(0, (views, -1)) for part in parts]
        return torch.cat(pairs, dim=1).flatten(0, 1)

    large = [joined(parts, views) for parts, views in zip(zip(first, second, strict=True), (2, 3, 2), strict=True)]
    gradients, centres = [], []
    for batches in ([first, second], [large]):
        student, teacher = make_pair(loss=weights)
        for global_crops, local_crops, masks in batches:
            output = teacher(global_crops, masks, temperature=0.05)
            (student(global_crops, local_crops, masks, output)["total"] / len(batches)).backward()
        gradients.append({name: parameter.grad for name, parameter in student.named_parameters()})
        teacher.update(student, momentum=0.9)
        centres.append((teacher.dino_centre.value, teacher.ibot_centre.value))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: n + m)
    for accumulated, whole in zip(*centres, strict=True):
        torch.testing.assert_close(accumulated, whole, atol=1e-6, rtol=1e-5)


def test_update_moves_the_teacher_by_one_minus_momentum():
    student, teacher = make_pair()
    before = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.update(student, momentum=0.75)
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.25)


def test_a_skipped_step_leaves_the_centres():
    _, teacher = make_pair()
    global_crops, _, masks = make_batch()
    teacher(global_crops * math.nan, masks, temperature=0.05)
    teacher.discard()
    teacher.dino_centre.update()
    assert torch.equal(teacher.dino_centre.value, torch.zeros(1, 64))


def test_bf16_autocast_stays_close_to_fp32():
    student, teacher = make_pair()
    batch = make_batch()
    values = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = teacher(batch[0], batch[2], temperature=0.07)
            losses = student(*batch, output)
        assert all(value.dtype == torch.float32 for value in losses.values())
        assert output.cls_targets.dtype == torch.float32
        values.append(losses["total"].item())
    assert values[1] == pytest.approx(values[0], rel=0.02)


def test_collapse_metrics_tell_collapse_from_health():
    _, teacher = make_pair()
    global_crops, _, masks = make_batch(samples=4)
    output = teacher(global_crops, masks, temperature=0.05)
    uniform = torch.full((8, 64), 1 / 64)
    one_prototype = torch.nn.functional.one_hot(torch.zeros(8, dtype=torch.long), 64).float()
    spread = torch.nn.functional.one_hot(torch.arange(8), 64).float()
    values = {}
    for name, targets, features in (
        ("uniform", uniform, torch.ones(8, 24)),
        ("one", one_prototype, torch.arange(8.0)[:, None] * torch.ones(24) + torch.eye(8, 24) * 1e-6),
        ("spread", spread, torch.eye(8, 24)),
    ):
        values[name] = collapse_metrics(
            type(output)(**{**output.__dict__, "cls_targets": targets, "features": features}), teacher
        )
    assert values["uniform"]["teacher_entropy"] == pytest.approx(math.log(64), abs=1e-5)
    assert values["uniform"]["teacher_kl_to_uniform"] == pytest.approx(0, abs=1e-5)
    assert values["uniform"]["feature_std"] == pytest.approx(0, abs=1e-6)
    assert values["one"]["teacher_kl_to_uniform"] == pytest.approx(math.log(64), abs=1e-5)
    assert values["one"]["feature_rank"] == pytest.approx(1, abs=1e-3)
    assert values["spread"]["teacher_entropy"] == pytest.approx(0, abs=1e-6)
    assert values["spread"]["teacher_kl_to_uniform"] == pytest.approx(math.log(64 / 8), abs=1e-5)
    assert values["spread"]["feature_rank"] == pytest.approx(7, abs=1e-3)  # centring takes one dimension
