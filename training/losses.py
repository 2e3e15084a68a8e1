"""The three losses of the self-distillation: cross entropy against teacher targets (DINO, iBOT) and KoLeo.

All of them compute in fp32, whatever autocast is on.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

STUDENT_TEMPERATURE = 0.1
MAX_LOGITS_AT_ONCE = 2**25  # 128 MB in fp32: 512 rows of 65,536 prototypes

_warned_about_koleo = False


def prototype_cross_entropy(
    rows: Tensor,
    prototypes: Tensor,
    targets: Callable[[slice], Tensor],
    row_weights: Tensor,
    *,
    temperature: float = STUDENT_TEMPERATURE,
    max_logits: int = MAX_LOGITS_AT_ONCE,
) -> Tensor:
    """Weighted sum of cross entropies, without ever holding the logits of all rows.

    Rows are taken a chunk at a time. The gradients of a chunk are worked out at once, while its logits are there, so
    that nothing of the size (rows, K) is kept for the backward pass and nothing is computed twice. The chunk size
    changes the result only by rounding.

    Args:
        rows: (rows, width) student outputs before the prototypes.
        prototypes: (K, width) student prototypes.
        targets: gives the (n, K) fp32 distributions of a slice of rows; called once a chunk, without gradients.
        row_weights: (rows,) weight of each row in the sum.
        temperature: student temperature.
        max_logits: number of logits held at once.

    Returns:
        Scalar fp32 loss; an exact zero with a gradient path when there are no rows.
    """
    if rows.shape[0] == 0:
        # Every parameter must take part in every step, or DDP waits for gradients that never come.
        return (rows.float().sum() + prototypes.float().sum()) * 0.0
    chunk = rows_at_once(prototypes.shape[0], max_logits=max_logits)
    return _PrototypeCrossEntropy.apply(rows, prototypes, targets, row_weights.float(), temperature, chunk)


class _PrototypeCrossEntropy(torch.autograd.Function):
    """Loss and gradients of `prototype_cross_entropy` in one pass over the rows.

    A pass over (rows, K) numbers costs as much as the products themselves, so whatever can act on (rows, width) does:
    temperature before the product, row weights after it.
    """

    @staticmethod
    def forward(ctx, rows, prototypes, targets, row_weights, temperature, rows_per_chunk):
        device = rows.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
        # Differences of probabilities as small as 1 / K would lose their digits in fp16.
        scale = 64.0 if dtype == torch.float16 else 1.0
        needs_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        loss = torch.zeros((), device=rows.device)
        row_gradient = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        prototype_gradient = torch.zeros(prototypes.shape, dtype=torch.float32, device=rows.device)
        weight = prototypes.detach().to(dtype)
        for start in range(0, rows.shape[0], rows_per_chunk):
            chunk = slice(start, start + rows_per_chunk)
            target = targets(chunk)
            factor = row_weights[chunk, None]
            with torch.autocast(device_type=device, enabled=False):
                scaled = rows[chunk].detach().float() / temperature
                logits = nn.functional.linear(scaled.to(dtype), weight)
                log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
                loss -= (torch.linalg.vecdot(target, log_probabilities)[:, None] * factor).sum()
                if needs_gradient:
                    gradient = log_probabilities.exp_().sub_(target)
                    if scale != 1.0:
                        gradient.mul_(scale)
                    gradient = gradient.to(dtype)
                    row_gradient[chunk] = (gradient @ weight) * (factor / (temperature * scale))
                    # The largest weight of the chunk is taken out, for the sake of half precision.
                    largest = factor.abs().max().clamp(min=1e-30)
                    weighted = (scaled * (factor / largest)).to(dtype)
                    prototype_gradient.add_((gradient.T @ weighted) * (largest / scale))
        ctx.save_for_backward(row_gradient, prototype_gradient)
        ctx.dtypes = rows.dtype, prototypes.dtype
        return loss

    @staticmethod
    def backward(ctx, gradient):
        row_gradient, prototype_gradient = ctx.saved_tensors
        row_gradient, prototype_gradient = row_gradient * gradient, prototype_gradient * gradient
        return row_gradient.to(ctx.dtypes[0]), prototype_gradient.to(ctx.dtypes[1]), None, None, None, None


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
