"""What changes over a run, and how: learning rates, weight decay, teacher temperature and momentum."""

from dataclasses import dataclass
from typing import Any

from voxelfm_hf.training import schedules
from voxelfm_hf.training.layer_rates import LAYER_DECAY, PATCH_EMBEDDING_MULTIPLIER


@dataclass(frozen=True)
class TeacherSettings:
    """Teacher temperature (linear, then constant) and EMA momentum (cosine from start to end)."""

    temperature_start: float = 0.04
    temperature: float = 0.07
    temperature_warmup_steps: int = 30_000
    momentum_start: float = 0.994
    momentum_end: float = 0.994


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedules, in optimiser steps.

    Args:
        learning_rate: peak, reached after `warmup_steps`.
        final_learning_rate: at the last step.
        weight_decay: at the first step; a cosine leads to `final_weight_decay`.
        last_layer_frozen_steps: steps in which the last head layer has learning rate 0.
        layer_decay: learning rate factor from one block to the one before.
        patch_embedding_multiplier: further factor of the patch embedding.
        clip_norm: largest norm of all gradients.
    """

    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup_steps: int = 10_000
    weight_decay: float = 0.04
    final_weight_decay: float = 0.2
    last_layer_frozen_steps: int = 1000
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = LAYER_DECAY
    patch_embedding_multiplier: float = PATCH_EMBEDDING_MULTIPLIER
    clip_norm: float = 3.0


@dataclass(frozen=True)
class Rates:
    """Scheduled values of one step."""

    learning_rate: float
    last_layer_learning_rate: float
    weight_decay: float
    temperature: float
    momentum: float


def rates_at(settings: OptimizerSettings, teacher: TeacherSettings, *, total_steps: int, step: int) -> Rates:
    """Scheduled values of a step, counted from 0, of `total_steps`."""
    curve: dict[str, Any] = {
        "peak": settings.learning_rate,
        "end": settings.final_learning_rate,
        "warmup_steps": settings.warmup_steps,
        "total_steps": total_steps,
    }
    frozen = settings.last_layer_frozen_steps
    return Rates(
        learning_rate=schedules.learning_rate(**curve)(step),
        last_layer_learning_rate=schedules.learning_rate(**curve, frozen_steps=frozen)(step),
        weight_decay=schedules.cosine(
            start=settings.weight_decay, end=settings.final_weight_decay, total_steps=total_steps
        )(step),
        temperature=schedules.linear_then_constant(
            start=teacher.temperature_start, end=teacher.temperature, warmup_steps=teacher.temperature_warmup_steps
        )(step),
        momentum=schedules.cosine(start=teacher.momentum_start, end=teacher.momentum_end, total_steps=total_steps)(
            step
        ),
    )
