"""AdamW with layer-wise learning rates, weight decay where it belongs, and a last head layer that starts late."""

import re

import torch
from torch import nn

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_UNDECAYED = re.compile(r"bias$|norm|layer_scale")


def multipliers(
    name: str, *, num_layers: int, layer_decay: float = 0.9, patch_embedding_multiplier: float = 0.2
) -> tuple[float, float, bool]:
    """Learning rate and weight decay multipliers of a parameter of the student, from its name.

    Block i of `num_layers` learns at `layer_decay ** (num_layers - i)`, tokens and patch embedding at
    `layer_decay ** (num_layers + 1)`, the patch embedding `patch_embedding_multiplier` times slower still; the final
    norm and the heads at 1. Biases, norms and LayerScale are not decayed. As published, CLS, register and mask tokens
    and the gain of the weight norm are.

    Args:
        name: parameter name in the student, such as `backbone.layers.3.mlp.up_proj.weight`.
        num_layers: transformer blocks of the backbone.
        layer_decay: factor from one block to the one before.
        patch_embedding_multiplier: further factor of the patch embedding.

    Returns:
        Learning rate multiplier, weight decay multiplier, whether it belongs to the last layer of a head.
    """
    rate = 1.0
    layer = _LAYER.search(name)
    if "embeddings." in name:
        rate = layer_decay ** (num_layers + 1)
        if "patch_embeddings." in name:
            rate *= patch_embedding_multiplier
    elif layer:
        rate = layer_decay ** (num_layers - int(layer[1]))
    decay = 0.0 if _UNDECAYED.search(name) else 1.0
    return rate, decay, "last_layer." in name


def parameter_groups(
    student: nn.Module, *, num_layers: int, layer_decay: float = 0.9, patch_embedding_multiplier: float = 0.2
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
