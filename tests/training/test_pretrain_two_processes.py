"""A run of two gloo processes that breaks off and goes on, against one that does not."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from tests.training.small_shards import write_shards
from tests.two_processes import free_port, in_two_processes
from voxelfm_hf.recipes import to_recipe
from voxelfm_hf.training.pretrain import loop as pretrain
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe


class Broken(Exception):
    """Stands for whatever ends a process."""


def run(shards: Path, output: Path) -> None:
    values = {
        "data": str(shards),
        "output_dir": str(output),
        "model": {
            "hidden_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "patch_size": 4,
            "drop_path_rate": 0.3,
        },
        "crops": {"global_size": [12, 16], "local_size": [8, 8], "num_locals": 2},
        "head": {"hidden_size": 16, "bottleneck_size": 8, "num_prototypes": 32},
        "optimizer": {"warmup_steps": 2, "last_layer_frozen_steps": 1},
        "run": {
            "total_steps": 4,
            "total_batch": 8,
            "batch_size": 2,
            "mixed_precision": "no",
            "num_workers": 0,
            "log_every": 1,
            "checkpoint_every": 2,
            "trackers": [],
        },
    }
    pretrain.pretrain(to_recipe(values, PretrainRecipe))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_rank(ports: list[int], folder: Path) -> None:
    os.environ["MASTER_PORT"] = str(ports[0])
    run(folder / "shards", folder / "whole")
    step = pretrain.optimiser_step

    def broken(*words, **named):
        if named["step"] == 3:
            raise Broken
        return step(*words, **named)

    pretrain.optimiser_step = broken
    os.environ["MASTER_PORT"] = str(ports[1])
    try:
        run(folder / "shards", folder / "resumed")
    except Broken:
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    pretrain.optimiser_step = step
    os.environ["MASTER_PORT"] = str(ports[2])
    run(folder / "shards", folder / "resumed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    write_shards(folder / "shards", number=10, side=16)
    # A port a run: a rank that is ahead must not meet the store of the run before.
    in_two_processes(run_rank, [free_port() for _ in range(3)], folder)
    return folder / "whole", folder / "resumed"


def test_two_processes_resume_exactly(runs: tuple[Path, Path]):
    whole, resumed = runs
    assert (whole / "log.jsonl").read_text() == (resumed / "log.jsonl").read_text()
    newest = [folder / "checkpoints" / "step-00000004" for folder in runs]
    for name in ("data_position_0.json", "data_position_1.json", "model.safetensors"):
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes(), name
    teachers = [load_file(folder / "teacher" / "model.safetensors") for folder in runs]
    assert all(torch.equal(value, teachers[1][name]) for name, value in teachers[0].items())
    optimizers = [torch.load(path / "optimizer.bin", weights_only=True)["state"] for path in newest]
    for number, state in optimizers[0].items():
        assert all(torch.equal(value, optimizers[1][number][name]) for name, value in state.items())


def test_the_ranks_read_different_samples_and_say_how_many_they_were(runs: tuple[Path, Path]):
    checkpoint = runs[0] / "checkpoints" / "step-00000004"
    positions = [(checkpoint / f"data_position_{rank}.json").read_text() for rank in (0, 1)]
    assert positions[0] != positions[1]
    assert '"num_processes": 2' in (checkpoint / "run.json").read_text()
    assert "on 2 process(es)" in (runs[0] / "README.md").read_text()
