"""Configuration of the report model: a frozen VoxelFM encoder that speaks through a causal language model."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_voxelfm import VoxelFMConfig

REPORT_AUTO_MAP = {
    "AutoConfig": "configuration_voxelfm_report.VoxelFMReportConfig",
    "AutoModelForImageTextToText": "modeling_voxelfm_report.VoxelFMForReportGeneration",
    "AutoProcessor": "processing_voxelfm_report.VoxelFMReportProcessor",
}
FEATURE_TOKENS = ("patches_and_cls", "patches", "cls")


@strict
class VoxelFMReportConfig(PreTrainedConfig):
    r"""
    Configuration of a [`VoxelFMForReportGeneration`]; the defaults are the published resampler and projector.

    Args:
        vision_config (`VoxelFMConfig` or `dict`, *optional*): The vision encoder.
        text_config (`PreTrainedConfig` or `dict`, *optional*): Any causal language model; Llama by default.
        feature_tokens (`str`, defaults to `"patches_and_cls"`): Tokens of a scan that the resampler reads:
            patches_and_cls, patches, or cls (the published runs, in which all image tokens are equal).
        position_features (`bool`, defaults to `False`): Append the place of every patch to its features, so that the
            resampler can ask for what lies where. Published: off.
        num_image_tokens (`int`, defaults to 128): Learned queries: vectors a scan becomes in the prompt.
        image_token_id (`int`, *optional*): Token of the prompt that an image vector takes the place of. It need not be
            in the language model's vocabulary.
        resampler_hidden_size (`int`, defaults to 2048): Width of queries, keys and values.
        resampler_num_heads (`int`, defaults to 8): Attention heads of the resampler.
        resampler_dropout (`float`, defaults to 0.1): Dropout on its attention weights while training.
        projector_hidden_size (`int`, defaults to 2048): Hidden width of the projector.
        base_vision_model, base_vision_revision, base_vision_hash (`str`, *optional*): The encoder that was trained
            on, and the hash of its weights; features of other weights are refused.
        base_text_model, base_text_revision (`str`, *optional*): The language model: a Hub repository, a folder, or the
            path of a .gguf file.
        has_adapter (`bool`, defaults to `False`): Whether a LoRA adapter of the language model was trained.
        merged (`bool`, defaults to `False`): Whether the folder holds all weights, the adapter merged into them, rather
            than only what was trained.
        findings (`list[str]`, *optional*): Findings that the training reports state often enough to be judged.
        metrics (`dict`, *optional*): Metric name -> value, low, high, n on test scans.
        fit (`dict`, *optional*): How the adapter was trained.
    """

    model_type = "voxelfm_report"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(VoxelFMConfig),
        "text_config": SubConfigSpec(AutoConfig, model_type="llama"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    feature_tokens: str = "patches_and_cls"
    position_features: bool = False
    num_image_tokens: int = 128
    image_token_id: int | None = None
    resampler_hidden_size: int = 2048
    resampler_num_heads: int = 8
    resampler_dropout: float | int = 0.1
    projector_hidden_size: int = 2048
    base_vision_model: str | None = None
    base_vision_revision: str | None = None
    base_vision_hash: str | None = None
    base_text_model: str | None = None
    base_text_revision: str | None = None
    has_adapter: bool = False
    merged: bool = False
    findings: list[str] | None = None
    metrics: dict | None = None
    fit: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.auto_map = kwargs.pop("auto_map", None) or dict(REPORT_AUTO_MAP)
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    @property
    def token_size(self) -> int:
        """Width of the tokens of a scan: features, and three coordinates where they are used."""
        return self.vision_config.hidden_size + 3 * self.position_features  # type: ignore[union-attr]

    def validate_architecture(self):
        """Raises ValueError where the numbers contradict each other; run after every construction."""
        super().validate_architecture()
        if self.feature_tokens not in FEATURE_TOKENS:
            raise ValueError(f"feature_tokens must be one of {', '.join(FEATURE_TOKENS)}, got {self.feature_tokens!r}")
        for name in ("num_image_tokens", "resampler_hidden_size", "resampler_num_heads", "projector_hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.resampler_hidden_size % self.resampler_num_heads:
            raise ValueError(
                f"resampler_hidden_size {self.resampler_hidden_size} must be a multiple of resampler_num_heads "
                f"{self.resampler_num_heads}"
            )


__all__ = ["VoxelFMReportConfig"]

VoxelFMReportConfig.register_for_auto_class()
