"""How a network computes while it trains: attention on CPUs in bf16, and activations worked out twice.

The fused attention kernel is slow on CPUs in bf16. Measured on two cores with bf16 units (torch 2.13), forward and
backward of one layer: 64 crops of 130 tokens with 4 heads take 19 ms as matrix products and 82 ms in the fused kernel,
4 crops of 517 tokens 14 against 35 ms, of 1733 tokens 226 against 307 ms. Memory grows with the square of the tokens;
the crops of pre-training are short.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

MATMUL_ATTENTION = "voxelfm_matmul"


def matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention as two matrix products with a softmax in the dtype of the queries.

    Args:
        module: the attention layer.
        query, key, value: (B, heads, T, head_dim).
        attention_mask: must be None; crops have no padding.
        scaling: factor of the scores.
        dropout: on the attention weights.

    Returns:
        (B, T, heads, head_dim), and None for the weights.
    """
    if attention_mask is not None:
        raise ValueError("matmul_attention takes no attention mask")
    # Scaling the queries costs a pass over T x head_dim numbers, scaling the scores one over T x T.
    weights = torch.softmax(torch.matmul(query * scaling, key.transpose(2, 3)), dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(MATMUL_ATTENTION, matmul_attention)


def choose_attention(backbone: PreTrainedModel, accelerator: Accelerator) -> None:
    """Take the matrix products on a CPU in bf16; elsewhere the model keeps its own choice (sdpa)."""
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        backbone.set_attn_implementation(MATMUL_ATTENTION)


def recompute_activations(network: PreTrainedModel) -> None:
    """Work the activations of every block out again in the backward pass: less memory, about a third more time."""
    # transformers before 5.23 knows only the older name, later ones warn about it
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable()
