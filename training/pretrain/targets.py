"""Teacher targets: which distribution over prototypes each teacher output stands for.

Two ways to keep the targets from collapsing onto one prototype:

- `Centre`: subtract a running mean of the teacher logits (the published recipe, the default);
- `sinkhorn_centre`: the vector that makes the prototypes equally used over the rows at hand (Sinkhorn-Knopp).

Both end in `softmax((logits - centre) / temperature)`, so a loss needs to know only one kind of target and can compute
the logits of a few rows at a time.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add a tensor up over all ranks, in place; a single process keeps it as it is."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def teacher_targets(logits: Tensor, centre: Tensor, *, temperature: float) -> Tensor:
    """Turn teacher logits into target distributions.

    Args:
        logits: (rows, K) teacher logits, any floating dtype.
        centre: (1, K) vector taken off the logits.
        temperature: teacher temperature; smaller is sharper.

    Returns:
        (rows, K) fp32 probabilities.
    """
    return torch.softmax((logits.float() - centre.float()) / temperature, dim=-1)


def row_targets(rows: Tensor, prototypes: Tensor, centre: Tensor, *, temperature: float) -> Tensor:
    """Target distributions of teacher outputs: `teacher_targets` of their product with the prototypes.

    Temperature and centre go into the product, which saves passes over (rows, K) numbers.

    Args:
        rows: (rows, width) teacher outputs before the prototypes.
        prototypes: (K, width) teacher prototypes.
        centre: (1, K) vector taken off the logits.
        temperature: teacher temperature.

    Returns:
        (rows, K) fp32 probabilities.
    """
    logits = nn.functional.linear(rows.float() / temperature, prototypes, -centre[0].float() / temperature)
    return torch.softmax(logits, dim=-1, dtype=torch.float32)


class Centre(nn.Module):
    """Running mean of teacher logits over all ranks and micro-batches of a step.

    The first update sets the centre to the mean, later ones move it by `1 - momentum`. It moves once per optimiser
    step. Every micro-batch of every rank counts equally, whatever its number of rows: the published iBOT centre does
    the same with micro-batches that hold different numbers of masked patches.

    Args:
        num_prototypes: K, length of the centre.
        momentum: share of the old centre kept at an update.
    """

    value: Tensor
    is_set: Tensor

    def __init__(self, num_prototypes: int, *, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(1, num_prototypes))
        self.register_buffer("is_set", torch.zeros((), dtype=torch.bool))
        self._sum_of_means: Tensor | None = None
        self._num_means = 0

    @torch.no_grad()
    def accumulate(self, batch_mean: Tensor) -> None:
        """Note the mean teacher logits of one micro-batch of this rank; call only when it had rows.

        Args:
            batch_mean: (K,) or (1, K) mean over the rows of the micro-batch.
        """
        mean = batch_mean.detach().float().reshape(1, -1)
        self._sum_of_means = mean.clone() if self._sum_of_means is None else self._sum_of_means + mean
        self._num_means += 1

    @torch.no_grad()
    def update(self) -> None:
        """Move the centre by what was accumulated; a collective call, once per optimiser step on every rank."""
        packed = torch.zeros(self.value.numel() + 1, device=self.value.device)
        if self._sum_of_means is not None:
            packed[:-1] = self._sum_of_means[0]
            packed[-1] = self._num_means
        self.discard()
        sum_over_ranks(packed)
        # No `.item()` here: on a GPU it would wait for the step just queued.
        has_means = packed[-1] > 0
        mean = packed[:-1] / packed[-1].clamp(min=1)
        moved = torch.where(self.is_set, self.value * self.momentum + mean * (1 - self.momentum), mean[None])
        self.value.copy_(torch.where(has_means, moved, self.value))
        self.is_set.logical_or_(has_means)

    def discard(self) -> None:
        """Forget what was accumulated, for a step that is skipped."""
        self._sum_of_means = None
        self._num_means = 0


@torch.no_grad()
def sinkhorn_centre(
    rows: Tensor, prototypes: Tensor, *, temperature: float, iterations: int = 3, rows_per_chunk: int = 1024
) -> Tensor:
    """Find the centre for which Sinkhorn-Knopp targets are a plain softmax.

    Sinkhorn-Knopp scales exp(logits / T) by a factor per prototype and one per row until every prototype carries the
    same mass (Cuturi 2013; used for targets by SwAV and DINOv2). The row factor is what a softmax does, so only
    -T log(prototype factor) has to be known, a vector of K numbers: the (rows, K) matrix is never held as a whole.

    Args:
        rows: (rows, width) teacher outputs before the prototypes, this rank's share; may be empty.
        prototypes: (K, width) teacher prototypes.
        temperature: teacher temperature.
        iterations: rounds of scaling; 3 is customary.
        rows_per_chunk: rows whose logits are held at once.

    Returns:
        (1, K) fp32 centre for `teacher_targets`, equal on all ranks.
    """
    num_prototypes = prototypes.shape[0]
    chunks = [slice(start, start + rows_per_chunk) for start in range(0, rows.shape[0], rows_per_chunk)]

    def scaled_logits(chunk: slice) -> Tensor:
        return nn.functional.linear(rows[chunk], prototypes).float() / temperature

    log_row_factor = torch.zeros(rows.shape[0], device=rows.device)
    log_factor = torch.zeros(num_prototypes, device=rows.device)
    for iteration in range(iterations):
        log_mass = torch.full_like(log_factor, -math.inf)
        for chunk in chunks:
            weighted = scaled_logits(chunk) + log_row_factor[chunk, None]
            log_mass = torch.logaddexp(log_mass, torch.logsumexp(weighted, dim=0))
        log_factor = -_logsumexp_over_ranks(log_mass)
        if iteration < iterations - 1:
            for chunk in chunks:
                log_row_factor[chunk] = -torch.logsumexp(scaled_logits(chunk) + log_factor, dim=1)
    return -temperature * log_factor[None]


def _logsumexp_over_ranks(values: Tensor) -> Tensor:
    """log of the sum over ranks of exp(values), elementwise."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    largest = values.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest + sum_over_ranks(torch.exp(values - largest)).log()
