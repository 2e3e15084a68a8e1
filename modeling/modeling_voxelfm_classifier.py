"""Backbone and probe head in one model: prepared volumes in, answers about the scan out; trainable end to end.

Notation: B scans, (D, H, W) voxels along (z, y, x), L outputs.
"""

import os

import torch
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_voxelfm import VoxelFMConfig
from .configuration_voxelfm_probe import VoxelFMProbeConfig
from .modeling_voxelfm import VoxelFMModel, VoxelFMPreTrainedModel
from .modeling_voxelfm_probe import VoxelFMProbe
from .probe_tasks_voxelfm import PROBE_TASKS, VoxelFMProbePrediction

# Those that give a scan a row of numbers.
TASKS = tuple(name for name, family in PROBE_TASKS.items() if family.value_name)
# Said by the model's own configuration, or only about a folder: none of them is repeated in `probe_config`.
NOT_IN_PROBE_CONFIG = (
    "architectures", "auto_map", "dtype", "feature_size", "id2label", "label2id", "model_type", "problem_type",
    "transformers_version",
)  # fmt: skip


class VoxelFMForImageClassification(VoxelFMPreTrainedModel):
    """The encoder with a probe head on top: findings, classes, numbers or risks of whole scans or regions.

    `config.probe_config` holds the fields of a `VoxelFMProbeConfig` (task, head, calibration...); without it the head
    is linear on CLS. The labels are `config.id2label`, and `config.problem_type` says what they are:
    single_label_classification (the default of several labels), multi_label_classification or regression (of one).

    Example:

    ```python
    >>> import torch
    >>> from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
    >>> from voxelfm_hf.modeling.modeling_voxelfm_classifier import VoxelFMForImageClassification
    >>> sizes = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 8}
    >>> config = VoxelFMConfig(**sizes, num_labels=3, probe_config={"head": "mlp", "head_hidden_size": 16})
    >>> model = VoxelFMForImageClassification(config).eval()
    >>> outputs = model(torch.zeros(2, 1, 16, 16, 16), labels=torch.tensor([0, 2]))
    >>> outputs.logits.shape
    torch.Size([2, 3])

    ```
    """

    # The mask token belongs to pre-training: without gradient it would stop distributed fine-tuning.
    _keys_to_ignore_on_load_unexpected = [r"embeddings\.mask_token"]

    def __init__(self, config: VoxelFMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.voxelfm = VoxelFMModel(config, use_mask_token=False)
        self.probe = VoxelFMProbe(_probe_config(config))
        self.post_init()

    @classmethod
    def from_probe(
        cls,
        probe: VoxelFMProbe | str | os.PathLike,
        model: VoxelFMModel | str | os.PathLike | None = None,
        **kwargs,
    ) -> "VoxelFMForImageClassification":
        """A fitted probe on the backbone it was fitted for.

        Args:
            probe: A probe, or its folder or Hub repository.
            model: The backbone, or its folder or Hub repository; by default the one that the probe names. That it has
                the weights of the fit is checked by `voxelfm_hf.load_classifier`, which also knows the names of this
                package.
            **kwargs: Passed to `VoxelFMModel.from_pretrained` (`dtype`, ...).

        Returns:
            VoxelFMForImageClassification: in evaluation mode; its `predict` gives what the probe gives.
        """
        if not isinstance(probe, VoxelFMProbe):
            probe = VoxelFMProbe.from_pretrained(probe)
        if model is None:
            model = probe.config.base_model_name_or_path
        if model is None:
            raise ValueError("the probe does not name its backbone: pass model=")
        backbone = model if isinstance(model, VoxelFMModel) else VoxelFMModel.from_pretrained(model, **kwargs)
        config = VoxelFMConfig.from_dict(backbone.config.to_dict())
        config.id2label = {int(number): str(name) for number, name in (probe.config.id2label or {}).items()}
        config.label2id = {name: number for number, name in config.id2label.items()}
        config.problem_type = probe.config.problem_type
        config.probe_config = _without_repeats(probe.config)
        composed = cls(config)
        weights = {name: value for name, value in backbone.state_dict().items() if name != "embeddings.mask_token"}
        composed.voxelfm.to(dtype=backbone.dtype)  # type: ignore[call-arg]
        composed.voxelfm.load_state_dict(weights)
        composed.probe.load_state_dict(probe.state_dict())
        return composed.to(device=backbone.device).eval()  # type: ignore[call-arg]

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As in every model; what was calibrated after the construction is saved with it."""
        self.config.probe_config = _without_repeats(self.probe.config)
        super().save_pretrained(save_directory, *args, **kwargs)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        r"""Encodes CT volumes and answers.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 1, D, H, W)` or `(B, D, H, W)`): Normalised volumes in LPS+
                axes (z, y, x), as the image processor makes them.
            labels (`torch.Tensor`, *optional*): Class numbers (B,); or (B, L) 0 or 1 for labels that may occur
                together; or (B, L) targets in their unit; or (B, 2) time and event of a survival head. NaN (negative
                for class numbers) is missing and masked.

        Returns:
            `ImageClassifierOutput`: `logits` (B, L) before temperature and units (see `predict`), `loss` where there
            are labels, `hidden_states` and `attentions` where they are asked for.
        """
        outputs = self.voxelfm(pixel_values, **kwargs)
        patches = None
        if self.probe.config.uses_patches:
            patches = self.voxelfm.patch_features(outputs, self.voxelfm.patch_grid(pixel_values))
        found = self.probe(cls=outputs.pooler_output, patches=patches, labels=labels)
        return ImageClassifierOutput(
            loss=found.loss, logits=found.logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    @torch.no_grad()
    def predict(self, pixel_values: torch.Tensor) -> VoxelFMProbePrediction:
        """Answers in natural units: calibrated probabilities, targets with intervals, or log risks (B, L)."""
        return self.probe.answers(self(pixel_values).logits)


def _probe_config(config: VoxelFMConfig) -> VoxelFMProbeConfig:
    """The head's configuration: `probe_config`, with labels and width from the model's own configuration."""
    fields = dict(config.probe_config or {})
    # As elsewhere in transformers: one label of an unsaid kind is a number.
    is_number = config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)
    task = fields.setdefault("task", "regression" if is_number else "classification")
    if task not in TASKS:
        raise ValueError(f"the head of a {task} probe answers no {', '.join(TASKS)}: use VoxelFMProbe on features")
    if task == "classification":
        fields["problem_type"] = config.problem_type or "single_label_classification"
    found = VoxelFMProbeConfig(**fields, feature_size=config.hidden_size, id2label=dict(config.id2label or {}))
    found._attn_implementation = config._attn_implementation
    return found


def _without_repeats(config: VoxelFMProbeConfig) -> dict:
    return {name: value for name, value in config.to_diff_dict().items() if name not in NOT_IN_PROBE_CONFIG}


__all__ = ["VoxelFMForImageClassification"]

VoxelFMForImageClassification.register_for_auto_class("AutoModelForImageClassification")
