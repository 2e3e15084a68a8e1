"""The three losses of the self-distillation: cross entropy against teacher targets (DINO, iBOT) and KoLeo.

All of them compute in fp32, whatever autocast is on.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)

STUDENT_TEMPERATURE = 0.1
MAX_LOGITS_AT_ONCE = 2**25  # 128 MB in fp32: 512 rows of 65,536 prototypes

_warned_about_koleo = False


def soft_cross_entropy(logits: Tensor, targets: Tensor, *, temperature: float = STUDENT_TEMPERATURE) -> Tensor:
    """Cross entropy of student logits against soft targets, row by row.

    Args:
        logits: (rows, K) student logits.
        targets: (rows, K) non-negative fp32 weights; a row may add up to more than 1 (two teachers summed).
        temperature: student temperature.

    Returns:
        (rows,) fp32 losses.
    """
    log_probabilities = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(targets * log_probabilities).sum(dim=-1)


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

    Rows are taken a chunk at a time; the logits and targets of a chunk are computed again in the backward pass
    instead of being kept. When one chunk holds all rows nothing is recomputed. The chunk size changes the result only
    by rounding.

    Args:
        rows: (rows, width) student outputs before the prototypes.
        prototypes: (K, width) student prototypes.
        targets: gives the (n, K) fp32 targets of a slice of rows; called without gradients, twice when recomputing.
        row_weights: (rows,) weight of each row in the sum.
        temperature: student temperature.
        max_logits: number of logits held at once.

    Returns:
        Scalar fp32 loss; an exact zero with a gradient path when there are no rows.
    """
    num_rows, num_prototypes = rows.shape[0], prototypes.shape[0]
    if num_rows == 0:
        # Every parameter must take part in every step, or DDP waits for gradients that never come.
        return (rows.float().sum() + prototypes.float().sum()) * 0.0

    def chunk_loss(chunk: slice) -> Tensor:
        with torch.no_grad():
            target = targets(chunk)
        logits = nn.functional.linear(rows[chunk], prototypes)
        return (soft_cross_entropy(logits, target, temperature=temperature) * row_weights[chunk]).sum()

    rows_per_chunk = rows_at_once(num_prototypes, max_logits=max_logits)
    if num_rows <= rows_per_chunk:
        return chunk_loss(slice(0, num_rows))
    total = torch.zeros((), device=rows.device)
    for start in range(0, num_rows, rows_per_chunk):
        chunk = slice(start, start + rows_per_chunk)
        total = total + checkpoint(chunk_loss, chunk, use_reentrant=False, preserve_rng_state=False)
    return total


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
