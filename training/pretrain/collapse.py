"""Numbers that show whether a self-distillation run is collapsing, cheap enough to log all the time."""

import math

import torch
from torch import Tensor

from voxelfm_hf.training.pretrain.self_distillation import Teacher, TeacherOutput


@torch.no_grad()
def collapse_metrics(output: TeacherOutput, teacher: Teacher) -> dict[str, float]:
    """Describe the teacher's targets and features on one micro-batch of this rank.

    A healthy run has targets far from uniform one by one and close to uniform together, and features of many
    dimensions.

    - `teacher_entropy`: mean entropy of the targets, in nats; log K when all targets are uniform (nothing is taught).
    - `teacher_kl_to_uniform`: divergence of the mean target from the uniform one; log K when all crops share one
      prototype. With n crops of sharp targets it cannot fall below log K - log n.
    - `dino_centre_norm`, `ibot_centre_norm`: lengths of the centres.
    - `feature_rank`: exponential of the entropy of the normalised singular values of the centred CLS vectors (Roy and
      Vetterli 2007), between 1 and the number of crops.
    - `feature_std`: mean standard deviation over crops of the coordinates of unit CLS vectors times the square root
      of their number; 0 when all are equal, about 1 when they point anywhere.

    Args:
        output: the teacher's output for the micro-batch.
        teacher: the teacher, for its centres.

    Returns:
        Metric name -> value.
    """
    targets, features = output.cls_targets, output.features
    mean_target = targets.mean(0)
    centred = features - features.mean(0)
    spectrum = torch.linalg.svdvals(centred)
    spectrum = spectrum / spectrum.sum().clamp(min=1e-12)
    unit = torch.nn.functional.normalize(features, dim=-1)
    values = {
        "teacher_entropy": _entropy(targets).mean(),
        "teacher_kl_to_uniform": math.log(targets.shape[1]) - _entropy(mean_target),
        "dino_centre_norm": teacher.dino_centre.value.norm(),
        "ibot_centre_norm": teacher.ibot_centre.value.norm(),
        "feature_rank": _entropy(spectrum).exp(),
        "feature_std": unit.std(dim=0, unbiased=False).mean() * math.sqrt(unit.shape[1]),
    }
    return {name: float(value) for name, value in values.items()}


def _entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats along the last axis."""
    return torch.special.entr(probabilities).sum(dim=-1)
