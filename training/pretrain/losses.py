"""The three losses of the self-distillation: cross entropy against teacher targets (DINO, iBOT) and KoLeo.

All of them compute in fp32, whatever autocast is on.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

STUDENT_TEMPERATURE = 0.1
MAX_LOGITS_AT_ONCE = 2**25  # 128 MB in fp32: 512 rows of 65,536 prototypes
# Measured on two cores, 320 rows of 65,536 prototypes in bf16: 0.28 s with 2**21 or 2**22, 0.43 s all at once.
MAX_LOGITS_IN_CACHE = 2**21

_warned_about_koleo = False


@dataclass(frozen=True)
class Part:
    """One sum of cross entropies.

    Args:
        rows: (n, width) student outputs before the prototypes; n may be 0.
        targets: gives the (m, K) fp32 distributions of a slice of the rows; called once a row, without gradients.
        row_weights: (n,) weight of each row in the sum.
        scale: factor of the sum in the total.
    """

    rows: Tensor
    targets: Callable[[slice], Tensor]
    row_weights: Tensor
    scale: float = 1.0


def prototype_cross_entropy(
    parts: Sequence[Part],
    prototypes: Tensor,
    *,
    temperature: float = STUDENT_TEMPERATURE,
    max_logits: int = MAX_LOGITS_AT_ONCE,
) -> tuple[Tensor, list[Tensor]]:
    """Cross entropies of several sets of rows against the same prototypes, without ever holding all logits.

    Rows are taken a chunk at a time. The gradients of a chunk are worked out at once, while its logits are there, so
    that nothing of the size (rows, K) is kept for the backward pass and nothing is computed twice. The chunk size
    changes the result only by rounding.

    Args:
        parts: sums of cross entropies.
        prototypes: (K, width) student prototypes.
        temperature: student temperature.
        max_logits: number of logits held at once.

    Returns:
        The scaled total, a scalar fp32 loss (0 with a gradient path when there are no rows), and each part's sum
        without gradient, not scaled.
    """
    chunk = rows_at_once(prototypes.shape[0], max_logits=max_logits)
    rows = [part.rows for part in parts]
    total, *values = _PrototypeCrossEntropy.apply(prototypes, parts, temperature, chunk, *rows)
    return total, values


class _PrototypeCrossEntropy(torch.autograd.Function):
    """Loss and gradients of `prototype_cross_entropy` in one pass over the rows.

    A pass over (rows, K) numbers costs as much as the products themselves, so whatever can act on (rows, width) does:
    temperature before the product, row weights after it.
    """

    @staticmethod
    def forward(ctx, prototypes, parts, temperature, rows_per_chunk, *all_rows):
        device = prototypes.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else prototypes.dtype
        # Differences of probabilities as small as 1 / K would lose their digits in fp16.
        precision_scale = 64.0 if dtype == torch.float16 else 1.0
        needs_gradient = any(ctx.needs_input_grad)
        weight = prototypes.detach().to(dtype)
        # On a CPU, passes over a few rows of logits stay in the cache; the products take a whole chunk.
        block = rows_at_once(len(weight), max_logits=MAX_LOGITS_IN_CACHE) if device == "cpu" else rows_per_chunk
        prototype_gradient, row_gradients, values = None, [], []
        for part, rows in zip(parts, all_rows, strict=True):
            value = torch.zeros((), device=prototypes.device)
            row_gradient = torch.empty(rows.shape, dtype=torch.float32, device=prototypes.device)
            for chunk in _slices(0, len(rows), rows_per_chunk):
                factor = part.row_weights[chunk, None].float()
                scaled = rows[chunk].detach().float() / temperature
                gradient = scaled.new_empty((len(scaled), len(weight)), dtype=dtype) if needs_gradient else None
                for inner in _slices(chunk.start, chunk.stop, block):
                    target = part.targets(inner)
                    with torch.autocast(device_type=device, enabled=False):
                        own = slice(inner.start - chunk.start, inner.stop - chunk.start)
                        logits = nn.functional.linear(scaled[own].to(dtype), weight)
                        log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
                        value -= (torch.linalg.vecdot(target, log_probabilities)[:, None] * factor[own]).sum()
                        if gradient is not None:
                            difference = log_probabilities.exp_().sub_(target)
                            gradient[own] = difference if precision_scale == 1.0 else difference.mul_(precision_scale)
                if gradient is None:
                    continue
                with torch.autocast(device_type=device, enabled=False):
                    factor = factor * (part.scale / precision_scale)
                    row_gradient[chunk] = (gradient @ weight) * (factor / temperature)
                    # The largest weight of the chunk is taken out, for the sake of half precision.
                    largest = factor.abs().max().clamp(min=1e-30)
                    share = gradient.T @ (scaled * (factor / largest)).to(dtype)
                    if prototype_gradient is None:
                        prototype_gradient = share * largest
                    else:
                        prototype_gradient.add_(share * largest)
            row_gradients.append(row_gradient)
            values.append(value)
        if prototype_gradient is None:
            # Every parameter takes part in every step, or DDP waits for gradients that never come.
            prototype_gradient = torch.zeros(prototypes.shape, dtype=torch.float32, device=prototypes.device)
        ctx.save_for_backward(prototype_gradient, *row_gradients)
        ctx.dtypes = [prototypes.dtype, *(rows.dtype for rows in all_rows)]
        ctx.mark_non_differentiable(*values)
        total = sum(
            (value * part.scale for part, value in zip(parts, values, strict=True)), torch.zeros_like(values[0])
        )
        return total, *values

    @staticmethod
    def backward(ctx, gradient, *_):
        found = [(own * gradient).to(dtype) for own, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return found[0], None, None, None, *found[1:]


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most `step` rows."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def rows_at_once(num_prototypes: int, *, max_logits: int = MAX_LOGITS_AT_ONCE) -> int:
    """How many rows of logits fit into `max_logits` numbers; at least one."""
    return max(1, max_logits // num_prototypes)


def masked_patch_weights(masks: Tensor) -> Tensor:
    """Weights that make a sum over masked patches the iBOT loss.

    The loss is the mean over the masked patches of an image, averaged over ALL images: those without a masked
    patch count 0 but stay in the denominator (as published).

    Args:
        masks: (images, patches) boolean, true = masked.

    Returns:
        (masked patches,) fp32 weights in row-major order of `masks`.
    """
    per_image = 1.0 / masks.sum(dim=1).clamp(min=1) / masks.shape[0]
    return per_image[:, None].expand_as(masks)[masks]


def koleo_loss(features: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko regulariser: minus the mean log distance to the nearest neighbour on the unit sphere.

    Neighbours are looked for among the rows given: the samples of one micro-batch on one rank. As published, `eps` is
    added to every coordinate difference and to the distance, so equal rows give a large finite number.
    One row has no neighbour: the loss is then 0 (and says so once), not infinite.

    Args:
        features: (samples, width) before any head.
        eps: guard against log 0.

    Returns:
        Scalar fp32 loss.
    """
    global _warned_about_koleo
    if features.shape[0] < 2:
        if not _warned_about_koleo:
            logger.warning("KoLeo needs at least two samples a micro-batch on each rank; with one it counts 0.")
            _warned_about_koleo = True
        return features.float().sum() * 0.0
    with torch.autocast(device_type=features.device.type, enabled=False):
        unit = nn.functional.normalize(features.float(), eps=eps, dim=-1)
        with torch.no_grad():
            similarity = unit @ unit.T
            similarity.fill_diagonal_(-1)
            neighbour = similarity.argmax(dim=1)
        distance = nn.functional.pairwise_distance(unit, unit[neighbour], p=2, eps=eps)
        return -torch.log(distance + eps).mean()
