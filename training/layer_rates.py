"""How fast each layer of a backbone learns, and what of it is decayed, from the names of its parameters."""

import re

LAYER_DECAY = 0.9
PATCH_EMBEDDING_MULTIPLIER = 0.2
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_UNDECAYED = re.compile(r"bias$|norm|layer_scale")


def multipliers(
    name: str,
    *,
    num_layers: int,
    layer_decay: float = LAYER_DECAY,
    patch_embedding_multiplier: float = PATCH_EMBEDDING_MULTIPLIER,
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
