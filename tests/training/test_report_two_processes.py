"""Two gloo processes train a report model as one process with the same batch does."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from tests.eval.report_world import write_bases, write_data
from voxelfm_hf.recipes import load_recipe
from voxelfm_hf.training.report import train_reports
from voxelfm_hf.training.report_recipe import ReportRecipe


def train(folder: Path, out: str, batch_size: int) -> None:
    recipe = load_recipe(folder / "training.yaml", ReportRecipe)
    # Without noise and dropout nothing is drawn while training.
    quiet = replace(recipe.stage1, batch_size=batch_size, total_batch=4, epochs=2, feature_noise=0.0)
    recipe = replace(
        recipe,
        data=replace(recipe.data, reports=str(folder / "labels.csv"), store=str(folder / "store")),
        model=replace(recipe.model, resampler_dropout=0.0),
        stage1=quiet,
        output_dir=str(folder / out),
    )
    train_reports(recipe, stage=1)


def run_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    train(Path(folder), "two", batch_size=1)
    # Everything is written; threads of process groups that still run could abort the process while it ends.
    os._exit(0)


def test_two_processes_learn_what_one_learns(tmp_path):
    write_bases(tmp_path)
    write_data(tmp_path, scans=16)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run_rank, args=(port, str(tmp_path)), nprocs=2)
    train(tmp_path, "one", batch_size=4)
    one, two = (load_file(tmp_path / name / "stage1/model/model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
