"""Losses of the probes, for F independent fits side by side: outputs (F, n, o), targets (F, n, k), weights (F, n).

A NaN target is missing: it takes no part in the loss. A row of weight 0 is not in the training set of that fit; weights
may differ between outputs, (F, n, o), in all losses but Cox's. Each function returns (F,) losses, so that the gradient
of their sum is the gradient of every fit by itself.
"""

import torch
from torch import nn


def binary_loss(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean binary cross entropy of logits over the known labels 0 or 1, k = o."""
    known = ~targets.isnan()
    losses = nn.functional.binary_cross_entropy_with_logits(outputs, targets.nan_to_num(), reduction="none")
    return _weighted_mean(losses, known, weights)


def class_loss(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross entropy of o classes; the class numbers are (F, n, 1), NaN or negative where missing."""
    known = targets >= 0
    log_chance = outputs.log_softmax(-1).gather(-1, targets.nan_to_num().clamp_min(0).long())
    return _weighted_mean(-log_chance, known, weights)


def squared_loss(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean squared error over the known targets, k = o."""
    known = ~targets.isnan()
    return _weighted_mean((outputs - targets.nan_to_num()).square(), known, weights)


def point_loss(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean smooth L1 error over the known coordinates, k = o."""
    known = ~targets.isnan()
    losses = nn.functional.smooth_l1_loss(outputs, targets.nan_to_num(), reduction="none")
    return _weighted_mean(losses, known, weights)


def dice_loss(
    outputs: torch.Tensor, targets: torch.Tensor, scored: torch.Tensor, *, smoothing: float = 5.0
) -> torch.Tensor:
    """One minus the mean soft Dice (squared denominators) of some classes, voxel by voxel rather than by prevalence.

    Args:
        outputs: (F, n, o) logits.
        targets: (F, n, 1) class numbers, negative where not annotated.
        scored: (o,) bool, the classes that count.
        smoothing: Voxels added to both sides of the fraction: a class that is rightly absent scores 1.

    Returns:
        (F,) losses; 0 where no class counts.
    """
    known = targets >= 0
    chances = outputs.softmax(-1) * known
    truth = torch.zeros_like(chances).scatter_(-1, targets.clamp_min(0), 1.0) * known
    overlap = (chances * truth).sum(1)
    total = chances.square().sum(1) + truth.sum(1)
    dice = (2 * overlap + smoothing) / (total + smoothing)
    count = scored.sum()
    return ((1 - dice) * scored).sum(-1) / count.clamp_min(1)


def cox_loss(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, ties: str = "efron") -> torch.Tensor:
    """Negative Cox partial log-likelihood over the full risk sets of the rows given, divided by the number of events.

    Args:
        outputs: (F, n, 1) log risks.
        targets: (F, n, 2) follow-up time and event (1 observed, 0 censored).
        weights: (F, n); rows of weight 0 are left out, others count once.
        ties: "efron" or "breslow" treatment of events at one time.

    Returns:
        (F,) losses in float64; 0 for a fit without events.
    """
    if ties not in ("efron", "breslow"):
        raise ValueError(f"ties must be 'efron' or 'breslow', got {ties!r}")
    times, events = targets[..., 0].double(), targets[..., 1].double()
    inside = (weights > 0) & ~times.isnan() & ~events.isnan()
    events = torch.where(inside, events, 0.0)
    order = torch.where(inside, times, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    times, events, inside = (x.gather(-1, order) for x in (times, events, inside))
    risks = outputs[..., 0].double().gather(-1, order)
    top = risks.detach().masked_fill(~inside, -torch.inf).amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    risks = torch.where(inside, risks - top, 0.0)
    hazards = torch.where(inside, risks.exp(), 0.0)

    # Rows of one time form a group; groups run from the latest time to the earliest.
    starts = torch.ones_like(inside)
    starts[..., 1:] = times[..., 1:] != times[..., :-1]
    group = starts.long().cumsum(-1) - 1
    zeros = torch.zeros_like(hazards)
    at_risk = zeros.scatter_add(-1, group, hazards).cumsum(-1).gather(-1, group)
    denominators = at_risk
    if ties == "efron":
        deaths = zeros.scatter_add(-1, group, events)
        dying = zeros.scatter_add(-1, group, hazards * events).gather(-1, group)
        before = events.cumsum(-1) - events - (deaths.cumsum(-1) - deaths).gather(-1, group)
        denominators = at_risk - before / deaths.gather(-1, group).clamp_min(1) * dying
    # Risks further apart than doubles reach would give log(0).
    log_likelihood = events * (risks - denominators.clamp_min(1e-300).log())
    return -log_likelihood.sum(-1) / events.sum(-1).clamp_min(1)


# Bounds of the second derivative of each loss in its output, for heads that are linear.
CURVATURES = {binary_loss: 0.25, class_loss: 0.5, squared_loss: 2.0, cox_loss: 1.0}


def _weighted_mean(losses: torch.Tensor, known: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over rows and outputs of each fit; 0 where nothing is known."""
    effective = known * (weights.unsqueeze(-1) if weights.ndim < known.ndim else weights)
    return (losses * effective).sum((-2, -1)) / effective.sum((-2, -1)).clamp_min(1e-12)
