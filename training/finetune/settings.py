"""How a backbone is fine-tuned, and what comes out."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.modeling.probe_tasks_voxelfm import PROBE_TASKS
from voxelfm_hf.recipes import parse_overrides, to_recipe
from voxelfm_hf.training.lora import Lora
from voxelfm_hf.volumes.errors import RecipeError

ATTENTION_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR_LAYERS = (*ATTENTION_LAYERS, "up_proj", "down_proj", "gate_proj")
# Beside them last_1, last_2, ...
MODES = ("frozen", "lora", "full")


@dataclass(frozen=True)
class EncoderLoraSettings(Lora):
    """Adapters of the encoder.

    Attributes:
        layers: Of `LINEAR_LAYERS`; gate_proj is there in SwiGLU models only.
        learning_rate: Peak rate of the adapters; they start at zero and stand more than the weights themselves.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    layers: list[str] = field(default_factory=lambda: list(ATTENTION_LAYERS))
    learning_rate: float = 5e-4

    def __post_init__(self) -> None:
        unknown = [name for name in self.layers if name not in LINEAR_LAYERS]
        if unknown or not self.layers:
            named = unknown[0] if unknown else "none"
            raise ValueError(f"lora.layers names {named}; choose from {', '.join(LINEAR_LAYERS)}")
        for name, value in (("rank", self.rank), ("alpha", self.alpha)):
            if value < 1:
                raise ValueError(f"lora.{name} must be at least 1, got {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout lies in [0, 1), got {self.dropout}")
        _check_not_negative("lora.learning_rate", self.learning_rate)


@dataclass(frozen=True)
class FinetuneSettings:
    """How a backbone and its head are trained together.

    Attributes:
        epochs: Passes over the training rows at most.
        batch_size: Rows an optimiser step over all processes; null takes all rows, as survival always does.
        micro_batch: Rows a forward of one process; memory grows with it, results do not depend on it.
        learning_rate: Peak rate of the final norm in full and last-k fine-tuning; block i of L learns at
            layer_decay ** (L - i) of it, the patch embedding slower still.
        layer_decay: Factor of the rate from one block to the one before.
        head_learning_rate: Peak rate of the head.
        weight_decay: On weights; not on biases, norms and LayerScale.
        warmup_epochs: Of linear warm-up; a cosine to a hundredth of the peak follows.
        clip_norm: Largest norm of the gradients.
        patience: Epochs without a better validation score before training stops.
        noise: Standard deviation of the Gaussian noise on standardised features, as in probes; null takes the probe's.
        balance: Give the classes of a label the same total weight, as in probes.
        flip: Mirror inputs at random along each axis (not for tasks with a place or a side).
        input_noise: Standard deviation of Gaussian noise on normalised voxels.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        mixed_precision: "no" or "bf16".
        lora: Of the mode lora.
    """

    epochs: int = 20
    batch_size: int | None = 32
    micro_batch: int = 8
    learning_rate: float = 1e-4
    layer_decay: float = 0.75
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    clip_norm: float = 1.0
    patience: int = 6
    noise: float | None = None
    balance: bool = True
    flip: bool = False
    input_noise: float = 0.0
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16"] = "no"
    lora: EncoderLoraSettings = field(default_factory=EncoderLoraSettings)

    def __post_init__(self) -> None:
        for name in ("epochs", "micro_batch", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        for name in ("learning_rate", "head_learning_rate", "weight_decay", "warmup_epochs", "noise", "input_noise"):
            _check_not_negative(name, getattr(self, name))
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay lies in (0, 1], got {self.layer_decay}")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, got {self.clip_norm}")

    def check_task(self, task: str) -> None:
        """RecipeError for what would spoil the labels of a task."""
        if self.flip and PROBE_TASKS[task].in_scan:
            raise RecipeError(f"flip moves the targets of a {task}: leave it off")


def _check_not_negative(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of at least 0, got {value}")


def change_settings(changes: Sequence[str]) -> FinetuneSettings:
    """The default settings with some fields changed.

    Args:
        changes: "field=value", such as "epochs=5" or "lora.rank=4".

    Raises:
        RecipeError: no such field, or a value it cannot take.
    """
    values: dict[str, Any] = {}
    for name, value in parse_overrides([f"--{change}" for change in changes]).items():
        *sections, last = name.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return to_recipe(values, FinetuneSettings, source="--set")


def blocks_of_mode(mode: str, num_layers: int) -> int | None:
    """How many last blocks a mode trains: 0 for frozen, none for LoRA, num_layers + 1 (the embeddings too) for full.

    Raises:
        RecipeError: a mode that does not exist, or more blocks than the backbone has.
    """
    check_mode(mode)
    if mode in MODES:
        return {"frozen": 0, "lora": None, "full": num_layers + 1}[mode]
    last = int(mode.removeprefix("last_"))
    if last > num_layers:
        raise RecipeError(f"{mode} names more blocks than the backbone has ({num_layers})")
    return last


def check_mode(mode: str) -> None:
    """RecipeError for a word that is no mode."""
    if mode not in MODES and not re.fullmatch(r"last_[1-9][0-9]*", mode):
        known = f"{', '.join(MODES)} or last_1, last_2, ..."
        raise RecipeError(f"there is no way of fine-tuning named {mode}: use {known}")


@dataclass(frozen=True, eq=False)
class Finetuned:
    """A fine-tuned backbone with its head, and how it went.

    Attributes:
        mode: frozen, lora, last_K or full.
        backbone: The encoder in evaluation mode; with LoRA a `PeftModel` whose adapters are not merged.
        probe: The head on its features, not calibrated yet.
        score: Of the best epoch on the validation rows, higher is better; NaN without validation rows.
        best_epoch: 0 where no epoch was better than the probe it started from.
        epochs: Epochs that were trained.
        seconds: Of training, over all restarts.
        peak_memory_mb: Largest memory of one process while training: of the device, or on CPUs the resident set with
            all libraries.
        trainable_parameters: Of backbone and head.
        history: One entry an epoch: loss, score.
        notes: What a reader of the result has to know.
    """

    mode: str
    backbone: nn.Module
    probe: VoxelFMProbe
    score: float
    best_epoch: int
    epochs: int
    seconds: float
    peak_memory_mb: float
    trainable_parameters: int
    history: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
