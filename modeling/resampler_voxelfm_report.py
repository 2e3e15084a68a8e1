"""From the tokens of a scan to a fixed number of vectors of the language model: resampler and projector.

Notation: I scans, T tokens of a scan (CLS and patches), C their width, Q image tokens, W width of the resampler.
"""

import torch
from torch import nn


def scan_tokens(
    cls: torch.Tensor | None, patches: torch.Tensor | None, *, feature_tokens: str = "patches_and_cls"
) -> torch.Tensor:
    """The tokens of a scan that the resampler reads.

    Args:
        cls: (..., C) CLS vector.
        patches: (..., N, C) patch tokens, w fastest.
        feature_tokens: patches_and_cls, patches or cls.

    Returns:
        (..., T, C): CLS first, where it is used.
    """
    if feature_tokens == "patches":
        parts = [patches]
    elif feature_tokens == "cls":
        parts = [None if cls is None else cls.unsqueeze(-2)]
    else:
        parts = [None if cls is None else cls.unsqueeze(-2), patches]
    if any(part is None for part in parts):
        raise ValueError(f"the model reads {feature_tokens} of a scan, and they were not all given")
    return torch.cat(parts, dim=-2)


class VoxelFMReportResampler(nn.Module):
    """Q learned queries attend to the tokens of a scan: (I, T, C) -> (I, Q, W).

    One linear layer for keys, another for values, multi-head attention; no residual, no MLP. Tokens are first
    standardised by `feature_mean` and `feature_scale` (C,), which are 0 and 1 unless they were set from training scans.
    """

    def __init__(self, config):
        super().__init__()
        width, features = config.resampler_hidden_size, config.vision_config.hidden_size
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.query = nn.Parameter(torch.empty(config.num_image_tokens, width))
        self.key = nn.Linear(features, width)
        self.value = nn.Linear(features, width)
        self.attention = nn.MultiheadAttention(
            width, config.resampler_num_heads, dropout=config.resampler_dropout, batch_first=True
        )

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor | None = None, *, with_attention: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The image vectors (I, Q, W) and, when asked for, the attention weights (I, Q, T), a mean over heads.

        Args:
            tokens: (I, T, C).
            mask: (I, T) bool, true at real tokens of scans padded to one length.
            with_attention: Whether to give the weights; they sum to 1 over T.
        """
        tokens = (tokens.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_scale
        queries = self.query.expand(len(tokens), -1, -1)
        return self.attention(
            queries,
            self.key(tokens),
            self.value(tokens),
            key_padding_mask=None if mask is None else ~mask,
            need_weights=with_attention,
        )


class VoxelFMReportProjector(nn.Sequential):
    """(I, Q, W) -> (I, Q, width of the language model): layer norm, linear, GELU, linear."""

    def __init__(self, config):
        super().__init__(
            nn.LayerNorm(config.resampler_hidden_size),
            nn.Linear(config.resampler_hidden_size, config.projector_hidden_size),
            nn.GELU(),
            nn.Linear(config.projector_hidden_size, config.text_config.hidden_size),
        )
