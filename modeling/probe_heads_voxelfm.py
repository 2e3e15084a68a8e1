"""The small networks of the probes: CLS heads, attention pooler, position regressor, voxel decoder.

Notation: B scans, C feature width, (d, h, w) the patch grid, L outputs. Patch heads take `mask` (B, d, h, w), true at
real patches, for batches of scans padded at the end of each axis.
"""

from collections.abc import Sequence

import torch
from torch import nn


class ProbeHead(nn.Module):
    """What a head says of itself, beside its forward pass.

    Attributes:
        uses_patches: It reads the patch grid rather than the CLS vector.
        is_trained: It has weights that a loss is minimised over; one that is not keeps its training scans.
        hidden_size: Its usual hidden width, 0 without one.
        last_bias: The parameter that is added to its logits, where one is.
    """

    uses_patches = False
    is_trained = True
    hidden_size = 0
    last_bias: str | None = None


class ProbeLinear(ProbeHead, nn.Linear):
    """CLS (B, C) -> L logits."""

    last_bias = "bias"

    def __init__(self, config):
        super().__init__(config.feature_size, config.num_outputs)


class ProbeMLP(ProbeHead):
    """CLS (B, C) -> hidden -> ReLU -> dropout -> L logits.

    With `independent_outputs` every output has a hidden layer of its own: L published one-label probes in one module.
    """

    hidden_size = 1024
    last_bias = "bias"

    def __init__(self, config):
        super().__init__()
        self.members = config.num_outputs if config.independent_outputs else 1
        self.hidden = nn.Linear(config.feature_size, self.members * config.head_hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        outputs = config.num_outputs // self.members
        self.weight = nn.Parameter(torch.empty(self.members, outputs, config.head_hidden_size))
        self.bias = nn.Parameter(torch.empty(self.members, outputs))

    def forward(self, cls: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(self.hidden(cls).relu()).unflatten(-1, (self.members, -1))
        return (torch.einsum("bmh,moh->bmo", hidden, self.weight) + self.bias).flatten(1)


class ProbeNeighbours(ProbeHead):
    """CLS (B, C) -> L logits, from the labels of the most similar training scans by cosine.

    Of k neighbours that know a label and n that have it, (n + 1 / 2) / (k + 1) is the chance of a label, and
    (n + 1 / L) / (k + 1) that of one of L exclusive classes.
    """

    is_trained = False
    labels: torch.Tensor

    def __init__(self, config):
        super().__init__()
        self.config = config
        # A parameter, as a model without any has no dtype; nothing is learned here.
        self.directions = nn.Parameter(torch.zeros(config.num_stored, config.feature_size), requires_grad=False)
        # NaN where a label is unknown; exclusive classes have a column each.
        self.register_buffer("labels", torch.zeros(config.num_stored, config.num_outputs))

    def forward(self, cls: torch.Tensor) -> torch.Tensor:
        similarity = nn.functional.normalize(cls, dim=1) @ self.directions.T
        order = similarity.argsort(dim=1, descending=True, stable=True)
        exclusive = self.config.is_single_label
        prior = 1 / self.labels.shape[1] if exclusive else 0.5
        chances = []
        for column, neighbours in zip(self.labels.T, self.config.num_neighbours, strict=True):
            found = column[order]
            known = ~found.isnan()
            asked = known & (known.cumsum(1) <= neighbours)
            chances.append(((found.nan_to_num() * asked).sum(1) + prior) / (asked.sum(1) + 1))
        share = torch.stack(chances, dim=1)
        return share.log() if exclusive else share.logit()


class ProbeAttentionPooler(ProbeHead):
    """One learned query attends to the patches (B, d, h, w, C) -> L logits."""

    uses_patches = True
    hidden_size = 256
    last_bias = "classifier.bias"

    def __init__(self, config):
        super().__init__()
        width = config.head_hidden_size
        self.project = nn.Linear(config.feature_size, width)
        self.project_dropout = nn.Dropout(config.dropout)
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.attention = nn.MultiheadAttention(
            width, config.num_attention_heads, dropout=config.attention_dropout, batch_first=True
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, config.num_outputs)

    def forward(self, patches: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        tokens = self.project_dropout(self.project(patches.flatten(1, 3)))
        ignored = None if mask is None else ~mask.flatten(1)
        query = self.query.expand(len(tokens), -1, -1)
        pooled, _ = self.attention(query, tokens, tokens, key_padding_mask=ignored, need_weights=False)
        return self.classifier(self.dropout(pooled[:, 0]))


class ProbePositionRegressor(ProbeHead):
    """Patches (B, d, h, w, C) -> P points (B, P * 3), z, y, x from 0 to 1 across the patch grid.

    Positions are added to the tokens, one self-attention layer without residual mixes them, an MLP scores every token,
    and each point is the softmax-weighted mean of the token positions.
    """

    uses_patches = True
    hidden_size = 128

    def __init__(self, config):
        super().__init__()
        self.position_grid = config.position_grid
        self.position = nn.Linear(3, config.feature_size)
        self.attention = nn.MultiheadAttention(config.feature_size, config.num_attention_heads, batch_first=True)
        self.hidden = nn.Linear(config.feature_size, config.head_hidden_size)
        self.score = nn.Linear(config.head_hidden_size, config.num_points)

    def forward(self, patches: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        positions = self.positions(patches, mask)  # (B, N, 3)
        tokens = patches.flatten(1, 3) + self.position(positions)
        ignored = None if mask is None else ~mask.flatten(1)
        mixed, _ = self.attention(tokens, tokens, tokens, key_padding_mask=ignored, need_weights=False)
        scores = self.score(self.hidden(mixed).relu())  # (B, N, P)
        if ignored is not None:
            scores = scores.masked_fill(ignored.unsqueeze(-1), -torch.inf)
        return torch.einsum("bnp,bnc->bpc", scores.softmax(1), positions).flatten(1)

    def positions(self, patches: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Positions (B, N, 3) of the patches in the unpadded grid of each scan."""
        batch, *grid, _ = patches.shape
        if mask is None:
            mask = torch.ones((batch, *grid), dtype=torch.bool, device=patches.device)
        axes = []
        for axis in range(3):
            others = [other + 1 for other in range(3) if other != axis]
            count = mask.amax(others).sum(1).to(patches.dtype)[:, None]  # real patches along the axis, (B, 1)
            index = torch.arange(grid[axis], dtype=patches.dtype, device=patches.device)[None]
            if self.position_grid == "corners":
                axes.append(index / (count - 1).clamp_min(1))
            else:
                axes.append((index + 0.5) / count)
        z, y, x = axes
        full = (batch, *grid)
        stacked = (z[:, :, None, None].expand(full), y[:, None, :, None].expand(full), x[:, None, None].expand(full))
        return torch.stack(stacked, dim=-1).flatten(1, 3)


class ProbeDecoderStage(nn.Module):
    """Two 3x3x3 convolutions without bias, each with group norm (but in the last stage) and ReLU."""

    def __init__(self, width: int, normalise: bool):
        super().__init__()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, width) if normalise else nn.Identity()
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, width) if normalise else nn.Identity()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = self.norm1(self.conv1(states)).relu()
        return self.norm2(self.conv2(states)).relu()


class ProbeVoxelDecoder(ProbeHead):
    """Patches (B, d, h, w, C) -> class logits (B, L, *size); every stage enlarges the grid by an equal number."""

    uses_patches = True
    hidden_size = 64

    def __init__(self, config):
        super().__init__()
        width, stages = config.head_hidden_size, config.decoder_stages
        self.project = nn.Conv3d(config.feature_size, width, 1)
        self.stages = nn.ModuleList([ProbeDecoderStage(width, normalise=i < stages - 1) for i in range(stages)])
        self.classifier = nn.Conv3d(width, config.num_outputs, 1)

    def forward(
        self, patches: torch.Tensor, size: tuple[int, int, int], positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        grid = patches.shape[1:4]
        states = self.project(patches.movedim(-1, 1))
        for number, stage in enumerate(self.stages, start=1):
            share = number / len(self.stages)
            between = [round(n + share * (target - n)) for n, target in zip(grid, size, strict=True)]
            states = nn.functional.interpolate(stage(states), size=between, mode="trilinear", align_corners=False)
        return self.classifier(states)


class ProbeSubpatchDecoder(ProbeHead):
    """Patches (B, d, h, w, C) -> class logits (B, L, *size): every patch is split into voxels by a linear layer.

    The patch with its position in the scan and its 26 neighbours decides about all its voxels at once. All convolutions
    run at the resolution of the patches: a hundredth of the work of a decoder that enlarges its maps.
    """

    uses_patches = True
    hidden_size = 128

    def __init__(self, config):
        super().__init__()
        self.voxels = config.voxels_per_patch
        width = max(8, config.head_hidden_size // 2)
        self.project = nn.Linear(config.feature_size, width)
        self.position = nn.Linear(3, width)
        self.mix = nn.Conv3d(width, config.head_hidden_size, 3, padding=1)
        self.classifier = nn.Linear(config.head_hidden_size, self.voxels**3 * config.num_outputs)

    def forward(
        self, patches: torch.Tensor, size: tuple[int, int, int], positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch, d, h, w, _ = patches.shape
        if positions is None:
            positions = patch_positions((d, h, w), patches)[None]
        tokens = (self.project(patches) + self.position(2 * positions - 1)).relu()
        mixed = self.mix(tokens.movedim(-1, 1)).relu().movedim(1, -1)
        v = self.voxels
        logits = self.classifier(mixed).reshape(batch, d, h, w, v, v, v, -1)
        # (B, d, h, w, v, v, v, L) -> (B, L, d*v, h*v, w*v)
        logits = logits.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, -1, d * v, h * v, w * v)
        if tuple(size) == tuple(logits.shape[2:]):
            return logits
        return nn.functional.interpolate(logits, size=tuple(size), mode="trilinear", align_corners=False)


def patch_positions(grid: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Centres (d, h, w, 3) of the patches, z, y, x from 0 to 1 across the grid."""
    axes = [(torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def pooled_grid(patches: torch.Tensor, limit: int | None) -> torch.Tensor:
    """A patch grid (d, h, w, C) averaged to at most `limit` patches over the same extent; None leaves it."""
    d, h, w, _ = patches.shape
    factor = 1.0
    grid: tuple[int, int, int] = (d, h, w)
    while limit is not None and grid[0] * grid[1] * grid[2] > limit:
        factor *= 1.05
        grid = (max(1, round(d / factor)), max(1, round(h / factor)), max(1, round(w / factor)))
    if grid == (d, h, w):
        return patches
    pooled = nn.functional.adaptive_avg_pool3d(patches.movedim(-1, 0)[None].float(), grid)
    return pooled[0].movedim(0, -1).to(patches.dtype)


HEADS: dict[str, type[ProbeHead]] = {
    "linear": ProbeLinear,
    "mlp": ProbeMLP,
    "knn": ProbeNeighbours,
    "pooler": ProbeAttentionPooler,
    "position": ProbePositionRegressor,
    "decoder": ProbeVoxelDecoder,
    "subpatch": ProbeSubpatchDecoder,
}
