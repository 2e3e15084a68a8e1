"""The network of a stage of report training: put together, what of it is trained, and what its checkpoints hold."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from voxelfm_hf.hub import load, resolve_model, weight_hash
from voxelfm_hf.modeling.configuration_voxelfm_report import VoxelFMReportConfig
from voxelfm_hf.modeling.modeling_voxelfm_report import TRAINED_PARTS, VoxelFMForReportGeneration
from voxelfm_hf.modeling.parts_voxelfm_report import load_language_model
from voxelfm_hf.modeling.processing_voxelfm_report import VoxelFMReportProcessor
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.data import mean_and_scale
from voxelfm_hf.training.report.language_model import load_tokenizer
from voxelfm_hf.training.report.recipe import ReportRecipe, StageSettings
from voxelfm_hf.volumes.errors import ModelError, RecipeError

# Tensors of the trained part in a checkpoint.
_TRAINED_FILE = "trained.safetensors"


def stage_folder(recipe: ReportRecipe, number: int) -> Path:
    """Where a stage lies in the run folder."""
    return Path(recipe.output_dir) / f"stage{number}"


def stage_network(
    recipe: ReportRecipe, number: int, store: FeatureStore | None
) -> tuple[VoxelFMForReportGeneration, VoxelFMReportProcessor]:
    """The model of a stage with the right parameters trainable, and its processor."""
    settings = recipe.model
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[recipe.run.mixed_precision]
    try:
        revision = settings.language_model_revision
        speaks = load_language_model(settings.language_model, revision=revision, dtype=dtype)
        speaks.requires_grad_(False)
    except ValueError as error:
        raise ModelError(f"{error}.") from None
    encoder = resolve_model(settings.vision_model, revision=settings.vision_model_revision)
    hash_of_encoder = weight_hash(encoder)
    tower, images = load(encoder)
    if store is not None and store.run.get("weight_hash") != hash_of_encoder:
        raise ModelError(
            f"{store.folder} holds features of {store.run.get('model')} with weights "
            f"{str(store.run.get('weight_hash'))[:12]}, and model.vision_model {settings.vision_model} has weights "
            f"{hash_of_encoder[:12]}: embed the scans with it, or name the encoder of the store."
        )
    for name, value in (store.run.get("processor") or {}).items() if store is not None else ():
        if hasattr(images, name):
            setattr(images, name, value)
    if number == 1:
        tokenizer = load_tokenizer(settings.language_model, settings.language_model_revision)
        processor = VoxelFMReportProcessor(
            images, tokenizer, settings.num_image_tokens, request=settings.request, max_length=settings.max_length
        )
        config = VoxelFMReportConfig(
            vision_config=tower.config,
            text_config=speaks.config,
            image_token_id=processor.image_token_id,
            base_vision_model=settings.vision_model,
            base_vision_revision=settings.vision_model_revision,
            base_vision_hash=hash_of_encoder,
            base_text_model=settings.language_model,
            base_text_revision=settings.language_model_revision,
            feature_tokens=settings.feature_tokens,
            position_features=settings.position_features,
            num_image_tokens=settings.num_image_tokens,
            resampler_hidden_size=settings.resampler_hidden_size,
            resampler_num_heads=settings.resampler_num_heads,
            resampler_dropout=settings.resampler_dropout,
            projector_hidden_size=settings.projector_hidden_size,
        )
        network = VoxelFMForReportGeneration.from_parts(config, language_model=speaks)
        network.resampler.spread_over_places()
    else:
        before = stage_folder(recipe, 1) / "model"
        if not before.is_dir():
            raise RecipeError(f"{before} is not there: run stage 1 first.")
        processor = VoxelFMReportProcessor.from_pretrained(before)
        network = VoxelFMForReportGeneration.from_pretrained(before, language_model=speaks, with_vision_tower=False)
        network.language_model.add_adapter(recipe.lora.config(task_type="CAUSAL_LM"))
        network.config.has_adapter = True
        # Adapters learn in full precision beside a language model in half.
        for parameter in network.language_model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if store is None:
        network.vision_tower = tower.to(dtype).requires_grad_(False)
    for part in TRAINED_PARTS:
        getattr(network, part).requires_grad_(True)
    return network, processor


def standardise(network: VoxelFMForReportGeneration, scans: list[torch.Tensor]) -> None:
    """Mean and spread of the features of some training scans, into the resampler."""
    tokens = torch.cat(scans)[:, : len(network.resampler.feature_mean)]
    mean, scale = mean_and_scale(tokens)
    network.resampler.feature_mean.copy_(mean)
    network.resampler.feature_scale.copy_(scale)


def parameter_groups(network: VoxelFMForReportGeneration, stage: StageSettings) -> list[dict[str, Any]]:
    """What is trained, resampler and projector apart; each group knows its share of the learning rate."""
    ours = [p for part in TRAINED_PARTS for p in getattr(network, part).parameters() if p.requires_grad]
    known = {id(parameter) for parameter in ours}
    adapter = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": ours, "share": stage.projector_share}, {"params": adapter, "share": 1.0}]
    return [group for group in groups if group["params"]]


def save_only_trained(accelerator: Accelerator) -> None:
    """Checkpoints hold what is trained, not the frozen language model."""

    def save(models: list[nn.Module], weights: list, folder: str) -> None:
        if accelerator.is_main_process:
            save_file(trained_state(accelerator.unwrap_model(models[0])), Path(folder) / _TRAINED_FILE)
        weights.clear()  # nothing is left for accelerate to write

    def load_back(models: list[nn.Module], folder: str) -> None:
        network = accelerator.unwrap_model(models.pop())
        state = load_file(Path(folder) / _TRAINED_FILE)
        missing = set(trained_state(network)) - set(state)
        if missing:
            raise RecipeError(f"{folder} holds other trained parts than the recipe asks for: {sorted(missing)[0]}.")
        network.load_state_dict(state, strict=False)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load_back)


def trained_state(network: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a stage changes: trainable parameters, and the buffers of the resampler."""
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    state = network.state_dict()
    return {
        name: value.detach().contiguous()
        for name, value in state.items()
        if name in names or name.startswith("resampler.feature_")
    }
