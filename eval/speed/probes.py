"""Time of a label-efficiency grid of small probes: labels x seeds x fractions on the CLS vectors of one store."""

import os
import time

import numpy as np
import torch

from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.eval.tasks.grid import fit_grid
from voxelfm_hf.training.probe.data import ProbeFeatures

FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def grid_data(*, scans: int, labels: int, width: int) -> TaskData:
    """Random features and labels that follow from them with noise; 70 % train, 10 % val, 20 % test."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(scans, width))
    scores = features @ rng.normal(size=(width, labels)) / np.sqrt(width) + rng.normal(size=(scans, labels))
    splits = np.array(["train"] * 7 + ["val"] + ["test"] * 2)[np.arange(scans) % 10]
    return TaskData(
        task="classification",
        ids=[str(row) for row in range(scans)],
        features=ProbeFeatures(cls=torch.from_numpy(features.astype(np.float32))),
        targets=(scores > rng.normal(0.5, 0.5, size=labels)).astype(float),
        names=[f"finding {number}" for number in range(labels)],
        splits=splits,
        groups=np.arange(scans),
        subgroups={},
        run={},
        affines=np.zeros((scans, 4, 4)),
        grids=np.ones((scans, 3), dtype=int),
        options={"exclusive": False, "head": "linear"},
    )


def grid_speed(*, scans: int, labels: int, seeds: int, width: int) -> str:
    """Wall-clock and processor seconds of all fits and their test predictions."""
    data = grid_data(scans=scans, labels=labels, width=width)
    start, worked = time.perf_counter(), time.process_time()
    fits = fit_grid(data, fractions=FRACTIONS, seeds=range(seeds))
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    return (
        f"grid, {labels} labels x {seeds} seeds x {len(FRACTIONS)} fractions = {len(fits)} fits on {scans} scans of "
        f"width {width}: {seconds:.0f} s, {worked:.0f} processor seconds, {torch.get_num_threads()} threads of "
        f"{os.cpu_count()} cores"
    )
