"""A probe: frozen VoxelFM features in, a clinical answer out; a small model of its own on the Hub."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_voxelfm_probe import VoxelFMProbeConfig
from .probe_heads_voxelfm import HEADS, ProbeAttentionPooler, ProbeMLP, ProbeNeighbours
from .probe_tasks_voxelfm import VoxelFMProbePrediction


@dataclass
class VoxelFMProbeOutput(ModelOutput):
    """Raw outputs of the head, before temperature and units, and the loss when labels were given."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class VoxelFMProbe(PreTrainedModel):
    """A head of one task on the features of one backbone; its config says which backbone, and how well it did.

    Example:

    ```python
    >>> import torch
    >>> from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
    >>> from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
    >>> config = VoxelFMProbeConfig(task="classification", feature_size=36, id2label={0: "effusion", 1: "nodule"})
    >>> probe = VoxelFMProbe(config)
    >>> probe.predict(cls=torch.zeros(5, 36)).predictions.shape
    torch.Size([5, 2])

    ```
    """

    config: VoxelFMProbeConfig
    base_model_prefix = "probe"
    main_input_name = "cls"
    # Heads keep torch's own attention, whatever a backbone round them computes with.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    feature_mean: torch.Tensor
    feature_scale: torch.Tensor

    def __init__(self, config: VoxelFMProbeConfig):
        super().__init__(config)
        self.register_buffer("feature_mean", torch.zeros(config.feature_size))
        self.register_buffer("feature_scale", torch.ones(config.feature_size))
        self.head = HEADS[config.head](config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VoxelFMProbe):
            init.zeros_(module.feature_mean)
            init.ones_(module.feature_scale)
        elif isinstance(module, (nn.Linear, nn.Conv3d)):
            # torch's defaults, which the published probes keep
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, ProbeAttentionPooler):
            init.normal_(module.query)
        elif isinstance(module, ProbeNeighbours):
            init.zeros_(module.directions)
            init.zeros_(module.labels)
        elif isinstance(module, ProbeMLP):
            bound = 1 / math.sqrt(module.weight.shape[-1])
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)

    def forward(
        self,
        cls: torch.Tensor | None = None,
        patches: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        size: tuple[int, int, int] | None = None,
        positions: torch.Tensor | None = None,
    ) -> VoxelFMProbeOutput:
        r"""Runs the head, and its loss when there are labels.

        Args:
            cls (`torch.Tensor` of shape `(B, C)`, *optional*): CLS vectors, for linear and mlp heads.
            patches (`torch.Tensor` of shape `(B, d, h, w, C)`, *optional*): Patch grids, for the other heads.
            patch_mask (`torch.BoolTensor` of shape `(B, d, h, w)`, *optional*): True at real patches of padded grids.
            labels (`torch.Tensor`, *optional*): classification (B, L) 0 or 1, or (B,) class numbers; regression (B, L)
                in the unit of the target; survival (B, 2) time and event; localization (B, P, 3) from 0 to 1 across
                the grid; segmentation (B, D, H, W) classes. NaN (negative for class numbers) is missing and masked.
            size (`tuple`, *optional*): (D, H, W) of the map of a segmentation; taken from the labels if there are any.
            positions (`torch.Tensor` of shape `(B, d, h, w, 3)`, *optional*): For windows of a larger grid in a
                segmentation, where their patches lie in it, z, y, x from 0 to 1; by default the grid is the whole.

        Returns:
            `VoxelFMProbeOutput`: `logits` (B, outputs), or (B, K, D, H, W) for segmentation; `loss` or `None`.
        """
        config = self.config
        name, features = ("patches", patches) if config.uses_patches else ("cls", cls)
        if features is None:
            raise ValueError(f"this probe has a {config.head} head and needs {name}")
        if features.shape[-1] != config.feature_size or features.ndim != (5 if config.uses_patches else 2):
            shape = "(B, d, h, w, C)" if config.uses_patches else "(B, C)"
            raise ValueError(f"{name} must be {shape} with C {config.feature_size}, got {tuple(features.shape)}")
        features = (features.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_scale
        if config.family.is_map:
            if size is None and labels is not None:
                depth, height, width = labels.shape[1:]
                size = (depth, height, width)
            if size is None:
                raise ValueError("a segmentation probe needs the size (D, H, W) of its map")
            logits = self.head(features, size, positions)
        else:
            logits = self.head(features, patch_mask) if config.uses_patches else self.head(features)
        return VoxelFMProbeOutput(loss=None if labels is None else self.loss(logits, labels), logits=logits)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of the task over the known labels; shapes as in `forward`."""
        family = self.config.family
        outputs, targets = family.loss_rows(logits, labels)
        return family.loss(outputs[None], targets[None], outputs.new_ones((1, len(outputs))))[0].to(logits.dtype)

    @torch.no_grad()
    def predict(
        self,
        cls: torch.Tensor | None = None,
        patches: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
        size: tuple[int, int, int] | None = None,
    ) -> VoxelFMProbePrediction:
        """The answers in natural units: calibrated probabilities, targets with intervals, log risks, points, maps."""
        return self.answers(self(cls=cls, patches=patches, patch_mask=patch_mask, size=size).logits)

    @torch.no_grad()
    def answers(self, logits: torch.Tensor) -> VoxelFMProbePrediction:
        """What raw outputs of the head mean in natural units; see `predict`."""
        return self.config.family.answers(logits)

    def survival(self, risks: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Chance of no event until each time: (B, 1) log risks and (T,) times -> (B, T); NaN beyond the follow-up."""
        if self.config.task != "survival" or self.config.baseline_times is None:
            raise ValueError("only a survival probe with a baseline hazard gives survival curves")
        steps = risks.new_tensor(self.config.baseline_times)
        hazard = torch.cat([risks.new_zeros(1), risks.new_tensor(self.config.baseline_hazard)])
        reached = hazard[torch.searchsorted(steps, times.to(steps), right=True)]
        curve = torch.exp(-reached[None] * risks.exp())
        return curve.masked_fill(times.to(steps)[None] > steps[-1], torch.nan)

    def check_features(self, base_model_hash: str | None) -> None:
        """Raises ValueError when features come from other weights than the probe was fitted on."""
        expected = self.config.base_model_hash
        if expected is not None and base_model_hash != expected:
            base = self.config.base_model_name_or_path or "a backbone"
            raise ValueError(
                f"the probe was fitted on features of {base} with weights {expected[:12]}, these come from weights "
                f"{str(base_model_hash)[:12]}: embed the scans with that model"
            )


__all__ = ["VoxelFMProbe", "VoxelFMProbeOutput", "VoxelFMProbePrediction"]

VoxelFMProbe.register_for_auto_class("AutoModel")
