"""Student and teacher of the self-distillation: one forward pass to losses, targets, EMA.

The student sees global crops (half of them masked) and local crops; the teacher, an average of past students, sees the
global crops unmasked. Three losses tie them: CLS against CLS across views (DINO), masked patches against the teacher's
patches at the same place (iBOT), and KoLeo, which spreads the CLS vectors of a batch.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.training.pretrain.heads import DistillationHead, HeadSettings
from voxelfm_hf.training.pretrain.losses import (
    MAX_LOGITS_AT_ONCE,
    STUDENT_TEMPERATURE,
    Part,
    koleo_loss,
    masked_patch_weights,
    prototype_cross_entropy,
    rows_at_once,
)
from voxelfm_hf.training.pretrain.targets import Centre, row_targets, sinkhorn_centre

# The losses that `Student` gives back, by the panel of the log's picture that shows them.
LOSSES = {"losses": ("total", "dino_local", "dino_global", "ibot"), "KoLeo": ("koleo",)}


@dataclass(frozen=True)
class LossSettings:
    """Weights and temperatures of the losses; the defaults are the published ones.

    Args:
        dino_weight: weight of the CLS losses.
        ibot_weight: weight of the masked patch loss.
        koleo_weight: weight of KoLeo, summed over the two global crops.
        student_temperature: temperature of the student's softmax.
        centre_momentum: share of the old centre kept at a step.
        targets: `centring`, or `sinkhorn` for Sinkhorn-Knopp over the rows of a micro-batch on all ranks.
    """

    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    student_temperature: float = STUDENT_TEMPERATURE
    centre_momentum: float = 0.9
    targets: Literal["centring", "sinkhorn"] = "centring"


@dataclass(frozen=True)
class TeacherOutput:
    """What the student learns from, without gradients.

    Args:
        features: (2B, C) fp32 CLS vectors of the global crops, view-major.
        cls_targets: (2B, K) fp32 target distributions of the global crops.
        patch_rows: (M, width) head outputs of the masked patches, row-major over crops.
        patch_prototypes: (K, width) teacher prototypes for them, in the dtype of products.
        patch_centre: (1, K) centre of their logits.
        temperature: teacher temperature.
    """

    features: Tensor
    cls_targets: Tensor
    patch_rows: Tensor
    patch_prototypes: Tensor
    patch_centre: Tensor
    temperature: float


class Student(nn.Module):
    """Backbone and heads that learn; its forward pass ends in the losses, so that wrappers (DDP, FSDP) see it whole.

    Args:
        config: backbone configuration, stochastic depth included.
        head: shape of the heads.
        loss: weights and temperatures.
        max_logits: logits held at once by a loss.
    """

    def __init__(
        self,
        config: VoxelFMConfig,
        head: HeadSettings,
        loss: LossSettings,
        *,
        max_logits: int = MAX_LOGITS_AT_ONCE,
    ):
        super().__init__()
        self.loss = loss
        self.max_logits = max_logits
        self.backbone = VoxelFMModel(config)
        self.dino_head = DistillationHead(config.hidden_size, head)
        self.ibot_head = DistillationHead(config.hidden_size, head) if head.separate_ibot_head else None

    def forward(
        self, global_crops: Tensor, local_crops: Tensor, masks: Tensor, teacher: TeacherOutput
    ) -> dict[str, Tensor]:
        """Compute the losses of one micro-batch.

        Args:
            global_crops: (2B, 1, g, g, g), view-major: the first views of all samples, then the second ones.
            local_crops: (L * B, 1, l, l, l), view-major.
            masks: (2B, N) boolean, true = patch replaced by the mask token.
            teacher: what to learn from.

        Returns:
            Scalar fp32 losses, those of `LOSSES`: `total`, and without gradient the others, whose weighted sum it is.
        """
        num_globals, batch = global_crops.shape[0], global_crops.shape[0] // 2
        num_locals = local_crops.shape[0] // batch
        tokens = self.backbone(global_crops, bool_masked_pos=masks).last_hidden_state
        global_cls = tokens[:, 0]
        masked_patches = tokens[:, self.backbone.num_prefix_tokens :][masks]
        views = [global_cls]
        if num_locals:
            views.append(self.backbone(local_crops).pooler_output)
        rows, patch_rows = self._project(torch.cat(views), masked_patches)

        # Cross entropy is linear in its targets: a local crop learns from both teachers at once.
        local_targets = teacher.cls_targets.unflatten(0, (2, batch)).mean(0)
        sample = torch.arange(num_locals * batch, device=rows.device) % batch
        # Each global crop learns from the other view of the same sample.
        global_targets = teacher.cls_targets.roll(batch, dims=0)
        num_pairs = 2 + 2 * num_locals
        dino = [
            Part(
                rows[num_globals:],
                lambda chunk: local_targets[sample[chunk]],
                rows.new_full((num_locals * batch,), 2 / (batch * num_pairs)),
                self.loss.dino_weight,
            ),
            Part(
                rows[:num_globals],
                lambda chunk: global_targets[chunk],
                rows.new_full((num_globals,), 2 / (num_globals * num_pairs)),
                self.loss.dino_weight,
            ),
        ]
        ibot = Part(
            patch_rows,
            lambda chunk: row_targets(
                teacher.patch_rows[chunk],
                teacher.patch_prototypes,
                teacher.patch_centre,
                temperature=teacher.temperature,
            ),
            masked_patch_weights(masks),
            self.loss.ibot_weight,
        )
        if self.ibot_head is None:
            total, values = self._cross_entropy([*dino, ibot], self.dino_head)
        else:
            total, values = self._cross_entropy(dino, self.dino_head)
            patch_total, patch_values = self._cross_entropy([ibot], self.ibot_head)
            total, values = total + patch_total, [*values, *patch_values]
        koleo = koleo_loss(global_cls[:batch]) + koleo_loss(global_cls[batch:])
        return {
            "total": total + self.loss.koleo_weight * koleo,
            "dino_local": values[0],
            "dino_global": values[1],
            "ibot": values[2],
            "koleo": koleo.detach(),
        }

    def _project(self, cls_rows: Tensor, patch_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Head outputs of CLS and masked patch tokens; a shared head sees both at once."""
        if self.ibot_head is not None:
            return self.dino_head(cls_rows), self.ibot_head(patch_rows)
        rows = self.dino_head(torch.cat((cls_rows, patch_rows)))
        return rows[: len(cls_rows)], rows[len(cls_rows) :]

    def _cross_entropy(self, parts: list[Part], head: DistillationHead) -> tuple[Tensor, list[Tensor]]:
        """Cross entropies at the student's temperature, a bounded number of logits at a time."""
        return prototype_cross_entropy(
            parts, head.prototypes(), temperature=self.loss.student_temperature, max_logits=self.max_logits
        )


class Teacher(nn.Module):
    """Average of past students, with the centres of its logits; always in evaluation mode and without gradients.

    Args:
        student: the student it starts as a copy of.
    """

    def __init__(self, student: Student):
        super().__init__()
        self.loss = student.loss
        self.max_logits = student.max_logits
        config = copy.deepcopy(student.backbone.config)
        config.drop_path_rate = 0.0
        self.backbone = VoxelFMModel(config)
        self.backbone.load_state_dict(student.backbone.state_dict())
        self.dino_head = copy.deepcopy(student.dino_head)
        self.ibot_head = copy.deepcopy(student.ibot_head)
        num_prototypes = self.dino_head.prototypes().shape[0]
        self.dino_centre = Centre(num_prototypes, momentum=self.loss.centre_momentum)
        self.ibot_centre = Centre(num_prototypes, momentum=self.loss.centre_momentum)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: no stochastic depth and no rescaled positions for targets."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, global_crops: Tensor, masks: Tensor, *, temperature: float) -> TeacherOutput:
        """Compute the targets of one micro-batch and note its share of the centres.

        With Sinkhorn targets this is a collective call.

        Args:
            global_crops: (2B, 1, g, g, g), view-major.
            masks: (2B, N) boolean; only the patches true here get targets.
            temperature: teacher temperature.

        Returns:
            Targets for `Student.forward`.
        """
        tokens = self.backbone(global_crops).last_hidden_state
        features = tokens[:, 0].float()
        patches = tokens[:, self.backbone.num_prefix_tokens :][masks]
        patch_head = self.dino_head if self.ibot_head is None else self.ibot_head
        cls_rows, patch_rows = self.dino_head(tokens[:, 0]), patch_head(patches)
        prototypes = self.dino_head.prototypes()
        patch_prototypes = prototypes if self.ibot_head is None else patch_head.prototypes()
        dino_centre = self._centre(self.dino_centre, cls_rows, prototypes, temperature=temperature)
        ibot_centre = self._centre(self.ibot_centre, patch_rows, patch_prototypes, temperature=temperature)
        return TeacherOutput(
            features=features,
            cls_targets=row_targets(cls_rows, prototypes, dino_centre, temperature=temperature),
            patch_rows=patch_rows,
            patch_prototypes=_in_autocast_dtype(patch_prototypes),
            patch_centre=ibot_centre,
            temperature=temperature,
        )

    def _centre(self, centre: Centre, rows: Tensor, prototypes: Tensor, *, temperature: float) -> Tensor:
        """The centre in force for these rows; notes their mean for the next update."""
        if self.loss.targets == "sinkhorn":
            chunk = rows_at_once(prototypes.shape[0], max_logits=self.max_logits)
            return sinkhorn_centre(rows, prototypes, temperature=temperature, rows_per_chunk=chunk)
        if len(rows):
            # The mean of the logits is the product with the mean row: no (rows, K) matrix is needed.
            with torch.autocast(device_type=rows.device.type, enabled=False):
                centre.accumulate(prototypes.float() @ rows.float().mean(0))
        return centre.value.clone()

    @torch.no_grad()
    def update(self, student: Student, *, momentum: float) -> None:
        """Follow the student and move the centres: once per optimiser step, after it, on every rank.

        The average is local: equal students and equal teachers on all ranks stay equal, so nothing is broadcast.

        Args:
            student: the unwrapped student.
            momentum: share of the old teacher kept.
        """
        own, other = [], []
        for part in ("backbone", "dino_head", "ibot_head"):
            if getattr(self, part) is not None:
                own += list(getattr(self, part).parameters())
                other += [_whole(parameter) for parameter in getattr(student, part).parameters()]
        torch._foreach_lerp_(own, other, 1 - momentum)
        self.dino_centre.update()
        self.ibot_centre.update()

    def discard(self) -> None:
        """Forget what was noted for the centres, for a step that is skipped."""
        self.dino_centre.discard()
        self.ibot_centre.discard()


def _whole(parameter: Tensor) -> Tensor:
    """A parameter without its sharding (FSDP2 keeps a part on each rank)."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter.detach()


def _in_autocast_dtype(weight: Tensor) -> Tensor:
    """What autocast would make of a weight at every product; it remembers only weights that learn."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight
