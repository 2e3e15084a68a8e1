"""Fine-tuning on the data of a task: the same rows, targets, splits, heads and metrics as the frozen probe.

`Tuner.fit` gives task data whose features come from the tuned backbone, and a calibrated probe for them, so that a
task's `predict` and `evaluate`, and the benchmark, work on a fine-tuned model as on any other.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.hub import load
from voxelfm_hf.memory import peak_memory_bytes, reset_peak_memory
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.recipes import to_values
from voxelfm_hf.training.finetune import finetune
from voxelfm_hf.training.finetune_features import backbone_features
from voxelfm_hf.training.finetune_settings import Finetuned, FinetuneSettings
from voxelfm_hf.training.input_cache import InputCache
from voxelfm_hf.training.probe_data import ProbeFeatures, ProbeJob
from voxelfm_hf.training.probe_settings import ProbeSettings

PATCH_HEADS = ("pooler", "position", "subpatch", "decoder")


@dataclass(frozen=True)
class Cost:
    """What a fit took.

    Attributes:
        seconds: Of features and probe, or of training.
        peak_memory_mb: Largest memory of a process meanwhile: of the device, or the resident set with all libraries.
        trainable_parameters: Of backbone and head.
    """

    seconds: float
    peak_memory_mb: float
    trainable_parameters: int


@dataclass(frozen=True, eq=False)
class Tuned:
    """A fit of one mode.

    Attributes:
        data: The task data with the features of the tuned backbone.
        probe: Calibrated, for these features.
        cost: Of the fit.
        finetuned: Backbone and history; None for the mode frozen.
    """

    data: TaskData
    probe: VoxelFMProbe
    cost: Cost
    finetuned: Finetuned | None


class Tuner:
    """Fine-tunes one model on one set of prepared inputs; frozen features are computed once.

    Args:
        model: Folder or Hub repository of the backbone.
        inputs: Prepared inputs of all rows.
        settings: Of the fine-tuning.
    """

    def __init__(self, model: str | Path, inputs: InputCache, settings: FinetuneSettings | None = None):
        self.model, self.inputs, self.settings = model, inputs, settings or FinetuneSettings()
        self._frozen: dict[tuple[str, ...], tuple[ProbeFeatures, float]] = {}

    def fit(
        self,
        data: TaskData,
        *,
        mode: str,
        head: str | None = None,
        seed: int = 0,
        train: np.ndarray | None = None,
        probe_settings: ProbeSettings | None = None,
        folder: str | Path | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> Tuned:
        """Fits the frozen probe, and from there the backbone.

        Args:
            data: From a task's `read`; heads on patches start from its features, others from the prepared inputs.
            mode: frozen, lora, last_K or full.
            head: Of the probe; the task's own by default.
            seed: Of probe and training.
            train: Training rows in place of the whole training split.
            probe_settings: How the frozen probe is fitted.
            folder: Of checkpoints; a run found there goes on.
            on_epoch: Called with each epoch.
        """
        module = load_task(data.task)
        train = data.rows("train") if train is None else np.asarray(train)
        reset_peak_memory()
        uses_patches = head in PATCH_HEADS or data.features.cls is None
        features, seconds = (data.features, 0.0) if uses_patches else self._frozen_features(data.ids)
        started = time.perf_counter()
        frozen = replace(data, features=features)
        probe = module.fit(frozen, head=head, settings=probe_settings, train=train, seed=seed)
        parameters = sum(value.numel() for value in probe.head.parameters())
        cost = Cost(seconds + time.perf_counter() - started, peak_memory_bytes() / 2**20, parameters)
        if mode == "frozen":
            return Tuned(frozen, probe, cost, None)
        job = _job(data, train, seed)
        backbone, _ = load(self.model, dtype=torch.float32)
        tuned = finetune(
            backbone,
            probe,
            self.inputs,
            data.ids,
            job,
            mode=mode,
            settings=self.settings,
            folder=folder,
            on_epoch=on_epoch,
        )
        found = backbone_features(tuned.backbone, self.inputs, data.ids, patches=probe.config.uses_patches)
        # The probe is for these features alone: the hash of the base does not fit them.
        changed = replace(data, features=found, run={**data.run, "weight_hash": None})
        tuned.probe.config.fit = {**(probe.config.fit or {}), "fine_tuning": _facts(tuned, self.settings)}
        calibrate = getattr(module, "calibrate", None)
        if calibrate is not None:
            calibrate(tuned.probe, changed, train=train)
        cost = Cost(tuned.seconds, tuned.peak_memory_mb, tuned.trainable_parameters)
        return Tuned(changed, tuned.probe, cost, tuned)

    def _frozen_features(self, ids: Sequence[str]) -> tuple[ProbeFeatures, float]:
        key = tuple(ids)
        if key not in self._frozen:
            started = time.perf_counter()
            backbone: nn.Module = load(self.model, dtype=torch.float32)[0]
            self._frozen[key] = backbone_features(backbone, self.inputs, ids), time.perf_counter() - started
        return self._frozen[key]


def _job(data: TaskData, train: np.ndarray, seed: int) -> ProbeJob:
    """All outputs of the probe together, on the rows that have a label."""
    validation = data.rows("val")
    if data.maps is not None:
        return ProbeJob("label maps", data.maps, train, validation, seed, data.annotated)
    labelled = np.isfinite(data.targets).any(axis=1)
    return ProbeJob("+".join(data.names), data.targets, train[labelled[train]], validation[labelled[validation]], seed)


def _facts(tuned: Finetuned, settings: FinetuneSettings) -> dict[str, Any]:
    return {
        "mode": tuned.mode,
        "best_epoch": tuned.best_epoch,
        "epochs": tuned.epochs,
        "trainable_parameters": tuned.trainable_parameters,
        "settings": to_values(settings),
        "notes": list(tuned.notes),
    }
