"""From the tokens of a scan to a fixed number of vectors of the language model: resampler and projector.

Notation: I scans, T tokens of a scan (CLS and patches), C their width, Q image tokens, W width of the resampler.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

# Wave numbers of the sines and cosines of a coordinate from -1 to 1 across the patch grid.
POSITION_WAVES = (0.5, 1.0, 2.0)
# How sharply a query that starts at a place attends to it: at 1.5, most of its weight lies within a fifth of the grid.
PLACE_SHARPNESS = 1.5


def scan_tokens(
    cls: torch.Tensor | None,
    patches: torch.Tensor | None,
    *,
    feature_tokens: str = "patches_and_cls",
    grid: Sequence[int] | None = None,
) -> torch.Tensor:
    """The tokens of a scan that the resampler reads.

    Args:
        cls: (..., C) CLS vector.
        patches: (..., N, C) patch tokens, w fastest.
        feature_tokens: patches_and_cls, patches or cls.
        grid: (d, h, w): append the place of every patch, -1 to 1 along z, y, x between the outer edges of the grid, and
            0 for CLS.

    Returns:
        (..., T, C) or (..., T, C + 3): CLS first, where it is used.
    """
    if grid is not None:
        cls = None if cls is None else nn.functional.pad(cls, (0, 3))
        patches = None if patches is None else torch.cat([patches, _places(patches, grid)], dim=-1)
    if feature_tokens == "patches":
        parts = [patches]
    elif feature_tokens == "cls":
        parts = [None if cls is None else cls.unsqueeze(-2)]
    else:
        parts = [None if cls is None else cls.unsqueeze(-2), patches]
    given = [part for part in parts if part is not None]
    if len(given) < len(parts):
        raise ValueError(f"the model reads {feature_tokens} of a scan, and they were not all given")
    return torch.cat(given, dim=-2)


def _places(patches: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Patch centres (..., N, 3) from -1 to 1."""
    axes = [(2 * torch.arange(n, device=patches.device) + 1) / n - 1 for n in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
    return places.to(patches.dtype).expand(*patches.shape[:-1], 3)


def pad_tokens(tokens: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens (T, C) of scans as one tensor (I, T, C), and the mask of real ones where their numbers differ."""
    lengths = [len(scan) for scan in tokens]
    if len(set(lengths)) == 1:
        return torch.stack(list(tokens)), None
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return nn.utils.rnn.pad_sequence(list(tokens), batch_first=True), mask.to(tokens[0].device)


class VoxelFMReportResampler(nn.Module):
    """Q learned queries attend to the tokens of a scan: (I, T, C) -> (I, Q, W).

    One linear layer for keys, another for values, multi-head attention; no residual, no MLP. Tokens are first
    standardised by `feature_mean` and `feature_scale` (C,), which are 0 and 1 unless they were set from training scans.
    Coordinates of patches, where they are used, come as sines and cosines beside the features.
    """

    feature_mean: torch.Tensor
    feature_scale: torch.Tensor

    def __init__(self, config):
        super().__init__()
        width, features = config.resampler_hidden_size, config.vision_config.hidden_size
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.query = nn.Parameter(torch.empty(config.num_image_tokens, width))
        self.has_positions = config.position_features
        inputs = features + (3 * (1 + 2 * len(POSITION_WAVES)) if self.has_positions else 0)
        self.key = nn.Linear(inputs, width)
        self.value = nn.Linear(inputs, width)
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
        tokens = tokens.to(self.feature_mean.dtype)
        features = (tokens[..., : len(self.feature_mean)] - self.feature_mean) / self.feature_scale
        tokens = torch.cat([features, *self._waves(tokens[..., -3:])], dim=-1) if self.has_positions else features
        heads = self.attention.num_heads
        query, key, value = self._per_head()
        scores = query @ tokens.transpose(1, 2) + key.unsqueeze(-1)  # (I, H * Q, T)
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(1), -torch.inf)
        weights = scores.softmax(-1)
        kept = nn.functional.dropout(weights, self.attention.dropout, self.training)
        pooled = (kept @ tokens).unflatten(1, (heads, -1))  # (I, H, Q, C)
        found = torch.einsum("ihqc,hdc->iqhd", pooled, value)
        constant = self._constant_value().unflatten(0, (heads, -1))
        found = found + torch.einsum("ihq,hd->iqhd", kept.sum(-1).unflatten(1, (heads, -1)), constant)
        vectors = self.attention.out_proj(found.flatten(2))
        return vectors, weights.unflatten(1, (heads, -1)).mean(1) if with_attention else None

    def _per_head(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries taken back to the features (H * Q, C), what biases add to their scores (H * Q,), values (H, D, C).

        Two linear layers in a row are one, and there are far fewer queries than tokens: keys and values (I, T, W) are
        never made, which costs a small part of the plain computation and gives the same numbers.
        """
        heads, width = self.attention.num_heads, self.query.shape[1]
        to_query, to_key, to_value = self.attention.in_proj_weight.chunk(3)
        query_bias, key_bias, _ = self.attention.in_proj_bias.chunk(3)
        queries = nn.functional.linear(self.query, to_query, query_bias) * (width // heads) ** -0.5
        queries = queries.unflatten(1, (heads, -1)).transpose(0, 1)  # (H, Q, D)
        keys = (to_key @ self.key.weight).unflatten(0, (heads, -1))  # (H, D, C)
        constant = (to_key @ self.key.bias + key_bias).unflatten(0, (heads, -1))  # (H, D)
        values = (to_value @ self.value.weight).unflatten(0, (heads, -1))
        return (queries @ keys).flatten(0, 1), (queries @ constant.unsqueeze(-1)).flatten(), values

    def _constant_value(self) -> torch.Tensor:
        """What the biases add to every value (W,)."""
        to_value = self.attention.in_proj_weight.chunk(3)[2]
        return to_value @ self.value.bias + self.attention.in_proj_bias.chunk(3)[2]

    @torch.no_grad()
    def spread_over_places(self) -> None:
        """Let every head of every query start at a place of its own, evenly spread through the grid.

        Attention that starts even everywhere has to find places first, which takes more scans than a small set has. A
        score is `PLACE_SHARPNESS` times the sum of cos(pi * wave * (patch - place)) over axes and waves, to which what
        untrained weights say about features is added. Nothing is done without coordinates, or where a head is too
        narrow to hold their sines and cosines.
        """
        waves, heads = 6 * len(POSITION_WAVES), self.attention.num_heads
        width = self.query.shape[1]
        if not self.has_positions or width // heads < waves:
            return
        places = 2 * torch.quasirandom.SobolEngine(3).draw(heads * len(self.query)) - 1
        wanted = torch.cat(self._waves(places)[1:], dim=-1).unflatten(0, (len(self.query), heads))
        queries = self.query.unflatten(1, (heads, -1))
        queries[..., :waves] = PLACE_SHARPNESS * (width // heads) ** 0.5 * wanted.to(queries)
        keys, bias = self.key.weight.unflatten(0, (heads, -1)), self.key.bias.unflatten(0, (heads, -1))
        keys[:, :waves] = 0
        keys[:, :waves, -waves:] = torch.eye(waves)
        bias[:, :waves] = 0
        to_query, to_key, _ = self.attention.in_proj_weight.chunk(3)
        for weight in (to_query, to_key):
            weight.copy_(torch.eye(width))

    def _waves(self, places: torch.Tensor) -> list[torch.Tensor]:
        angles = [math.pi * wave * places for wave in POSITION_WAVES]
        return [places, *(function(angle) for angle in angles for function in (torch.sin, torch.cos))]


class VoxelFMReportProjector(nn.Sequential):
    """(I, Q, W) -> (I, Q, width of the language model): layer norm, linear, GELU, linear."""

    def __init__(self, config):
        super().__init__(
            nn.LayerNorm(config.resampler_hidden_size),
            nn.Linear(config.resampler_hidden_size, config.projector_hidden_size),
            nn.GELU(),
            nn.Linear(config.projector_hidden_size, config.text_config.hidden_size),
        )
