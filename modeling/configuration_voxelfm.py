"""Configuration of the VoxelFM backbone, a Vision Transformer over 3D CT volumes."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

# Every class a saved folder can be loaded as; save_pretrained by itself would name only the class that was saved.
AUTO_MAP = {
    "AutoConfig": "configuration_voxelfm.VoxelFMConfig",
    "AutoModel": "modeling_voxelfm.VoxelFMModel",
    "AutoBackbone": "modeling_voxelfm.VoxelFMBackbone",
    "AutoImageProcessor": "image_processing_voxelfm.VoxelFMImageProcessor",
}


@strict
class VoxelFMConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`VoxelFMModel`]; the defaults are the published base model (arXiv 2604.04133, 110 M parameters).

    Args:
        patch_size (`int`, defaults to 14): Edge of the cubic patch in voxels.
        hidden_size (`int`, defaults to 864): Width C of the tokens; a multiple of 6 * `num_attention_heads`, so
            that every head splits into rotary pairs for z, y and x.
        num_hidden_layers (`int`, defaults to 12): Number of transformer blocks.
        num_attention_heads (`int`, defaults to 12): Number of attention heads.
        mlp_ratio (`float`, defaults to 4.0): Width of the feed-forward layer as a multiple of `hidden_size`.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the MLP; ignored by SwiGLU.
        use_swiglu_ffn (`bool`, defaults to `False`): SwiGLU feed-forward layers in place of the MLP.
        num_register_tokens (`int`, defaults to 4): Register tokens R between CLS and the patches; may be 0.
        layerscale_value (`float`, defaults to 1e-5): Initial LayerScale.
        rope_theta (`float`, defaults to 100.0): Base of the rotary periods.
        pos_embed_rescale (`float`, *optional*): In training mode, patch coordinates are scaled by one factor a
            forward, log-uniform in [1 / r, r].
        qkv_bias, proj_bias, mlp_bias (`bool`, default to `True`): Biases of the linear layers.
        layer_norm_eps (`float`, defaults to 1e-5): Epsilon of the layer norms.
        drop_path_rate (`float`, defaults to 0.0): Stochastic depth, the same rate in every block, per sample.
        attention_dropout (`float`, defaults to 0.0): Dropout on the attention weights.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the truncated normal of linear weights.
        image_size (`int`, defaults to 112): Edge in voxels of the global crops of pre-training; the model takes
            any volume whose sides are multiples of `patch_size`.
        num_channels (`int`, defaults to 1): Input channels; CT has one.
        apply_layernorm (`bool`, defaults to `True`): Whether the backbone normalises intermediate feature maps.
        probe_config (`dict`, *optional*): Fields of the `VoxelFMProbeConfig` of a model with a head on top.

    Example:

    ```python
    >>> from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
    >>> VoxelFMConfig().hidden_size
    864

    ```
    """

    model_type = "voxelfm"

    patch_size: int = 14
    hidden_size: int = 864
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    use_swiglu_ffn: bool = False
    num_register_tokens: int = 4
    layerscale_value: float = 1e-5
    rope_theta: float | int = 100.0
    pos_embed_rescale: float | int | None = None
    qkv_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    layer_norm_eps: float = 1e-5
    drop_path_rate: float | int = 0.0
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02
    image_size: int = 112
    num_channels: int = 1
    apply_layernorm: bool = True
    probe_config: dict | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.auto_map = kwargs.pop("auto_map", None) or dict(AUTO_MAP)
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Raises ValueError where the numbers contradict each other; run after every construction."""
        super().validate_architecture()
        for name in (
            "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size"
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % (6 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 6 * num_attention_heads "
                f"({6 * self.num_attention_heads}): every head holds rotary pairs for z, y and x"
            )
        if self.num_register_tokens < 0:
            raise ValueError(f"num_register_tokens must be 0 or more, got {self.num_register_tokens}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must lie in [0, 1), got {self.drop_path_rate}")
        if self.pos_embed_rescale is not None and self.pos_embed_rescale < 1:
            raise ValueError(f"pos_embed_rescale must be at least 1, got {self.pos_embed_rescale}")

    @property
    def stage_names(self) -> list[str]:
        """Names of the backbone's feature maps: the embeddings, then every block."""
        return ["stem", *(f"stage{i}" for i in range(1, self.num_hidden_layers + 1))]

    @property
    def intermediate_size(self) -> int:
        """Hidden width of the feed-forward layers."""
        return int(self.mlp_ratio * self.hidden_size)


__all__ = ["VoxelFMConfig"]

VoxelFMConfig.register_for_auto_class()
