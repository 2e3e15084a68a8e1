"""Fine-tuning on the data of a task: the same rows, targets, splits, heads and metrics as the frozen probe.

`Tuner.fit` gives task data whose features come from the tuned backbone, and a calibrated probe for them, so that a
task's `predict` and `evaluate`, and the benchmark, work on a fine-tuned model as on any other.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.probes.card import ProbeFacts
from voxelfm_hf.eval.probes.label_check import check_labels
from voxelfm_hf.eval.probes.run import machine, save_probe, score_predictions
from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.failures import FAILURES_FILE, failures_in_a_sentence, write_failures
from voxelfm_hf.features import EmbedOptions, Task, embed_scans, process_state, set_up_processor
from voxelfm_hf.hub import load
from voxelfm_hf.memory import peak_memory_bytes, reset_peak_memory
from voxelfm_hf.modeling.configuration_voxelfm_probe import HEADS_OF_TASK, PATCH_HEADS
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.progress import Counter, Progress, unwatched
from voxelfm_hf.recipes import to_values
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.finetune.features import backbone_features
from voxelfm_hf.training.finetune.files import ADAPTER, MODEL, PROBE, save_backbone
from voxelfm_hf.training.finetune.input_cache import InputCache, prepare_inputs
from voxelfm_hf.training.finetune.loop import finetune
from voxelfm_hf.training.finetune.model import make_trainable
from voxelfm_hf.training.finetune.settings import Finetuned, FinetuneSettings, check_mode
from voxelfm_hf.training.probe.data import ProbeFeatures, ProbeJob
from voxelfm_hf.training.probe.settings import DEFAULT_SETTINGS, ProbeSettings
from voxelfm_hf.volumes.errors import RecipeError, VoxelFMError


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
        progress: Progress = unwatched,
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
            progress: Told how far it is.

        Raises:
            RecipeError: a head without weights, in another mode than frozen.
        """
        module = load_task(data.task)
        if mode != "frozen":
            _check_head(data.task, head or data.options["head"])
        train = data.rows("train") if train is None else np.asarray(train)
        reset_peak_memory()
        uses_patches = head in PATCH_HEADS or data.features.cls is None
        features, seconds = (data.features, 0.0) if uses_patches else self._frozen_features(data.ids, progress)
        started = time.perf_counter()
        frozen = replace(data, features=features)
        told = partial(progress, "frozen probe")
        probe = module.fit(frozen, head=head, settings=probe_settings, train=train, seed=seed, on_epoch=told)
        parameters = sum(value.numel() for value in probe.head.parameters())
        cost = Cost(seconds + time.perf_counter() - started, peak_memory_bytes() / 2**20, parameters)
        if mode == "frozen":
            return Tuned(frozen, probe, cost, None)
        job = _job(data, train, seed)
        backbone, _ = load(self.model, dtype=torch.float32)
        settings = self.settings
        if probe_settings is not None:
            settings = replace(settings, balance=probe_settings.balance)

        def note(entry: dict[str, Any]) -> None:
            progress("training", entry["epoch"], settings.epochs)
            if on_epoch:
                on_epoch(entry)

        progress("training", 0, settings.epochs)
        tuned = finetune(
            backbone,
            probe,
            self.inputs,
            data.ids,
            job,
            mode=mode,
            settings=settings,
            folder=folder,
            on_epoch=note,
        )
        told, patches = partial(progress, "tuned features"), probe.config.uses_patches
        found = backbone_features(tuned.backbone, self.inputs, data.ids, patches=patches, on_batch=told)
        # The probe is for these features alone: the hash of the base does not fit them.
        changed = replace(data, features=found, run={**data.run, "weight_hash": None})
        tuned.probe.config.fit = {**(probe.config.fit or {}), "fine_tuning": _facts(tuned, settings, probe)}
        calibrate = getattr(module, "calibrate", None)
        if calibrate is not None:
            calibrate(tuned.probe, changed, train=train)
        cost = Cost(tuned.seconds, tuned.peak_memory_mb, tuned.trainable_parameters)
        return Tuned(changed, tuned.probe, cost, tuned)

    def _frozen_features(self, ids: Sequence[str], progress: Progress) -> tuple[ProbeFeatures, float]:
        key = tuple(ids)
        if key not in self._frozen:
            started = time.perf_counter()
            backbone: nn.Module = load(self.model, dtype=torch.float32)[0]
            found = backbone_features(backbone, self.inputs, ids, on_batch=partial(progress, "frozen features"))
            self._frozen[key] = found, time.perf_counter() - started
        return self._frozen[key]


@dataclass(frozen=True)
class TunedFiles:
    """What a fine-tuning left.

    Attributes:
        backbone: Folder of the adapters or of the model.
        probe: Folder of the probe.
        reports: By target, from the task's `evaluate`.
        frozen: The same of the frozen probe on the same test rows.
        cost: Of the fit.
    """

    backbone: Path
    probe: Path
    reports: dict[str, dict]
    frozen: dict[str, dict]
    cost: Cost


def finetune_and_save(
    tasks: Sequence[Task],
    labels: LabelTable,
    out: str | Path,
    *,
    model: str | Path,
    task: str,
    read: Mapping[str, Any],
    mode: str,
    seed: int = 0,
    settings: FinetuneSettings | None = None,
    options: EmbedOptions = EmbedOptions(),  # noqa: B008 (frozen)
    facts: ProbeFacts | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress = unwatched,
) -> TunedFiles | None:
    """From scans and labels to a fine-tuned model with its probe; run again after an interruption, it goes on.

    Args:
        tasks: Scans, whole or by regions.
        labels: The label table.
        out: Gets `adapter/` or `model/`, `probe/`, and `work/` (prepared inputs, frozen features, checkpoints; what
            failed in failures.csv), which may be deleted when all is done.
        model: Folder or Hub repository of the backbone.
        task: Name of the task.
        read: Options of its `read`, the head among them.
        mode: lora, last_K or full.
        seed: Of the fit.
        settings: Of the fine-tuning.
        options: How scans are read and prepared.
        facts: What the card of the probe should say of data, licence and command.
        on_epoch: Called with each epoch.
        progress: Told by the main process how far each part is.

    Returns:
        What was written; None on processes that only helped.

    Raises:
        VoxelFMError: before any scan is read: a mode, settings or a head that cannot be trained, labels that do not
            fit, an `out` that holds a result; scans that cannot be prepared.
    """
    out, module = Path(out), load_task(task)
    check_mode(mode)
    if mode == "frozen":
        raise RecipeError("the mode frozen trains no backbone: use `voxelfm probe`")
    done = [name for name in (ADAPTER, MODEL, PROBE) if (out / name).exists()]
    if PROBE in done and len(done) > 1:
        raise VoxelFMError(f"{out} is finished: name a new --out, or delete it to train again")
    if done:
        raise VoxelFMError(f"{out / done[0]} exists already: name a new folder")
    if task not in HEADS_OF_TASK:
        raise RecipeError(f"{task} fits nothing that a backbone could be trained for: use {', '.join(HEADS_OF_TASK)}")
    head, settings = read.get("head") or HEADS_OF_TASK[task][0], settings or FinetuneSettings()
    _check_head(task, head)
    settings.check_task(task)
    check_labels(task, tasks, labels, read)
    network, processor = load(model)
    make_trainable(network, mode, settings)  # refuses what the backbone does not have
    del network
    chosen = replace(options, patches=head in PATCH_HEADS, dtype="float32")
    if not process_state().is_main_process:
        progress = unwatched
    told = Counter(progress, "preparing")
    inputs, failures = prepare_inputs(
        tasks, model, out / "work" / "inputs", chosen, on_start=told.start, on_scan=told.step
    )
    told = Counter(progress, "embedding")
    summary = embed_scans(tasks, model, out / "work" / "store", chosen, on_start=told.start, on_scan=told.step)
    failures = {**summary.failures, **failures}
    if process_state().is_main_process:
        write_failures(out / "work", failures)
    if failures:
        listed = failures_in_a_sentence(failures, out / "work" / FAILURES_FILE)
        raise VoxelFMError(f"{len(failures)} scans cannot be prepared: {listed}")
    data = module.read(FeatureStore(out / "work" / "store"), labels, **read)
    tuner = Tuner(model, inputs, settings)
    test = data.rows("test")
    frozen = _reports(module, tuner.fit(data, mode="frozen", seed=seed, progress=progress), test)[0]
    tuned = tuner.fit(data, mode=mode, seed=seed, folder=out / "work" / "fit", on_epoch=on_epoch, progress=progress)
    progress("scores", 0, 1)
    reports, predictions = _reports(module, tuned, test)
    progress("scores", 1, 1)
    if tuned.finetuned is None or not process_state().is_main_process:
        return None
    set_up_processor(processor, data.run.get("processor"))
    backbone = save_backbone(out, tuned.finetuned, processor, base=model)
    save_probe(out / PROBE, tuned.probe, reports, tuned.data, predictions, facts=facts)
    return TunedFiles(backbone, out / PROBE, reports, frozen, tuned.cost)


def _reports(module: Any, tuned: Tuned, test: np.ndarray) -> tuple[dict[str, dict], Any]:
    """Scores on the test rows, and the predictions."""
    predictions = module.predict(tuned.probe, tuned.data, test)
    return score_predictions(predictions, tuned.probe, tuned.data, test), predictions


def _check_head(task: str, head: str) -> None:
    """RecipeError for a head that has no weights to train."""
    if head not in DEFAULT_SETTINGS:
        *others, last = (name for name in HEADS_OF_TASK[task] if name in DEFAULT_SETTINGS)
        raise RecipeError(f"a {head} head has no weights to train: fine-tune with {', '.join(others)} or {last}")


def _job(data: TaskData, train: np.ndarray, seed: int) -> ProbeJob:
    """All outputs of the probe together, on the rows that have a label."""
    validation = data.rows("val")
    if data.maps is not None:
        return ProbeJob("label maps", data.maps, train, validation, seed, data.annotated)
    labelled = np.isfinite(data.targets).any(axis=1)
    return ProbeJob("+".join(data.names), data.targets, train[labelled[train]], validation[labelled[validation]], seed)


def _facts(tuned: Finetuned, settings: FinetuneSettings, frozen: VoxelFMProbe) -> dict[str, Any]:
    """What the probe's config and card say of a fine-tuning; `base` is the backbone of the frozen probe."""
    state = process_state()
    return {
        "mode": tuned.mode,
        "base": frozen.config.base_model_name_or_path,
        "best_epoch": tuned.best_epoch,
        "epochs": tuned.epochs,
        "trainable_parameters": tuned.trainable_parameters,
        "seconds": round(tuned.seconds, 1),
        "peak_memory_mb": round(tuned.peak_memory_mb),
        "processes": state.num_processes,
        "machine": machine(state.device),
        "settings": to_values(settings),
        "notes": list(tuned.notes),
    }
