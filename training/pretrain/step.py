"""One optimiser step of pre-training: micro-batches in, losses out, teacher and centres moved."""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from voxelfm_hf.training.pretrain.loader import Batch
from voxelfm_hf.training.pretrain.masking import MaskSource
from voxelfm_hf.training.pretrain.optimizer import set_rates
from voxelfm_hf.training.pretrain.rates import Rates
from voxelfm_hf.training.pretrain.self_distillation import Student, Teacher, TeacherOutput


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Args:
        losses: mean losses of this rank's micro-batches, on the device.
        grad_norm: norm of all gradients before clipping.
        is_bad: the loss or the gradients were not finite on some rank; nothing was changed.
        is_overflow: fp16 gradients overflowed; nothing was changed but the loss scale.
        stop: some rank was asked to stop.
        teacher_output: of the last micro-batch.
    """

    losses: dict[str, Tensor]
    grad_norm: float
    is_bad: bool
    is_overflow: bool
    stop: bool
    teacher_output: TeacherOutput


def optimiser_step(
    accelerator: Accelerator,
    student: nn.Module,
    teacher: Teacher,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    masks: MaskSource,
    *,
    step: int,
    rates: Rates,
    clip_norm: float,
    stop_requested: bool = False,
) -> StepResult:
    """Do one optimiser step; a collective call.

    Gradients are summed over the micro-batches locally and exchanged once, with the last one. A step whose loss or
    gradients are not finite on any rank is skipped by all: weights, optimiser, teacher and centres stay.

    Args:
        accelerator: of the run.
        student: the prepared student.
        teacher: the teacher of this rank.
        optimizer: the prepared optimiser.
        batches: this rank's micro-batches.
        masks: this rank's masks.
        step: number of the step, from 0.
        rates: scheduled values.
        clip_norm: largest gradient norm.
        stop_requested: this process was asked to stop; told to all ranks.

    Returns:
        The result, equal on all ranks but for `losses` and `teacher_output`.
    """
    set_rates(
        optimizer,
        learning_rate=rates.learning_rate,
        last_layer_learning_rate=rates.last_layer_learning_rate,
        weight_decay=rates.weight_decay,
    )
    optimizer.zero_grad()
    inner: Student = accelerator.unwrap_model(student)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        is_last = number == len(batches) - 1
        global_crops = batch.global_crops.to(accelerator.device, non_blocking=True)
        local_crops = batch.local_crops.to(accelerator.device, non_blocking=True)
        drawn = masks.masks(step * len(batches) + number, inner.backbone.patch_grid(global_crops))
        mask = torch.from_numpy(drawn).to(accelerator.device)
        with nullcontext() if is_last else accelerator.no_sync(student):
            with accelerator.autocast():  # of the student too: FSDP2 does not do it
                output = teacher(global_crops, mask, temperature=rates.temperature)
                losses = student(global_crops, local_crops, mask, output)
            accelerator.backward(losses["total"] / len(batches))
        for name, loss in losses.items():
            share = loss.detach() / len(batches)
            sums[name] = sums[name] + share if name in sums else share
    grad_norm = accelerator.clip_grad_norm_(student.parameters(), clip_norm)
    grad_norm = float(grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm)
    # One small exchange tells every rank of a loss that went wrong, or a signal that came, anywhere.
    flags = torch.tensor([0.0, float(stop_requested)], device=accelerator.device)
    flags[0] = 1.0 - torch.isfinite(sums["total"]).float()
    bad_losses, stops = accelerator.reduce(flags, reduction="sum").tolist()
    is_finite = math.isfinite(grad_norm)
    is_bad = bad_losses > 0 or (not is_finite and accelerator.scaler is None)
    is_overflow = not is_finite and not is_bad
    if is_finite and not is_bad:
        optimizer.step()
        teacher.update(inner, momentum=rates.momentum)
    else:
        if accelerator.scaler is not None:
            # Clipping has shown the scaler the gradients; this lowers its scale where they overflowed.
            accelerator.scaler.update()
        teacher.discard()
    return StepResult(sums, grad_norm, is_bad, is_overflow, stops > 0, output)


def mean_losses(accelerator: Accelerator, result: StepResult) -> dict[str, float]:
    """Losses averaged over ranks; a collective call."""
    stacked = torch.stack(list(result.losses.values()))
    values = accelerator.reduce(stacked, reduction="mean").tolist()
    return dict(zip(result.losses, values, strict=True))
