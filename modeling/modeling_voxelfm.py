"""VoxelFM: a Vision Transformer over 3D CT volumes with register tokens and 3D rotary positions.

Notation: B batch, (D, H, W) voxels along (z, y, x), p patch edge, (d, h, w) the patch grid, N = d*h*w patches,
R register tokens, C hidden size. The sequence is [CLS, R registers, N patches], patches with w fastest.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_voxelfm import VoxelFMConfig


class VoxelFMPatchConv(nn.Conv3d):
    """Non-overlapping Conv3d computed as one matrix product over unfolded patches.

    Same weights and result as the convolution it replaces, many times quicker on CPUs and in bf16.
    """

    bias: nn.Parameter

    def __init__(self, config: VoxelFMConfig):
        super().__init__(config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        p = self.kernel_size[0]
        batch, channels, depth, height, width = pixel_values.shape
        d, h, w = depth // p, height // p, width // p
        # (B, c, d*p, h*p, w*p) -> (B, d, h, w, c*p*p*p): the order of a flattened Conv3d kernel
        patches = pixel_values.reshape(batch, channels, d, p, h, p, w, p).permute(0, 2, 4, 6, 1, 3, 5, 7)
        patches = patches.reshape(batch, d, h, w, channels * p**3)
        return nn.functional.linear(patches, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


class VoxelFMEmbeddings(nn.Module):
    """CLS token, register tokens and patch embeddings; masked patches become the mask token."""

    def __init__(self, config: VoxelFMConfig, use_mask_token: bool = True):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if use_mask_token else None
        self.register_tokens = None
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))
        self.patch_embeddings = VoxelFMPatchConv(config)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        # (B, 1, D, H, W) -> (B, N, C)
        patches = self.patch_embeddings(pixel_values).flatten(2).transpose(1, 2)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("this model was made without a mask token: leave bool_masked_pos out")
            patches = torch.where(bool_masked_pos.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        prefix = [self.cls_token] if self.register_tokens is None else [self.cls_token, self.register_tokens]
        expanded = [token.to(patches.dtype).expand(patches.shape[0], -1, -1) for token in prefix]
        return torch.cat([*expanded, patches], dim=1)


class VoxelFMRotaryEmbedding(nn.Module):
    """3D rotary positions as complex numbers cos + i sin in fp32, computed from the config at each forward.

    It holds no buffer, and complex tensors are left alone by casts to half precision (autocast, FSDP's mixed
    precision): neither meta-device loading nor a bf16 model can change the table.
    """

    def __init__(self, config: VoxelFMConfig):
        super().__init__()
        self.rope_theta = config.rope_theta
        self.pos_embed_rescale = config.pos_embed_rescale
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_prefix_tokens = 1 + config.num_register_tokens

    def periods(self, device: torch.device | None = None) -> torch.Tensor:
        """Periods base^(2k / (head_dim / 3)), k = 0 .. head_dim / 6 - 1, in fp32; the same for z, y and x."""
        k = torch.arange(self.head_dim // 6, dtype=torch.float32, device=device)
        return self.rope_theta ** (2 * k / (self.head_dim / 3))

    def forward(self, grid: tuple[int, int, int], device: torch.device) -> torch.Tensor:
        """Rotations (1 + R + N, head_dim / 2) complex64, blocks for z, y and x in this order; 1 for the prefix."""
        axes = [2 * (torch.arange(n, dtype=torch.float32, device=device) + 0.5) / n - 1 for n in grid]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)  # (N, 3)
        if self.training and self.pos_embed_rescale is not None:
            limit = math.log(self.pos_embed_rescale)
            coordinates = coordinates * torch.empty((), device=device).uniform_(-limit, limit).exp()
        angles = (2 * math.pi * coordinates[:, :, None] / self.periods(device)).flatten(1)
        # A zero angle leaves CLS and registers as they are and saves splitting q and k in every layer.
        angles = nn.functional.pad(angles, (0, 0, self.num_prefix_tokens, 0))
        return torch.complex(angles.cos(), angles.sin())


def apply_rotary(states: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Rotates consecutive pairs of channels of (B, T, heads, head_dim) by complex64 rotations (T, head_dim / 2)."""
    # One complex product over the pairs: a third of the passes over memory of the four products written out.
    states_fp32 = states.to(torch.promote_types(states.dtype, torch.float32))
    pairs = torch.view_as_complex(states_fp32.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations[:, None]).flatten(-2).to(states.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that returns its weights (B, heads, T, T); memory grows with the square of the tokens."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class VoxelFMAttention(nn.Module):
    """Multi-head self-attention with rotary positions on the patch tokens."""

    def __init__(self, config: VoxelFMConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.proj_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        # (B, T, C) -> (B, heads, T, head_dim)
        query = apply_rotary(self.q_proj(hidden_states).view(shape), position_embeddings).transpose(1, 2)
        key = apply_rotary(self.k_proj(hidden_states).view(shape), position_embeddings).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            None,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), weights


class VoxelFMMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: VoxelFMConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class VoxelFMSwiGLU(nn.Module):
    """Gated feed-forward layer: silu(gate) * up, then down."""

    def __init__(self, config: VoxelFMConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class VoxelFMLayerScale(nn.Module):
    """One learned factor a channel on a residual branch."""

    def __init__(self, config: VoxelFMConfig):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.lambda1


class VoxelFMDropPath(nn.Module):
    """Stochastic depth: in training, drops the residual branch of whole samples and rescales the others."""

    def __init__(self, config: VoxelFMConfig):
        super().__init__()
        self.drop_prob = config.drop_path_rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_prob == 0:
            return hidden_states
        keep = hidden_states.new_empty((hidden_states.shape[0], 1, 1)).bernoulli_(1 - self.drop_prob)
        return hidden_states * keep / (1 - self.drop_prob)


class VoxelFMLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block with LayerScale and stochastic depth on both branches."""

    def __init__(self, config: VoxelFMConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VoxelFMAttention(config)
        self.layer_scale1 = VoxelFMLayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VoxelFMSwiGLU(config) if config.use_swiglu_ffn else VoxelFMMLP(config)
        self.layer_scale2 = VoxelFMLayerScale(config)
        self.drop_path = VoxelFMDropPath(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.attention(self.norm1(hidden_states), position_embeddings=position_embeddings, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(attended))
        return hidden_states + self.drop_path(self.layer_scale2(self.mlp(self.norm2(hidden_states))))


class VoxelFMPreTrainedModel(PreTrainedModel):
    config: VoxelFMConfig
    base_model_prefix = "voxelfm"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["VoxelFMEmbeddings", "VoxelFMLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": VoxelFMLayer, "attentions": VoxelFMAttention}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, VoxelFMPatchConv):
            # torch's own default for convolutions, which the published model keeps
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_channels * module.kernel_size[0] ** 3)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, VoxelFMEmbeddings):
            init.normal_(module.cls_token, std=1e-6)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)
            if module.register_tokens is not None:
                init.normal_(module.register_tokens, std=1e-6)
        elif isinstance(module, VoxelFMLayerScale):
            init.constant_(module.lambda1, self.config.layerscale_value)


class VoxelFMModel(VoxelFMPreTrainedModel):
    """The bare VoxelFM encoder: CT volumes in, CLS, register and patch tokens out.

    Heads are built with `use_mask_token=False`: a parameter that no step uses stops distributed training.

    Example:

    ```python
    >>> import torch
    >>> from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
    >>> from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
    >>> model = VoxelFMModel(VoxelFMConfig(hidden_size=36, num_hidden_layers=2, num_attention_heads=1, patch_size=8))
    >>> volume = torch.zeros(1, 1, 16, 24, 32)
    >>> outputs = model(volume)
    >>> outputs.last_hidden_state.shape  # CLS, 4 registers, 2 * 3 * 4 patches
    torch.Size([1, 29, 36])
    >>> model.patch_features(outputs, model.patch_grid(volume)).shape
    torch.Size([1, 2, 3, 4, 36])

    ```
    """

    # Models with a head are saved without it; it starts at zero.
    _keys_to_ignore_on_load_missing = [r"embeddings\.mask_token"]

    def __init__(self, config: VoxelFMConfig, use_mask_token: bool = True):
        super().__init__(config)
        self.embeddings = VoxelFMEmbeddings(config, use_mask_token)
        self.rotary_embedding = VoxelFMRotaryEmbedding(config)
        self.layers = nn.ModuleList([VoxelFMLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: CLS and the registers."""
        return 1 + self.config.num_register_tokens

    def patch_grid(self, pixel_values: torch.Tensor) -> tuple[int, int, int]:
        """The patch grid (d, h, w) of volumes (..., D, H, W)."""
        depth, height, width = (side // self.config.patch_size for side in pixel_values.shape[-3:])
        return depth, height, width

    def patch_features(self, outputs: BaseModelOutputWithPooling, grid: tuple[int, int, int]) -> torch.Tensor:
        """The patch tokens of `outputs` on their grid: (B, d, h, w, C)."""
        tokens = outputs.last_hidden_state
        assert tokens is not None
        return tokens[:, self.num_prefix_tokens :].unflatten(1, tuple(grid))

    def _checked_volumes(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Volumes as (B, c, D, H, W) in the dtype of the weights; ValueError for shapes the model cannot take."""
        if not isinstance(pixel_values, torch.Tensor):
            raise ValueError(
                f"pixel_values must be one tensor, got a {type(pixel_values).__name__}: encode volumes of unequal "
                "shapes one by one"
            )
        if pixel_values.ndim == 4 and self.config.num_channels == 1:
            pixel_values = pixel_values.unsqueeze(1)
        p, channels = self.config.patch_size, self.config.num_channels
        sides = pixel_values.shape[2:]
        if pixel_values.ndim != 5 or pixel_values.shape[1] != channels or any(s < p or s % p for s in sides):
            raise ValueError(
                f"pixel_values must be (batch, {channels}, D, H, W) with D, H and W multiples of the patch size {p}, "
                f"got {tuple(pixel_values.shape)}; VoxelFMImageProcessor makes such volumes"
            )
        return pixel_values.to(self.embeddings.patch_embeddings.weight.dtype)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Encodes CT volumes.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 1, D, H, W)` or `(B, D, H, W)`): Normalised volumes in LPS+
                axes (z, y, x), as the image processor makes them; sides are multiples of the patch size.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, N)`, *optional*): Patches to replace by the mask token
                (pre-training only), w fastest.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` (B, 1 + R + N, C) after the final norm, ordered CLS,
            registers, patches; `pooler_output` (B, C), the CLS token.
        """
        pixel_values = self._checked_volumes(pixel_values)
        grid = self.patch_grid(pixel_values)
        if bool_masked_pos is not None and bool_masked_pos.shape != (pixel_values.shape[0], math.prod(grid)):
            raise ValueError(
                f"bool_masked_pos must be (batch, patches) = {(pixel_values.shape[0], math.prod(grid))}, "
                f"got {tuple(bool_masked_pos.shape)}"
            )
        hidden_states = self.embeddings(pixel_values, bool_masked_pos=bool_masked_pos)
        position_embeddings = self.rotary_embedding(grid, pixel_values.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings=position_embeddings, **kwargs)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VoxelFMBackbone(BackboneMixin, VoxelFMModel):
    """The encoder as a dense backbone: feature maps (B, C, d, h, w) of the stages named in the config.

    `stem` is the embedded sequence, `stage{i}` the output of block i, the last one after the final norm.
    """

    def __init__(self, config: VoxelFMConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""Encodes CT volumes (B, 1, D, H, W) or (B, D, H, W) to a tuple of feature maps (B, C, d, h, w)."""
        # output_hidden_states comes from the decorator
        outputs = VoxelFMModel.forward(self, pixel_values, return_dict=True, **kwargs)
        grid = self.patch_grid(pixel_values)

        feature_maps = []
        for name, hidden_states in zip(self.stage_names, outputs.hidden_states, strict=True):
            if name not in self.out_features:
                continue
            if name == self.stage_names[-1]:
                hidden_states = outputs.last_hidden_state
            elif self.config.apply_layernorm:
                hidden_states = self.norm(hidden_states)
            patches = hidden_states[:, self.num_prefix_tokens :]
            feature_maps.append(patches.transpose(1, 2).unflatten(2, grid).contiguous())
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["VoxelFMBackbone", "VoxelFMModel", "VoxelFMPreTrainedModel"]

VoxelFMModel.register_for_auto_class("AutoModel")
VoxelFMBackbone.register_for_auto_class("AutoBackbone")
