"""What probes are fitted on: features in memory or read on demand, and jobs that say which rows and targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig


@dataclass(frozen=True, eq=False)
class ProbeFeatures:
    """Frozen features of n scans.

    Args:
        cls: (n, C) CLS vectors, or None.
        patches: A function row -> (d, h, w, C) array, or None; called again each time a row is needed.
        mean: (C,) subtracted from every feature before a head sees it.
        scale: (C,) divided by.
    """

    cls: torch.Tensor | None = None
    patches: Callable[[int], np.ndarray] | None = None
    mean: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    def __len__(self) -> int:
        if self.cls is None:
            raise TypeError("features without CLS vectors have no length")
        return len(self.cls)

    def standardised(self, rows: np.ndarray) -> "ProbeFeatures":
        """The same features, centred and scaled by some (training) rows: their CLS vectors, or at most 32 grids."""
        if self.cls is not None:
            chosen = self.cls[torch.as_tensor(rows)]
        else:
            spread = np.asarray(rows)[np.unique(np.linspace(0, len(rows) - 1, 32).round().astype(int))]
            grids = replace(self, mean=None, scale=None).patch_rows(spread.tolist())
            chosen = torch.cat([grid.flatten(0, 2) for grid in grids])
        mean, scale = mean_and_scale(chosen)
        return replace(self, mean=mean.float(), scale=scale.float())

    def cls_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Standardised CLS vectors (b, C) of some rows."""
        if self.cls is None:
            raise ValueError("these features have no CLS vectors")
        return self._scaled(self.cls[rows].float())

    def patch_rows(self, rows: Sequence[int]) -> list[torch.Tensor]:
        """Standardised patch grids (d, h, w, C) of some rows."""
        if self.patches is None:
            raise ValueError("these features have no patch grids")
        grids = (torch.as_tensor(np.asarray(self.patches(int(row)))).float() for row in rows)
        return [self._scaled(grid) for grid in grids]

    def _scaled(self, features: torch.Tensor) -> torch.Tensor:
        if self.mean is None or self.scale is None:
            return features
        return (features - self.mean) / self.scale


def mean_and_scale(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (C,) of features (n, C), in float64; features that hardly vary are not scaled."""
    features = features.double()
    mean, scale = features.mean(0), features.std(0, correction=0)
    return mean, torch.where(scale > 1e-6 * scale.max().clamp_min(1e-12), scale, torch.ones_like(scale))


@dataclass(frozen=True, eq=False)
class ProbeJob:
    """One fit: its targets, its rows, its seed.

    Args:
        name: For messages and tables.
        targets: (n, k) for all n rows of the features, NaN where missing: labels, class number, standardised by the fit
            for regression, time and event for survival, points from 0 to 1; or for segmentation a function
            row -> (D, H, W) classes, negative where not annotated.
        train: Row numbers to fit on.
        validation: Row numbers for early stopping; none fits for all epochs.
        seed: Fixes initial weights, order, noise and dropout.
        annotated: For segmentation, a function row -> (classes,) bool, false for classes that were not looked for in a
            scan: its background voxels then say nothing about them. All are by default.
    """

    name: str
    targets: np.ndarray | Callable[[int], np.ndarray]
    train: np.ndarray
    validation: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    seed: int = 0
    annotated: Callable[[int], np.ndarray] | None = None


def prepared_targets(jobs: Sequence[ProbeJob], config: VoxelFMProbeConfig) -> tuple[torch.Tensor, list, list]:
    """Targets (F, n, k) as the losses take them, and for regression the mean and scale of each job's training rows."""
    stacked, means, scales = [], [], []
    for job in jobs:
        targets = np.array(job.targets, dtype=np.float32)
        if config.family.standardised:
            train = targets[job.train].astype(float)
            mean, scale = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
            scale = np.where(scale > 0, scale, 1.0)
            targets = ((targets - mean) / scale).astype(np.float32)
            means.append(mean.tolist())
            scales.append(scale.tolist())
        stacked.append(torch.from_numpy(targets))
    return torch.stack(stacked), means, scales


def row_weights(
    targets: torch.Tensor, rows: Sequence[np.ndarray], config: VoxelFMProbeConfig, *, balance: bool
) -> torch.Tensor:
    """Weights (F, n, k): 0 outside the rows of a fit; with balance, every class of a label gets the same total."""
    weights = torch.zeros(targets.shape[:2])
    for index, chosen in enumerate(rows):
        weights[index, torch.as_tensor(chosen, dtype=torch.long)] = 1.0
    if config.family.risk_sets:
        return weights
    weights = weights[..., None].expand(targets.shape if config.family.balanced else (*weights.shape, 1))
    if not (config.family.balanced and balance):
        return weights.clone()
    classes = config.num_classes if config.is_single_label else 2
    balanced = torch.zeros_like(targets)
    for value in range(classes):
        member = weights * (targets == value)
        balanced += member / member.sum(1, keepdim=True).clamp_min(1)
    # Kept near 1 a row, so that the loss has the scale of an unbalanced one.
    return balanced * weights.sum(1, keepdim=True) / classes
