"""AdamW with layer-wise learning rates, weight decay where it belongs, and a last head layer that starts late."""

import torch
from torch import nn

from voxelfm_hf.training.layer_rates import LAYER_DECAY, PATCH_EMBEDDING_MULTIPLIER, multipliers


def parameter_groups(
    student: nn.Module,
    *,
    num_layers: int,
    layer_decay: float = LAYER_DECAY,
    patch_embedding_multiplier: float = PATCH_EMBEDDING_MULTIPLIER,
) -> list[dict]:
    """Group the parameters of a student by their multipliers.

    Args:
        student: module with a `backbone` (VoxelFMModel) and heads.
        num_layers: transformer blocks of the backbone.
        layer_decay: see `multipliers`.
        patch_embedding_multiplier: see `multipliers`.

    Returns:
        Groups for a torch optimiser with the extra keys `lr_multiplier`, `weight_decay_multiplier`, `is_last_layer`, in
        the order in which they first appear.
    """
    groups: dict[tuple[float, float, bool], dict] = {}
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        key = multipliers(
            name,
            num_layers=num_layers,
            layer_decay=layer_decay,
            patch_embedding_multiplier=patch_embedding_multiplier,
        )
        group = groups.setdefault(
            key,
            {"params": [], "lr_multiplier": key[0], "weight_decay_multiplier": key[1], "is_last_layer": key[2]},
        )
        group["params"].append(parameter)
    return list(groups.values())


def make_adamw(
    groups: list[dict], *, device: torch.device, learning_rate: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW over the groups; on a CPU in one pass over the numbers, where torch by default makes ten.

    Args:
        groups: from `parameter_groups`.
        device: where the parameters are.
        learning_rate: until `set_rates` is called.
        betas: decay of the two moments.
    """
    # Elsewhere None leaves the choice to torch.
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True if device.type == "cpu" else None)


def set_rates(
    optimizer: torch.optim.Optimizer, *, learning_rate: float, last_layer_learning_rate: float, weight_decay: float
) -> None:
    """Give every group its learning rate and weight decay for the coming step.

    A last layer at rate 0 still counts in the gradient norm and in Adam's moments, as published.
    """
    for group in optimizer.param_groups:
        rate = last_layer_learning_rate if group["is_last_layer"] else learning_rate
        group["lr"] = rate * group["lr_multiplier"]
        group["weight_decay"] = weight_decay * group["weight_decay_multiplier"]
