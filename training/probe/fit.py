"""Fitting probes on frozen features: one loop for all task families, many small fits side by side.

Fits of one seed share batches, noise and dropout masks, and their parameters are stacked, so that one matrix product
moves them all; every parameter is optimised by itself, so a fit comes out the same whatever runs beside it. Early
stopping looks at each fit's own validation rows. Scores other than the loss come in as callables.

Linear heads take accelerated gradient steps (Nesterov) on all rows: with few labels and many features, stopping such a
descent early acts like a ridge penalty, while Adam moves every useless direction as fast as the useful ones.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.training.probe.data import ProbeFeatures, ProbeJob
from voxelfm_hf.training.probe.loop import FitGroup
from voxelfm_hf.training.probe.settings import DEFAULT_SETTINGS, FittedProbe, ProbeSettings
from voxelfm_hf.training.probe.stacks import make_stack

logger = logging.getLogger(__name__)

MAX_STACKED_PARAMETERS = 32_000_000


def fit_probes(
    features: ProbeFeatures,
    jobs: Sequence[ProbeJob],
    config: VoxelFMProbeConfig,
    *,
    settings: ProbeSettings | None = None,
    device: str = "cpu",
    on_epoch: Callable[[int, int], None] | None = None,
) -> list[FittedProbe]:
    """Fits every job with a head of the given configuration.

    Args:
        features: Features of all rows.
        jobs: The fits; any mix of labels, training rows and seeds, all with targets of the shape the head has.
        config: Task, head and sizes; one output for each job that fits a single label.
        settings: How to fit; by default what suits the head.
        device: Where to compute.
        on_epoch: Called with the epochs done and the most there can be, all fits together; first with 0 done.

    Returns:
        One fit a job, in the order of the jobs.
    """
    settings = settings or DEFAULT_SETTINGS[config.head]
    if config.family.risk_sets and settings.batch_size is not None:
        settings = replace(settings, batch_size=None)
    found: dict[int, FittedProbe] = {}
    groups = _groups(jobs, config, settings)
    for number, group in enumerate(groups):
        before, total = number * settings.epochs, len(groups) * settings.epochs

        def tell(epoch: int, before: int = before, total: int = total) -> None:
            if on_epoch:
                on_epoch(before + epoch, total)

        chosen = [jobs[index] for index in group]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chosen[0].seed)
            fits = FitGroup(features, chosen, config, settings, device).fit(tell)
        found.update(zip(group, fits, strict=True))
        logger.debug("fitted %d probes of seed %d", len(group), chosen[0].seed)
    return [found[index] for index in range(len(jobs))]


@torch.no_grad()
def probe_logits(
    features: ProbeFeatures,
    fits: Sequence[FittedProbe],
    config: VoxelFMProbeConfig,
    rows: np.ndarray,
    *,
    device: str = "cpu",
) -> np.ndarray:
    """Outputs (F, rows, o) of fitted probes on some rows, in the unit of the loss (not for segmentation)."""
    chosen = torch.as_tensor(rows, dtype=torch.long)
    outputs = []
    size = max(1, MAX_STACKED_PARAMETERS // sum(value.numel() for value in fits[0].state.values()))
    size = 1 if config.uses_patches else size
    for start in range(0, len(fits), size):
        stack = make_stack(config, [fit.state for fit in fits[start : start + size]], device)
        if config.uses_patches:
            parts = [
                stack([grid.to(device) for grid in features.patch_rows(part.tolist())]) for part in chosen.split(8)
            ]
        else:
            parts = [stack(features.cls_rows(part).to(device)) for part in chosen.split(256)]
        outputs.append(torch.cat(parts, dim=1).cpu())
    return torch.cat(outputs).numpy()


def make_probe(config: VoxelFMProbeConfig, fits: Sequence[FittedProbe], features: ProbeFeatures) -> VoxelFMProbe:
    """One probe model out of one fit, or out of one single-output fit for each label of the configuration.

    Args:
        config: Of the whole probe, all labels together; regression fits add their target mean and scale to it.
        fits: One fit, or one for each label in the order of `id2label` (linear and mlp heads).
        features: The features they were fitted on, for their standardisation.

    Returns:
        VoxelFMProbe: in evaluation mode.
    """
    states = [fit.state for fit in fits]
    joined = states[0] if len(fits) == 1 else {key: torch.cat([s[key] for s in states]) for key in states[0]}
    if fits[0].target_mean is not None:
        config.target_mean = [mean for fit in fits for mean in fit.target_mean or []]
        config.target_scale = [scale for fit in fits for scale in fit.target_scale or []]
    probe = VoxelFMProbe(config)
    probe.head.load_state_dict(joined)
    if features.mean is not None and features.scale is not None:
        probe.feature_mean.copy_(features.mean)
        probe.feature_scale.copy_(features.scale)
    return probe.eval()


def _groups(jobs: Sequence[ProbeJob], config: VoxelFMProbeConfig, settings: ProbeSettings) -> list[list[int]]:
    """Job numbers that may be fitted together: one seed, one set of training rows when those come in batches."""
    groups: dict = {}
    for index, job in enumerate(jobs):
        key = (job.seed, np.asarray(job.train).tobytes() if settings.batch_size is not None else None)
        groups.setdefault(key, []).append(index)
    with torch.device("meta"):
        per_fit = sum(parameter.numel() for parameter in VoxelFMProbe(config).head.parameters())
    size = 1 if config.uses_patches else max(1, MAX_STACKED_PARAMETERS // per_fit)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
