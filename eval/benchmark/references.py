"""The two ends of the scale beside every number: features that are the answer, and features that are noise.

A probe that stays below the ceiling, or above the floor, is broken or the labels leak; the gap between an encoder and
the ceiling is what its features lack.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from voxelfm_hf.eval.benchmark.recipe import TaskRecipe
from voxelfm_hf.eval.labels import LabelTable, number_target
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.eval.tasks.localization import CACHED_GRIDS
from voxelfm_hf.modeling.probe_heads_voxelfm import pooled_grid
from voxelfm_hf.training.probe.data import ProbeFeatures

CEILING, FLOOR = "ceiling", "floor"
SENTENCES = {
    CEILING: "the features are the targets themselves; for segmentation the shares of the classes in patch octants",
    FLOOR: "the features are Gaussian noise",
}
NOISE_CHANNELS = 16


def with_reference(data: TaskData, task: TaskRecipe, labels: LabelTable, kind: str, *, seed: int) -> TaskData:
    """The same task with other features.

    Args:
        data: Task data of any encoder that has what the task needs.
        task: The task.
        labels: The rows of the data, for the columns of `task.ceiling`.
        kind: "ceiling" or "floor".
        seed: Of the noise.
    """
    if task.uses_patches:
        maker = _ceiling_patches if kind == CEILING else _noise_patches
        limit = data.options.get("max_positions")  # localisation: as many patches as the encoders' own

        def patches(row: int) -> np.ndarray:
            return pooled_grid(torch.from_numpy(maker(data, row, seed)), limit).numpy()

        # Grids that are averaged down are small, and asked for in every epoch.
        cached = lru_cache(maxsize=CACHED_GRIDS)(patches) if limit is not None else patches
        return replace(data, features=ProbeFeatures(patches=cached))
    if kind == CEILING:
        features = _answers(data, task, labels)
    else:
        features = np.random.default_rng([seed, 1]).normal(size=(len(data.ids), _width(data)))
    return replace(data, features=ProbeFeatures(cls=torch.from_numpy(np.asarray(features, dtype=np.float32))))


def _answers(data: TaskData, task: TaskRecipe, labels: LabelTable) -> np.ndarray:
    """(n, k) features that know the answer; unknown ones are 0."""
    if task.ceiling:
        position = {identifier: row for row, identifier in enumerate(labels.ids)}
        columns = np.stack([number_target(labels, name) for name in task.ceiling], axis=1)
        return np.nan_to_num(columns[[position[identifier] for identifier in data.ids]])
    return np.nan_to_num(task.module.ceiling(data).astype(float))


def _width(data: TaskData) -> int:
    return NOISE_CHANNELS if data.features.cls is None else data.features.cls.shape[1]


def _noise_patches(data: TaskData, row: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 2, row]).normal(size=(*data.grids[row], NOISE_CHANNELS)).astype(np.float32)


def _ceiling_patches(data: TaskData, row: int, seed: int) -> np.ndarray:
    grid = tuple(int(n) for n in data.grids[row])
    if data.maps is not None:
        voxels = data.options["voxels_per_patch"]
        parts = 2 if voxels % 2 == 0 else 1
        d, h, w = grid
        # Axes: patch, part of the patch and voxel of the part, along z, y and x.
        classes = data.maps(row).reshape(*(m for n in (d, h, w) for m in (n, parts, voxels // parts)))
        shares = [(classes == number).mean(axis=(2, 5, 8)) for number in range(len(data.names))]
        octants = np.stack(shares, axis=-1).transpose(0, 2, 4, 1, 3, 5, 6)
        return octants.reshape(d, h, w, -1).astype(np.float32)
    # Four channels a point, as heads with attention need: how near a patch is, at several scales.
    centres = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in grid), indexing="ij"), axis=-1)
    channels = []
    for point in data.targets[row].reshape(-1, 3) * grid:
        distance = np.linalg.norm(centres - point, axis=-1)
        near = [np.exp(-((distance / scale) ** 2) / 2) for scale in (0.7, 1.5, 3.0)]
        channels += [np.nan_to_num(values) for values in (*near, np.minimum(distance, 10) / 10)]
    return np.stack(channels, axis=-1).astype(np.float32)
