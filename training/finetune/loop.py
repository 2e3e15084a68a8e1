"""Fine-tuning: a backbone and the head of a fitted probe trained together, on the labels the probe was fitted on.

`finetune` starts from the probe (linear probing, then fine-tuning, Kumar et al. 2022): at epoch 0 it *is* the frozen
probe, with the same standardised features, targets, class balance and missing labels. The epoch of the best validation
score is kept, which may be epoch 0. Modes: frozen, lora (adapters of peft), last_K (the last K blocks and the final
norm), full.

Survival takes one step an epoch on the full risk sets (`finetune_step`). Under `accelerate launch` every process takes
its share of each batch; heads without dropout then come out as on one process. `voxelfm finetune` is the command; this
file knows neither label tables nor metrics.
"""

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from voxelfm_hf.files import written_file
from voxelfm_hf.memory import peak_memory_bytes, reset_peak_memory
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.training import schedules
from voxelfm_hf.training.checkpoints import Checkpoints
from voxelfm_hf.training.finetune.input_cache import InputCache
from voxelfm_hf.training.finetune.model import (
    TunableModel,
    load_trained_state,
    make_trainable,
    parameter_groups,
    trained_state,
)
from voxelfm_hf.training.finetune.settings import Finetuned, FinetuneSettings
from voxelfm_hf.training.finetune.step import TuningLoss, seed_of
from voxelfm_hf.training.launch import any_rank, open_accelerator, stop_signals
from voxelfm_hf.training.network_options import choose_attention
from voxelfm_hf.training.probe.data import ProbeJob
from voxelfm_hf.training.probe.loop import prevalence_shift, shifted
from voxelfm_hf.training.probe.stacks import State
from voxelfm_hf.training.run_folder import CHECKPOINTS_FOLDER
from voxelfm_hf.volumes.errors import RecipeError, VoxelFMError

logger = logging.getLogger(__name__)

LAST_RATE = 0.01
# Beside the checkpoints of an unfinished fit: what it is a fit of.
FACTS = "fit.json"


def finetune(
    backbone: VoxelFMModel,
    probe: VoxelFMProbe,
    inputs: InputCache,
    ids: Sequence[str],
    job: ProbeJob,
    *,
    mode: str,
    settings: FinetuneSettings | None = None,
    folder: str | Path | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Finetuned:
    """Trains a backbone together with the head of a probe; a collective call under `accelerate launch`.

    Args:
        backbone: The encoder in fp32; it is changed in place.
        probe: Fitted on the frozen features of this backbone with the rows and targets of the job.
        inputs: Prepared inputs of all rows.
        ids: The id of each row.
        job: Targets, rows and seed, all outputs of the probe together.
        mode: frozen, lora, last_K or full.
        settings: How to train.
        folder: Where checkpoints are kept while training; a run found there goes on with the result it would have had.
        on_epoch: Called with each entry of the history.

    Returns:
        The fine-tuned backbone with its head, not calibrated yet.

    Raises:
        RecipeError: a mode that does not exist, or a folder with checkpoints of other settings.
        VoxelFMError: asked to stop by a signal; the same call goes on.
    """
    settings = settings or FinetuneSettings()
    settings.check_task(probe.config.task)
    accelerator = open_accelerator(settings.mixed_precision)
    torch.manual_seed(job.seed)
    tunable: Any = make_trainable(backbone, mode, settings)
    if mode == "frozen":
        return Finetuned(mode, tunable.eval(), probe, float("nan"), 0, 0, 0.0, 0.0, 0, [])
    choose_attention(tunable, accelerator)
    run = _Run(accelerator, tunable, probe, inputs, ids, job, mode, settings)
    if folder is not None:
        run.keep_checkpoints(Path(folder))
    signals: AbstractContextManager = stop_signals() if folder is not None else nullcontext([])
    with signals as asked_to_stop:
        run.train(asked_to_stop, on_epoch)
    return run.finish()


class Progress:
    """Where a run stands beside its weights, kept in its checkpoints."""

    def __init__(self) -> None:
        self.best_score, self.best_epoch, self.stalled, self.seconds, self.peak_mb = -math.inf, 0, 0, 0.0, 0.0
        self.best_state: State = {}
        self.history: list[dict[str, Any]] = []
        self.losses: list[float] = []  # of the epoch under way

    def state_dict(self) -> dict[str, Any]:
        """For `accelerate`."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For `accelerate`."""
        vars(self).update(state)


class _Run:
    """One fine-tuning from its first step to its last."""

    def __init__(
        self,
        accelerator: Accelerator,
        backbone: Any,
        probe: VoxelFMProbe,
        inputs: InputCache,
        ids: Sequence[str],
        job: ProbeJob,
        mode: str,
        settings: FinetuneSettings,
    ):
        self.accelerator, self.backbone, self.probe = accelerator, backbone, probe
        self.job, self.mode, self.settings = job, mode, settings
        self.shift = _balanced_shift(job, probe.config, settings)
        state = {name: value.detach().clone() for name, value in probe.head.state_dict().items()}
        start = shifted(state, probe.config, None if self.shift is None else -self.shift)
        plain = TunableModel(backbone, probe, start)
        layers = backbone.config.num_hidden_layers
        optimizer = torch.optim.AdamW(parameter_groups(plain, mode, settings, int(layers)))
        self.trainable_parameters = sum(value.numel() for value in plain.parameters() if value.requires_grad)
        self.model, self.optimizer = accelerator.prepare(plain.to(accelerator.device), optimizer)
        self.loss = TuningLoss(accelerator, self.model, inputs, ids, job, probe.config, settings)
        self.progress, self.first = Progress(), (1, 0)
        self.checkpoints: Checkpoints | None = None
        train = np.asarray(job.train)
        full = settings.batch_size is None or probe.config.family.risk_sets
        self.batch_size = len(train) if full else min(settings.batch_size or 1, len(train))
        self.steps_an_epoch = math.ceil(len(train) / self.batch_size)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak_memory()

    def keep_checkpoints(self, folder: Path) -> None:
        """Goes on where the folder's newest checkpoint stands, and writes further ones into it."""
        facts = {
            "mode": self.mode,
            "settings": asdict(self.settings),
            "seed": self.job.seed,
            "probe": self.probe.config.task + "/" + self.probe.config.head,
            "rows": hashlib.sha256(np.concatenate([self.job.train, [-1], self.job.validation]).tobytes()).hexdigest(),
        }
        facts = json.loads(json.dumps(facts))
        path = folder / FACTS
        if path.is_file() and json.loads(path.read_text()) != facts:
            raise RecipeError(f"{folder} holds an unfinished fit with other settings: name a new folder or delete it")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with written_file(path) as temporary:
                temporary.write_text(json.dumps(facts, indent=1))
        self.accelerator.register_for_checkpointing(self.progress)
        self.checkpoints = Checkpoints(folder / CHECKPOINTS_FOLDER, self.accelerator, keep_last=1, keep_every=0)
        newest = self.checkpoints.newest()
        if newest is not None:
            _, position = self.checkpoints.load(newest)
            self.first = (position["epoch"], position["step"])
            logger.info("going on in epoch %d", self.first[0])

    def train(self, asked_to_stop: list[int], on_epoch: Callable[[dict[str, Any]], None] | None) -> None:
        """Trains until the validation score has stalled or all epochs are done."""
        settings, progress, watched = self.settings, self.progress, len(self.job.validation) > 0
        started = time.perf_counter()
        if not progress.history:
            entry = {"epoch": 0, "loss": None, "score": self.loss.validate() if watched else None}
            self._note(entry, on_epoch)
        for epoch in range(self.first[0], settings.epochs + 1):
            if progress.stalled >= settings.patience:
                break
            order = np.random.default_rng(seed_of(self.job.seed, 0, epoch)).permutation(self.job.train)
            first_step = self.first[1] if epoch == self.first[0] else 0
            for step in range(first_step, self.steps_an_epoch):
                progress.losses.append(self._step(order, epoch, step))
                if self.checkpoints is not None and any_rank(self.accelerator, bool(asked_to_stop)):
                    self._leave(started, epoch, step + 1)
            entry = {
                "epoch": epoch,
                "loss": float(np.mean(progress.losses)),
                "score": self.loss.validate() if watched else None,
            }
            progress.losses = []
            self._note(entry, on_epoch)
            if self.checkpoints is not None and epoch < settings.epochs:
                self._count(started)
                started = time.perf_counter()
                self.checkpoints.save(epoch * self.steps_an_epoch, position={"epoch": epoch + 1, "step": 0})
        self._count(started)

    def finish(self) -> Finetuned:
        """The best epoch, with the head as a probe; checkpoints are removed."""
        progress, config = self.progress, self.probe.config
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        load_trained_state(model, progress.best_state)
        model.requires_grad_(False)
        (state,) = model.head.states()
        state = shifted({name: value.cpu() for name, value in state.items()}, config, self.shift)
        fresh = VoxelFMProbe(VoxelFMProbeConfig.from_dict(_uncalibrated(config)))
        fresh.head.load_state_dict(state)
        fresh.feature_mean.copy_(self.probe.feature_mean)
        fresh.feature_scale.copy_(self.probe.feature_scale)
        if self.checkpoints is not None and self.accelerator.is_main_process:
            shutil.rmtree(self.checkpoints.folder, ignore_errors=True)
            (self.checkpoints.folder.parent / FACTS).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        notes = []
        if not len(self.job.validation):
            notes.append("no validation rows: the last epoch was kept")
        elif progress.best_epoch == 0:
            notes.append("no epoch was better on the validation rows than the frozen probe, which was kept")
        peak = torch.tensor([progress.peak_mb], device=self.accelerator.device)
        return Finetuned(
            mode=self.mode,
            backbone=self.backbone.eval(),
            probe=fresh.eval(),
            score=progress.best_score if len(self.job.validation) else math.nan,
            best_epoch=progress.best_epoch,
            epochs=len(progress.history) - 1,
            seconds=progress.seconds,
            peak_memory_mb=float(self.accelerator.gather(peak).max()),
            trainable_parameters=self.trainable_parameters,
            history=progress.history,
            notes=tuple(notes),
        )

    def _step(self, order: np.ndarray, epoch: int, step: int) -> float:
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        warmup = max(1, round(self.settings.warmup_epochs * self.steps_an_epoch))
        factor = schedules.learning_rate(
            peak=1.0,
            end=LAST_RATE,
            warmup_steps=warmup,
            total_steps=self.settings.epochs * self.steps_an_epoch,
            start=1 / (warmup + 1),
        )((epoch - 1) * self.steps_an_epoch + step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.zero_grad()
        loss = self.loss.backward(rows, epoch=epoch, step=step)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            raise VoxelFMError(
                f"The loss of {self.job.name} is not finite in epoch {epoch}: lower learning_rate or check the labels."
            )
        self.optimizer.step()
        return loss

    def _note(self, entry: dict[str, Any], on_epoch: Callable[[dict[str, Any]], None] | None) -> None:
        """Keeps an epoch if it is the best; without validation rows the newest is."""
        progress, score = self.progress, entry["score"]
        progress.history.append(entry)
        if score is None or score > progress.best_score:
            progress.best_score = -math.inf if score is None else score
            progress.best_epoch, progress.stalled = entry["epoch"], 0
            progress.best_state = trained_state(self.accelerator.unwrap_model(self.model))
        else:
            progress.stalled += 1
        if on_epoch and self.accelerator.is_main_process:
            on_epoch(entry)

    def _count(self, started: float) -> None:
        self.progress.seconds += time.perf_counter() - started
        held = peak_memory_bytes()
        if self.accelerator.device.type == "cuda":
            held = torch.cuda.max_memory_allocated()
        self.progress.peak_mb = max(self.progress.peak_mb, held / 2**20)

    def _leave(self, started: float, epoch: int, step: int) -> None:
        self._count(started)
        assert self.checkpoints is not None
        self.checkpoints.save((epoch - 1) * self.steps_an_epoch + step, position={"epoch": epoch, "step": step})
        raise VoxelFMError(f"Asked to stop in epoch {epoch} of {self.job.name}: the same command goes on from there.")


def _balanced_shift(job: ProbeJob, config: VoxelFMProbeConfig, settings: FinetuneSettings) -> torch.Tensor | None:
    """What the probe's bias gained after its balanced fit; training goes on without it."""
    if not config.family.balanced or not settings.balance or callable(job.targets):
        return None
    targets = torch.from_numpy(np.array(job.targets, dtype=np.float32))
    return prevalence_shift(targets[torch.as_tensor(np.asarray(job.train))], config)


def _uncalibrated(config: VoxelFMProbeConfig) -> dict[str, Any]:
    """The configuration without what was chosen for, or measured with, the frozen features."""
    values = config.to_dict()
    chosen = ("temperature", "threshold", "interval_half_width", "interval_level", "baseline_times", "baseline_hazard")
    for name in (*chosen, "metrics", "fit", "base_model_hash"):
        values[name] = None
    return values
