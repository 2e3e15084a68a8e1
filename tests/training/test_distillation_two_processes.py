"""Two gloo processes against one process that holds both halves of the batch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.two_processes import in_two_processes
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.training.pretrain.heads import HeadSettings
from voxelfm_hf.training.pretrain.self_distillation import LossSettings, Student, Teacher

TEMPERATURE = 0.05


def make_pair(targets: str) -> tuple[Student, Teacher]:
    torch.manual_seed(0)
    config = VoxelFMConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=7, layerscale_value=0.3
    )
    # KoLeo looks for neighbours on one rank only: its groups differ between the two runs by construction.
    loss = LossSettings(targets=targets, koleo_weight=0.0)
    student = Student(config, HeadSettings(16, 8, 32), loss)
    return student, Teacher(student)


def make_half(rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The share of a rank, view-major; both ranks mask equally many patches."""
    generator = torch.Generator().manual_seed(rank)
    masks = torch.zeros(4, 27, dtype=torch.bool)
    masks[rank, : 5 + rank] = True
    masks[3 - rank, : 9 - rank] = True
    return (
        torch.randn(4, 1, 21, 21, 21, generator=generator),
        torch.randn(6, 1, 14, 14, 14, generator=generator),
        masks,
    )


def run_steps(student: Student, wrapped: torch.nn.Module, teacher: Teacher, batch: tuple) -> dict[str, torch.Tensor]:
    """Two steps of plain gradient descent; weights and centres after them."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(2):
        output = teacher(batch[0], batch[2], temperature=TEMPERATURE)
        optimizer.zero_grad()
        wrapped(*batch, output)["total"].backward()
        optimizer.step()
        teacher.update(student, momentum=0.9)
    state = {**student.state_dict(), **teacher.state_dict(prefix="t.")}
    return {key: (value.full_tensor() if isinstance(value, DTensor) else value).clone() for key, value in state.items()}


def run_rank(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    for targets in ("centring", "sinkhorn"):
        student, teacher = make_pair(targets)
        state = run_steps(student, DistributedDataParallel(student), teacher, make_half(rank))
        torch.save(state, folder / f"{targets}{rank}.pt")
    student, teacher = make_pair("centring")
    for layer in student.backbone.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(student, mesh=init_device_mesh("cpu", (2,)))
    torch.save(run_steps(student, student, teacher, make_half(rank)), folder / f"sharded{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the state of both ranks after a run of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(run_rank, folder)
    return folder


@pytest.mark.parametrize(("case", "targets"), [("centring",) * 2, ("sinkhorn",) * 2, ("sharded", "centring")])
def test_two_ranks_equal_one_process_with_the_whole_batch(two_ranks: Path, case: str, targets: str):
    ranks = [torch.load(two_ranks / f"{case}{rank}.pt", weights_only=True) for rank in (0, 1)]
    halves = [make_half(rank) for rank in (0, 1)]
    whole = tuple(
        torch.cat([part.unflatten(0, (views, -1)) for part in parts], dim=1).flatten(0, 1)
        for parts, views in zip(zip(*halves, strict=True), (2, 3, 2), strict=True)
    )
    student, teacher = make_pair(targets)
    single = run_steps(student, student, teacher, whole)
    for name, value in single.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
