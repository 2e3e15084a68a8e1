"""The task families of probes: the heads, labels, loss and answers of each; a new family is a new class here.

Notation: B scans, L labels or targets, K classes, P points, o outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .probe_losses_voxelfm import binary_loss, class_loss, cox_loss, point_loss, squared_loss


@dataclass
class VoxelFMProbePrediction(ModelOutput):
    """Answers in natural units.

    `predictions`: probabilities (B, L) or (B, K), targets in their unit (B, L), log risks (B, 1), points (B, P, 3) from
    0 to 1 along z, y, x, or class probabilities (B, K, D, H, W). `low` and `high`: the prediction interval of a
    regression. `positive` (B, L): whether the probability reaches the label's threshold.
    """

    predictions: torch.Tensor | None = None
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    positive: torch.Tensor | None = None


class ProbeTask:
    """One family, for the probe of one configuration.

    Attributes:
        heads: The heads it may have, the default first.
        value_name: What a value is of the row of values that a scan has; None where the answer is something else.
        balanced: Classes can be given the same total weight in a fit.
        standardised: Targets are fitted in units of their spread over the training rows.
        risk_sets: What a row adds to the loss depends on all other rows, so that a step of a fit takes all of them.
        in_scan: Labels are places in the scan, which move with it.
        is_map: Labels are maps of classes, on which a loss is taken voxel by voxel.
    """

    heads: tuple[str, ...]
    value_name: str | None = None
    balanced = False
    standardised = False
    risk_sets = False
    in_scan = False
    is_map = False

    def __init__(self, config):
        self.config = config

    @property
    def num_outputs(self) -> int:
        """Numbers the head gives a scan (a voxel where labels are maps)."""
        return self.config.num_classes

    @property
    def loss(self) -> Callable[..., torch.Tensor]:
        """One of `probe_losses_voxelfm`."""
        raise NotImplementedError

    def loss_rows(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs (n, o) and targets (n, k) as the loss takes them, from logits and labels of a model's `forward`."""
        return logits, labels.to(logits.dtype).reshape(logits.shape)

    def answers(self, logits: torch.Tensor) -> VoxelFMProbePrediction:
        """What logits mean in natural units."""
        return VoxelFMProbePrediction(predictions=logits)


class ClassificationTask(ProbeTask):
    """Labels (B, L), 0 or 1, that may occur together; or class numbers (B,) of classes that exclude each other."""

    heads = ("linear", "mlp", "pooler", "knn")
    value_name = "score"
    balanced = True

    @property
    def loss(self):
        return class_loss if self.config.is_single_label else binary_loss

    def loss_rows(self, logits, labels):
        return (logits, labels.reshape(-1, 1)) if self.config.is_single_label else super().loss_rows(logits, labels)

    def answers(self, logits):
        temperature = logits.new_tensor(self.config.temperature or [1.0])
        if self.config.is_single_label:
            return VoxelFMProbePrediction(predictions=(logits / temperature[0]).softmax(-1))
        chance = (logits / temperature).sigmoid()
        threshold = logits.new_tensor(self.config.threshold or [0.5])
        return VoxelFMProbePrediction(predictions=chance, positive=chance >= threshold)


class RegressionTask(ProbeTask):
    """Targets (B, L) in their unit."""

    heads = ("linear", "mlp", "pooler")
    value_name = "value"
    standardised = True

    @property
    def loss(self):
        return squared_loss

    def loss_rows(self, logits, labels):
        mean, scale = self._target_scale(logits)
        outputs, targets = super().loss_rows(logits, labels)
        return outputs, (targets - mean) / scale

    def answers(self, logits):
        mean, scale = self._target_scale(logits)
        values = logits * scale + mean
        if self.config.interval_half_width is None:
            return VoxelFMProbePrediction(predictions=values)
        margin = values.new_tensor(self.config.interval_half_width)
        return VoxelFMProbePrediction(predictions=values, low=values - margin, high=values + margin)

    def _target_scale(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, scale = self.config.target_mean or [0.0], self.config.target_scale or [1.0]
        return logits.new_tensor(mean), logits.new_tensor(scale)


class SurvivalTask(ProbeTask):
    """Follow-up times and events (B, 2)."""

    heads = ("linear", "mlp", "pooler")
    value_name = "log_risk"
    risk_sets = True

    @property
    def num_outputs(self):
        return 1

    @property
    def loss(self):
        return cox_loss

    def loss_rows(self, logits, labels):
        return logits, labels.to(logits.dtype)


class LocalizationTask(ProbeTask):
    """Points (B, P, 3), z, y, x from 0 to 1 across the patch grid."""

    heads = ("position",)
    in_scan = True

    @property
    def num_outputs(self):
        return 3 * self.config.num_points

    @property
    def loss(self):
        return point_loss

    def answers(self, logits):
        return VoxelFMProbePrediction(predictions=logits.unflatten(1, (self.config.num_points, 3)))


class SegmentationTask(ProbeTask):
    """Class numbers (B, D, H, W), negative where not annotated."""

    heads = ("subpatch", "decoder")
    in_scan = True
    is_map = True

    @property
    def loss(self):
        return class_loss

    def loss_rows(self, logits, labels):
        return logits.movedim(1, -1).reshape(-1, self.config.num_classes), labels.reshape(-1, 1)

    def answers(self, logits):
        return VoxelFMProbePrediction(predictions=logits.softmax(1))


PROBE_TASKS: dict[str, type[ProbeTask]] = {
    "classification": ClassificationTask,
    "regression": RegressionTask,
    "survival": SurvivalTask,
    "localization": LocalizationTask,
    "segmentation": SegmentationTask,
}
