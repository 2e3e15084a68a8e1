"""Parameter groups against the published multipliers."""

import json
from pathlib import Path

import pytest
import torch

from tests.training.published_names import published_name
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.training.layer_rates import multipliers
from voxelfm_hf.training.pretrain.heads import HeadSettings
from voxelfm_hf.training.pretrain.optimizer import make_adamw, parameter_groups, set_rates
from voxelfm_hf.training.pretrain.self_distillation import LossSettings, Student

HEAD = HeadSettings(hidden_size=8, bottleneck_size=4, num_prototypes=6)


def make_student(num_layers: int = 2, **changes) -> Student:
    config = VoxelFMConfig(hidden_size=24, num_hidden_layers=num_layers, num_attention_heads=2, patch_size=7, **changes)
    return Student(config, HEAD, LossSettings())


@pytest.mark.parametrize(
    ("case", "num_layers", "swiglu"), [("backbone_depth12_mlp", 12, False), ("dino_head", 2, False)]
)
def test_published_multipliers(parity: Path, case, num_layers, swiglu):
    published = json.loads((parity / "pretraining" / "param_groups.json").read_text())[case]
    student = make_student(num_layers, use_swiglu_ffn=swiglu)
    part = "dino_head" if case == "dino_head" else "backbone"
    seen = set()
    for name, _ in getattr(student, part).named_parameters():
        theirs = published_name(name)
        rate, decay, is_last = multipliers(f"{part}.{name}", num_layers=num_layers)
        assert rate == pytest.approx(published[theirs][0], rel=1e-12), name
        assert [decay, is_last] == published[theirs][1:], name
        seen.add(theirs)
    assert seen == set(published)


def test_swiglu_layers_have_the_published_multipliers(parity: Path):
    published = json.loads((parity / "pretraining" / "param_groups.json").read_text())["backbone_depth2_swiglu"]
    for name, theirs in (("gate_proj", "w12"), ("up_proj", "w12"), ("down_proj", "w3")):
        for kind in ("weight", "bias"):
            ours = multipliers(f"backbone.layers.1.mlp.{name}.{kind}", num_layers=2)
            assert list(ours) == pytest.approx(published[f"blocks.1.mlp.{theirs}.{kind}"])


def test_groups_hold_every_parameter_once_and_take_the_rates_of_a_step():
    student = make_student()
    groups = parameter_groups(student, num_layers=2)
    assert sum(len(group["params"]) for group in groups) == len(list(student.parameters()))
    optimizer = torch.optim.AdamW(groups)
    set_rates(optimizer, learning_rate=2.0, last_layer_learning_rate=0.0, weight_decay=0.5)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(student.dino_head.last_layer.parametrizations.weight.original1)] == (0.0, 0.5)
    assert rates[id(student.backbone.norm.weight)] == (2.0, 0.0)
    assert rates[id(student.backbone.layers[1].mlp.up_proj.weight)] == (pytest.approx(1.8), 0.5)
    assert rates[id(student.backbone.embeddings.cls_token)] == (pytest.approx(2.0 * 0.9**3), 0.5)


def test_the_fused_optimiser_takes_the_steps_of_torchs_default():
    students = [make_student() for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    ours = make_adamw(parameter_groups(students[0], num_layers=2), device=torch.device("cpu"))
    plain = torch.optim.AdamW(parameter_groups(students[1], num_layers=2))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for optimizer in (ours, plain):
            set_rates(optimizer, learning_rate=1e-2, last_layer_learning_rate=0.0, weight_decay=0.1)
        for own, other in zip(students[0].parameters(), students[1].parameters(), strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            other.grad = own.grad.clone()
        ours.step()
        plain.step()
    for own, other in zip(students[0].parameters(), students[1].parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-5)
