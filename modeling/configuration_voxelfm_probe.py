"""Configuration of a probe: a small head on the frozen features of one VoxelFM checkpoint."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .probe_heads_voxelfm import HEADS
from .probe_tasks_voxelfm import PROBE_TASKS, ProbeTask

PROBE_AUTO_MAP = {
    "AutoConfig": "configuration_voxelfm_probe.VoxelFMProbeConfig",
    "AutoModel": "modeling_voxelfm_probe.VoxelFMProbe",
}

HEADS_OF_TASK = {name: family.heads for name, family in PROBE_TASKS.items()}
PATCH_HEADS = tuple(name for name, head in HEADS.items() if head.uses_patches)


@strict
class VoxelFMProbeConfig(PreTrainedConfig):
    r"""
    Configuration of a [`VoxelFMProbe`]: the task, the head, the features it expects, and how well it did.

    Label, target or class names are `id2label`, as in every Transformers model.

    Args:
        task (`str`, defaults to `"classification"`): classification, regression, survival, localization or
            segmentation.
        head (`str`, defaults to `"linear"`): linear, mlp or knn (on CLS), pooler, position, subpatch or decoder (on
            patches).
        feature_size (`int`, defaults to 864): Width C of the features.
        head_hidden_size (`int`, *optional*): Hidden width; by default 1024 (mlp), 256 (pooler), 128 (position), 64
            (decoder), 128 (subpatch).
        independent_outputs (`bool`, defaults to `True`): In an mlp, a hidden layer for every output; off for classes
            that exclude each other.
        dropout (`float`, defaults to 0.5): Dropout of mlp and pooler while fitting.
        attention_dropout (`float`, defaults to 0.1): Dropout on the attention weights of the pooler.
        num_attention_heads (`int`, defaults to 4): Attention heads of pooler and position regressor.
        num_points (`int`, defaults to 1): Points of a localization; a box is two.
        position_grid (`str`, defaults to `"centres"`): Patch positions (i + 0.5) / n, or `"corners"`: i / (n - 1).
        num_stored (`int`, defaults to 0): Training scans that a knn head holds.
        num_neighbours (`list[int]`, *optional*): How many of them it asks about each label or class.
        max_positions (`int`, *optional*): Patches that a localization attends to; larger grids are averaged down.
        decoder_stages (`int`, defaults to 3): Stages of the voxel decoder.
        voxels_per_patch (`int`, defaults to 4): Resolution of the decoded map along each edge of a patch.
        decoded_patches (`int`, defaults to 8): Edge in patches of the overlapping windows that a segmentation is
            decoded in; the published decoder sees 8.
        base_model_name_or_path, base_model_hash (`str`, *optional*): The backbone whose features the probe was fitted
            on, and the hash of its weights; features of other weights are refused.
        target_mean, target_scale (`list[float]`, *optional*): Standardisation of the targets, from the training rows.
        target_unit (`list[str]`, *optional*): Units of the targets, or of the survival time.
        temperature, threshold (`list[float]`, *optional*): Of each label, chosen on the validation rows.
        interval_half_width (`list[float]`, *optional*): Half width of the prediction interval of each target, in its
            unit, a quantile of the absolute validation errors.
        interval_level (`float`, *optional*): Coverage of that interval.
        baseline_times, baseline_hazard (`list[float]`, *optional*): Cumulative baseline hazard of a survival probe.
        processor (`dict`, *optional*): Settings of the image processor behind the features.
        metrics (`dict`, *optional*): Metric name -> value, low, high, n, note on the test rows.
        fit (`dict`, *optional*): How the probe was fitted: rows of each split, settings, seed.
    """

    model_type = "voxelfm_probe"

    task: str = "classification"
    head: str = "linear"
    feature_size: int = 864
    head_hidden_size: int | None = None
    independent_outputs: bool = True
    dropout: float | int = 0.5
    attention_dropout: float | int = 0.1
    num_attention_heads: int = 4
    num_points: int = 1
    position_grid: str = "centres"
    num_stored: int = 0
    num_neighbours: list[int] | None = None
    max_positions: int | None = None
    decoder_stages: int = 3
    voxels_per_patch: int = 4
    decoded_patches: int = 8
    base_model_name_or_path: str | None = None
    base_model_hash: str | None = None
    target_mean: list[float | int] | None = None
    target_scale: list[float | int] | None = None
    target_unit: list[str] | None = None
    temperature: list[float | int] | None = None
    threshold: list[float | int] | None = None
    interval_half_width: list[float | int] | None = None
    interval_level: float | None = None
    baseline_times: list[float | int] | None = None
    baseline_hazard: list[float | int] | None = None
    processor: dict | None = None
    metrics: dict | None = None
    fit: dict | None = None

    def __post_init__(self, **kwargs):
        self.auto_map = kwargs.pop("auto_map", None) or dict(PROBE_AUTO_MAP)
        if self.head_hidden_size is None:
            self.head_hidden_size = HEADS[self.head].hidden_size if self.head in HEADS else 0
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Raises ValueError where the fields contradict each other; run after every construction."""
        super().validate_architecture()
        if self.task not in HEADS_OF_TASK:
            raise ValueError(f"task must be one of {', '.join(HEADS_OF_TASK)}, got {self.task!r}")
        if self.head not in HEADS_OF_TASK[self.task]:
            raise ValueError(f"a {self.task} probe has head {' or '.join(HEADS_OF_TASK[self.task])}, got {self.head!r}")
        if self.position_grid not in ("centres", "corners"):
            raise ValueError(f"position_grid must be 'centres' or 'corners', got {self.position_grid!r}")
        width = self.feature_size if self.head == "position" else self.head_hidden_size
        if self.head in ("pooler", "position") and width % self.num_attention_heads:
            raise ValueError(f"width {width} must be a multiple of num_attention_heads {self.num_attention_heads}")
        if self.voxels_per_patch < 1 or self.decoded_patches < 1:
            raise ValueError(
                f"voxels_per_patch and decoded_patches must be at least 1, got {self.voxels_per_patch} and "
                f"{self.decoded_patches}"
            )
        if self.head == "decoder" and self.head_hidden_size % 8:
            raise ValueError(f"the decoder needs a hidden size that is a multiple of 8, got {self.head_hidden_size}")

    @property
    def num_classes(self) -> int:
        """Number of labels, targets or classes."""
        return len(self.id2label or {})

    @property
    def family(self) -> ProbeTask:
        """What the task means for this probe: its loss, its answers, how it is fitted."""
        return PROBE_TASKS[self.task](self)

    @property
    def num_outputs(self) -> int:
        """Numbers the head gives a scan (a voxel for segmentation)."""
        return self.family.num_outputs

    @property
    def uses_patches(self) -> bool:
        """Whether the head reads the patch grid rather than the CLS vector."""
        return self.head in PATCH_HEADS

    @property
    def is_single_label(self) -> bool:
        """Whether the classes exclude each other."""
        return self.problem_type == "single_label_classification"


__all__ = ["VoxelFMProbeConfig"]

VoxelFMProbeConfig.register_for_auto_class()
