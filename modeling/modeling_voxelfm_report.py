"""Report generation: scans become image tokens of a causal language model, which writes the findings.

What is trained (resampler, projector, a LoRA adapter of the language model) is small, and a saved folder holds just
that; `from_pretrained` takes encoder and language model from where the config says they are.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import load_state_dict
from transformers.utils import ModelOutput
from transformers.utils.hub import cached_file

from .configuration_voxelfm_report import VoxelFMReportConfig
from .modeling_voxelfm import VoxelFMModel
from .parts_voxelfm_report import check_language_model, load_encoder, load_language_model, merge_adapter
from .resampler_voxelfm_report import VoxelFMReportProjector, VoxelFMReportResampler, pad_tokens, scan_tokens

TRAINED_PARTS = ("resampler", "projector")
ADAPTER_FOLDER = "language_model_adapter"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token", "subfolder")


@dataclass
class VoxelFMReportOutput(ModelOutput):
    """Loss over the labelled tokens, logits (B, L, V), the cache, and the image tokens (scans * Q, width)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    image_hidden_states: torch.Tensor | None = None


class VoxelFMForReportGeneration(PreTrainedModel, GenerationMixin):
    """A VoxelFM encoder, a resampler, a projector and any causal language model of transformers.

    Args:
        config: Of the whole model.
        with_vision_tower: Whether to hold the encoder in memory; features that were computed before need none.

    Example:

    ```python
    >>> import torch
    >>> from voxelfm_hf.modeling.configuration_voxelfm_report import VoxelFMReportConfig
    >>> from voxelfm_hf.modeling.modeling_voxelfm_report import VoxelFMForReportGeneration
    >>> text = dict(model_type="llama", vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    ...     num_attention_heads=2, num_key_value_heads=2)
    >>> vision = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=1, patch_size=4)
    >>> config = VoxelFMReportConfig(vision_config=vision, text_config=text, num_image_tokens=2, image_token_id=20,
    ...     resampler_hidden_size=16, projector_hidden_size=16)
    >>> model = VoxelFMForReportGeneration(config).eval()
    >>> prompt = torch.tensor([[1, 20, 20, 5]])  # two image tokens stand for one scan
    >>> model.generate(input_ids=prompt, pixel_values=torch.zeros(1, 1, 8, 8, 8), max_new_tokens=3).shape[1] <= 7
    True

    ```
    """

    config: VoxelFMReportConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: VoxelFMReportConfig, with_vision_tower: bool = True):
        super().__init__(config)
        vision_config: Any = config.vision_config
        self.vision_tower: Any = VoxelFMModel(vision_config) if with_vision_tower else None
        self.resampler = VoxelFMReportResampler(config)
        self.projector = VoxelFMReportProjector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VoxelFMReportResampler):
            init.normal_(module.query)
            init.zeros_(module.feature_mean)
            init.ones_(module.feature_scale)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
            init.zeros_(module.out_proj.bias)
        elif isinstance(module, nn.Linear):
            # torch's defaults, as in the published projector
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.in_features**-0.5
                init.uniform_(module.bias, -bound, bound)

    @classmethod
    def from_parts(
        cls,
        config: VoxelFMReportConfig,
        *,
        language_model: PreTrainedModel,
        vision_tower: PreTrainedModel | None = None,
    ) -> "VoxelFMForReportGeneration":
        """A model round a language model (and an encoder) already in memory, its resampler and projector untrained."""
        with torch.device("meta"):
            model = cls(config, with_vision_tower=False)
        for part in (model.resampler, model.projector):
            part.to_empty(device="cpu")
            for module in part.modules():
                model._init_weights(module)
        model.language_model, model.vision_tower = language_model, vision_tower
        model.generation_config = language_model.generation_config
        return model

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path,
        *model_args,
        config: VoxelFMReportConfig | None = None,
        language_model: PreTrainedModel | str | None = None,
        vision_model: PreTrainedModel | str | None = None,
        with_vision_tower: bool = True,
        **kwargs,
    ):
        """Puts a saved model together again.

        Args:
            pretrained_model_name_or_path: Folder or Hub repository.
            *model_args: Of `PreTrainedModel.from_pretrained`, for a merged folder.
            config: In place of the folder's own.
            language_model, vision_model: In place of those the config names: a model, a folder or a repository.
            with_vision_tower: Whether to load the encoder; features that were computed before need none.
            **kwargs: `dtype`, `revision`, `token` and so on; a folder that was not merged takes `dtype` for encoder and
                language model, and keeps resampler and projector in float32.

        Raises:
            ValueError: the encoder or the language model is missing or another one than was trained with.
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        if config is None and pretrained_model_name_or_path is not None:
            config = VoxelFMReportConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        if config is None or pretrained_model_name_or_path is None or config.merged:
            kwargs["with_vision_tower"] = with_vision_tower
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        options = {name: kwargs[name] for name in ("dtype", "attn_implementation") if kwargs.get(name) is not None}
        speaks: Any = language_model if language_model is not None else config.base_text_model
        if not isinstance(speaks, nn.Module):
            speaks = load_language_model(speaks, revision=config.base_text_revision, **options)
        check_language_model(speaks.config, config)
        sees: Any = vision_model if vision_model is not None else config.base_vision_model
        if with_vision_tower and not isinstance(sees, nn.Module):
            sees = load_encoder(sees, revision=config.base_vision_revision, **options)
        model = cls.from_parts(config, language_model=speaks, vision_tower=sees if with_vision_tower else None)
        weights = cached_file(pretrained_model_name_or_path, "model.safetensors", **hub)
        loaded = model.load_state_dict(load_state_dict(str(weights)), strict=False)
        missing = [name for name in loaded.missing_keys if name.startswith(TRAINED_PARTS)]
        if missing or loaded.unexpected_keys:
            wrong = (missing or loaded.unexpected_keys)[0]
            raise ValueError(f"{pretrained_model_name_or_path} does not hold the weights its config describes: {wrong}")
        if config.has_adapter:
            names = (f"{ADAPTER_FOLDER}/adapter_config.json", f"{ADAPTER_FOLDER}/adapter_model.safetensors")
            files = [cached_file(pretrained_model_name_or_path, name, **hub) for name in names]
            model.language_model.load_adapter(os.path.dirname(str(files[0])))
        return model.eval()

    def save_pretrained(self, save_directory, merge: bool = False, **kwargs) -> None:  # type: ignore[override]
        """Writes what was trained, or everything.

        Args:
            save_directory: Folder.
            merge: Write encoder and language model too, the LoRA adapter merged into the latter (which also merges it
                in memory). A model without a named language model is always written whole.
            **kwargs: Of `PreTrainedModel.save_pretrained`.
        """
        if merge and self.vision_tower is None:
            raise ValueError("the vision encoder is not in memory: load the model with it to write a merged folder")
        self.config.merged = merge or self.config.base_text_model is None
        if self.config.merged:
            if self.config.has_adapter:
                merge_adapter(self.language_model)
                self.config.has_adapter = False
            super().save_pretrained(save_directory, **kwargs)
            return
        kwargs.pop("state_dict", None)
        trained = {name: value for name, value in self.state_dict().items() if name.startswith(TRAINED_PARTS)}
        super().save_pretrained(save_directory, state_dict=trained, **kwargs)
        if self.config.has_adapter:
            self.language_model.save_pretrained(os.path.join(save_directory, ADAPTER_FOLDER))

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def check_features(self, weight_hash: str | None) -> None:
        """Raises ValueError when features come from other weights than the model was trained on."""
        expected = self.config.base_vision_hash
        if expected is not None and weight_hash != expected:
            raise ValueError(
                f"the report model was trained on features of {self.config.base_vision_model or 'an encoder'} with "
                f"weights {expected[:12]}, these come from weights {str(weight_hash)[:12]}: embed the scans with that "
                "encoder"
            )

    def encode_scans(self, pixel_values: torch.Tensor | list) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (I, T, C) of prepared volumes by the encoder, and their mask where grids differ.

        Args:
            pixel_values: (I, 1, D, H, W), or a list of (1, D, H, W) of unequal shapes.
        """
        if self.vision_tower is None:
            raise ValueError("the vision encoder is not in memory: load the model with it, or give vision_features")
        volumes = [pixel_values] if isinstance(pixel_values, torch.Tensor) else [v[None] for v in pixel_values]
        found: list[torch.Tensor] = []
        with torch.no_grad():  # the encoder is frozen
            for batch in volumes:
                outputs = self.vision_tower(batch.to(self.vision_tower.device))
                patches = outputs.last_hidden_state[:, self.vision_tower.num_prefix_tokens :]
                grid = self.vision_tower.patch_grid(batch) if self.config.position_features else None
                found += scan_tokens(
                    outputs.pooler_output, patches, feature_tokens=self.config.feature_tokens, grid=grid
                )
        return pad_tokens(found)

    def get_image_features(
        self,
        pixel_values: torch.Tensor | list | None = None,
        vision_features: torch.Tensor | None = None,
        vision_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        r"""The image tokens of scans.

        Args:
            pixel_values (`torch.Tensor` of shape `(I, 1, D, H, W)`, *optional*): Prepared volumes, or a list of them.
            vision_features (`torch.Tensor` of shape `(I, T, C)`, *optional*): Their tokens, computed before.
            vision_mask (`torch.BoolTensor` of shape `(I, T)`, *optional*): True at real tokens.
            output_attentions (`bool`): Also give the resampler's attention weights (I, Q, T), a mean over heads.

        Returns:
            `pooler_output`: a list of I tensors (Q, width of the language model); `last_hidden_state`: the tokens
            (I, T, C); `attentions`: the weights in a tuple, when asked for.
        """
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("give either pixel_values or vision_features")
        if pixel_values is not None:
            vision_features, vision_mask = self.encode_scans(pixel_values)
        assert vision_features is not None
        if vision_features.ndim != 3 or vision_features.shape[-1] != self.config.token_size:
            raise ValueError(
                f"vision_features must be (scans, tokens, {self.config.token_size}), got {tuple(vision_features.shape)}"
            )
        device = self.resampler.query.device
        vision_mask = None if vision_mask is None else vision_mask.to(device)
        vectors, weights = self.resampler(vision_features.to(device), vision_mask, with_attention=output_attentions)
        return BaseModelOutputWithPooling(
            last_hidden_state=vision_features,
            pooler_output=list(self.projector(vectors)),  # type: ignore[arg-type]
            attentions=None if weights is None else (weights,),
        )

    def _embed(self, input_ids: torch.Tensor, images: list[torch.Tensor] | None) -> torch.Tensor:
        """Embeddings (B, L, width) of a prompt, image tokens in their places."""
        places = torch.eq(input_ids, -1 if self.config.image_token_id is None else self.config.image_token_id)
        count = int(places.sum())
        given = sum(len(image) for image in images or [])
        if count != given:
            raise ValueError(
                f"the prompts hold {count} image tokens and the scans give {given}: every scan needs "
                f"{self.config.num_image_tokens}, which the processor writes for each <image>"
            )
        # The image token need not be in the vocabulary.
        embedded = self.get_input_embeddings()(input_ids.masked_fill(places, 0))
        if not images:
            return embedded
        vectors = torch.cat(images).to(embedded.device, embedded.dtype)
        return embedded.masked_scatter(places.unsqueeze(-1), vectors)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | list | None = None,
        vision_features: torch.Tensor | None = None,
        vision_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: object | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int = 0,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ) -> VoxelFMReportOutput:
        r"""Runs the language model on a prompt with image tokens, and its loss when there are labels.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): Prompts in which every scan has `num_image_tokens` image
                tokens, in the order of the scans.
            pixel_values, vision_features, vision_mask: The scans, as in `get_image_features`.
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*): Tokens to learn; -100 elsewhere.
            logits_to_keep (`int`, defaults to 0): Only the last so many logits; 0 gives all. The loss then covers the
                labels of those positions.
            mm_encoder_outputs (`dict`, *optional*): `{"image": get_image_features(...)}`, computed before.

        Returns:
            `VoxelFMReportOutput`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is None and (pixel_values is not None or vision_features is not None):
            encoded = self.get_image_features(pixel_values, vision_features, vision_mask)
        images = None if encoded is None else list(encoded.pooler_output)
        if input_ids is not None:
            inputs_embeds = self._embed(input_ids, images)
        kept: int | torch.Tensor = logits_to_keep
        if logits_to_keep and inputs_embeds is not None:
            # A slice would leave the vocabulary's matrix to be copied for every row; chosen positions lie together.
            length = inputs_embeds.shape[1]
            kept = torch.arange(max(0, length - logits_to_keep), length, device=inputs_embeds.device)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            logits_to_keep=kept,
            **kwargs,
        )
        loss = None
        if labels is not None:
            learned = labels[:, -outputs.logits.shape[1] :]
            vocabulary = self.language_model.config.vocab_size
            loss = self.language_model.loss_function(logits=outputs.logits, labels=learned, vocab_size=vocabulary)
        return VoxelFMReportOutput(
            loss=loss,
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=None if images is None else torch.cat(images),
        )

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self, inputs=None, *, pixel_values=None, vision_features=None, vision_mask=None, **kwargs
    ):
        """Writes reports: `GenerationMixin.generate`, with every scan encoded once, whatever the number of beams.

        Args:
            inputs: Prompts, also as `input_ids`; on the left padded batches with their `attention_mask`.
            pixel_values, vision_features, vision_mask: The scans, as in `get_image_features`.
            **kwargs: Of `GenerationMixin.generate`.
        """
        if pixel_values is not None or vision_features is not None:
            encoded = self.get_image_features(pixel_values, vision_features, vision_mask)
            kwargs["mm_encoder_outputs"] = {"image": encoded}
        return super().generate(inputs, **kwargs)


__all__ = ["VoxelFMForReportGeneration", "VoxelFMReportOutput"]

VoxelFMForReportGeneration.register_for_auto_class("AutoModelForImageTextToText")
