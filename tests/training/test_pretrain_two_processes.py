"""A run of two gloo processes that breaks off and goes on, against one that does not."""

import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from tests.training.small_shards import write_shards
from tests.two_processes import free_port, in_two_processes
from voxelfm_hf.recipes import to_recipe
from voxelfm_hf.training.pretrain import loop as pretrain
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe
from voxelfm_hf.training.run_folder import LOG_FILE, RunLog

destroy_process_group = dist.destroy_process_group


class Broken(Exception):
    """Stands for whatever ends a process."""


# As `accelerate launch --config_file training/launchers/fsdp2.yaml` sets them.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "VoxelFMLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def run(shards: Path, output: Path, *, mixed_precision: str = "no") -> None:
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
            "mixed_precision": mixed_precision,
            "num_workers": 0,
            "log_every": 1,
            "checkpoint_every": 2,
            "trackers": [],
        },
    }
    pretrain.pretrain(to_recipe(values, PretrainRecipe))
    assert not dist.is_initialized()


def destroy_without_model(*words) -> None:
    """A model freed after its gloo group can wait for ever, so none may be left when the group is closed."""
    assert not any(type(thing) is DistributedDataParallel for thing in gc.get_objects())
    destroy_process_group(*words)


def forget_run() -> None:
    """Accelerate keeps one state a process; every run is its own."""
    if dist.is_initialized():  # a broken run leaves its group open
        gc.collect()
        destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def broken_run(shards: Path, output: Path, **settings: str) -> None:
    """A run that ends in its third step of four."""
    step = pretrain.optimiser_step

    def broken(*words, **named):
        if named["step"] == 3:
            raise Broken
        return step(*words, **named)

    pretrain.optimiser_step = broken
    try:
        run(shards, output, **settings)
    except Broken:
        pass
    finally:
        pretrain.optimiser_step = step


def run_rank(ports: list[int], folder: Path) -> None:
    dist.destroy_process_group = destroy_without_model
    for port, work, name in zip(ports, (run, broken_run, run), ("whole", "resumed", "resumed"), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        work(folder / "shards", folder / name)
        forget_run()


def run_sharded_rank(ports: list[int], folder: Path) -> None:
    os.environ["MASTER_PORT"] = str(ports[0])
    run(folder / "shards", folder / "unsharded", mixed_precision="bf16")
    forget_run()
    os.environ.update(FSDP2)
    for port, work, name in zip(ports[1:], (run, broken_run, run), ("whole", "resumed", "resumed"), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        # Accelerate shards on GPUs only. The devices stay CPUs: only its question whether these are GPUs is answered.
        PartialState(cpu=True)._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        work(folder / "shards", folder / name, mixed_precision="bf16")
        forget_run()


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


@pytest.fixture(scope="module")
def sharded_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    write_shards(folder / "shards", number=10, side=16)
    in_two_processes(run_sharded_rank, [free_port() for _ in range(4)], folder)
    return folder


def teacher_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "teacher" / "model.safetensors")


def test_sharded_training_in_bf16_learns_what_unsharded_training_does(sharded_runs: Path):
    checkpoint = sharded_runs / "whole" / "checkpoints" / "step-00000004"
    assert not (checkpoint / "model.safetensors").exists(), "the run was not sharded"
    entries = [RunLog(sharded_runs / name / LOG_FILE).entries() for name in ("unsharded", "whole")]
    for unsharded, sharded in zip(*entries, strict=True):
        assert sharded["total"] == pytest.approx(unsharded["total"], rel=1e-4)
    weights, others = (teacher_weights(sharded_runs / name) for name in ("unsharded", "whole"))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-4, rtol=0)


def test_sharded_training_resumes_exactly(sharded_runs: Path):
    whole, resumed = sharded_runs / "whole", sharded_runs / "resumed"
    assert (whole / LOG_FILE).read_text() == (resumed / LOG_FILE).read_text()
    weights, others = teacher_weights(whole), teacher_weights(resumed)
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
