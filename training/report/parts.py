"""What a stage of report training is made of: model, data, optimiser, checkpoints."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import AutoTokenizer, PreTrainedModel

from voxelfm_hf.files import written_file
from voxelfm_hf.hub import EMBEDDED, load, resolve_model, weight_hash
from voxelfm_hf.modeling.configuration_voxelfm_report import VoxelFMReportConfig
from voxelfm_hf.modeling.modeling_voxelfm_report import (
    TRAINED_PARTS,
    VoxelFMForReportGeneration,
    load_language_model,
)
from voxelfm_hf.modeling.processing_voxelfm_report import ReportInputError, VoxelFMReportProcessor
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.checkpoints import Checkpoints
from voxelfm_hf.training.pretrain.schedules import Schedule, learning_rate
from voxelfm_hf.training.progress import Tally
from voxelfm_hf.training.report.data import (
    PairSet,
    ReportBatches,
    ReportPair,
    encodable,
    read_pairs,
    scan_volumes,
    shuffled_between_scans,
    store_tokens,
)
from voxelfm_hf.training.report.recipe import ReportRecipe, StageSettings
from voxelfm_hf.training.report.words import learn_words
from voxelfm_hf.volumes.errors import ModelError, RecipeError

logger = logging.getLogger(__name__)

# Training scans whose features say how to standardise.
STANDARDISED_ON = 64
# Tensors of the trained part in a checkpoint.
_TRAINED = "trained.safetensors"
# Resampler and projector after the passes over words.
_WORDS = "words.safetensors"


@dataclass
class ReportParts:
    """A stage ready to train.

    Attributes:
        model: Prepared by the accelerator.
        network: The same without wrappers.
        batches: Micro-batches from the first step that is left.
        feature_scale: (C,) what the feature noise is multiplied by.
        facts: Of the data, for the card.
    """

    model: nn.Module
    network: VoxelFMForReportGeneration
    processor: VoxelFMReportProcessor
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    batches: DataLoader
    checkpoints: Checkpoints
    tally: Tally
    steps: int
    first_step: int
    accumulation: int
    feature_scale: torch.Tensor
    facts: dict[str, Any]


def build_parts(recipe: ReportRecipe, number: int, accelerator: Accelerator) -> ReportParts:
    """Everything a stage needs, where its newest checkpoint stands.

    Raises:
        VoxelFMError: data, models and recipe do not fit each other.
    """
    stage, folder = recipe.stage(number), stage_folder(recipe, number)
    set_seed(recipe.seed + number)
    store = None if recipe.data.store is None else FeatureStore(recipe.data.store)
    found = read_pairs(recipe.data, None if store is None else store.ids)
    try:
        network, processor = _model(recipe, number, store)
        processor.system_prompt = stage.system_prompt
        kept, encoded, too_long = encodable(found.pairs, processor)
    except ReportInputError as error:
        raise RecipeError(f"{error}.") from None
    if too_long:
        logger.warning("%d of %d pairs exceed model.max_length and are left out", too_long, len(found.pairs))
    pairs = shuffled_between_scans(kept, seed=recipe.seed) if recipe.data.shuffle_features else kept
    if store is not None:
        read = store_tokens(store, recipe.model.feature_tokens, positions=recipe.model.position_features)
    else:
        read = scan_volumes(str(recipe.data.scans), processor)
    if number == 1 and recipe.model.standardise and store is not None:
        _standardise(network, [read(pair.scan) for pair in kept[:STANDARDISED_ON]])

    accumulation, steps = _sizes(recipe, number, len(pairs), accelerator.num_processes)
    data = ReportBatches(
        pairs,
        encoded,
        read,
        batch_size=stage.batch_size,
        accumulation=accumulation,
        steps=steps,
        seed=recipe.seed,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        volumes=store is None,
    )
    newest, tally = Checkpoints.newest_in(folder / "checkpoints"), Tally()
    if number == 1 and stage.word_epochs and newest is None:
        if store is None:
            raise RecipeError("stage1.word_epochs needs features computed before: set data.store.")
        started = time.perf_counter()
        _learn_words_once(network, folder, accelerator, pairs, [labels for _, labels in encoded], read, recipe)
        tally.seconds += time.perf_counter() - started
    if recipe.run.gradient_checkpointing:
        # The name in transformers before 5.23 or so is the second one.
        enable = getattr(network.language_model, "activation_checkpointing_enable", None)
        (enable or network.language_model.gradient_checkpointing_enable)()
    optimizer = torch.optim.AdamW(_groups(network, stage), lr=stage.learning_rate, weight_decay=stage.weight_decay)
    model, optimizer = accelerator.prepare(network, optimizer)
    accelerator.register_for_checkpointing(tally)
    _save_only_trained(accelerator)
    checkpoints = Checkpoints(
        folder / "checkpoints", accelerator, keep_last=recipe.run.keep_last, keep_every=recipe.run.keep_every
    )
    # Every process draws its own noise, after all have built the same model.
    set_seed(recipe.seed + number, device_specific=True)
    first_step = 0
    if newest:
        first_step, _ = checkpoints.load(newest)
        logger.info("going on at step %d", first_step)
    return ReportParts(
        model=model,
        network=network,
        processor=processor,
        optimizer=optimizer,
        schedule=learning_rate(
            peak=stage.learning_rate,
            start=stage.min_learning_rate,
            end=stage.min_learning_rate,
            warmup_steps=math.ceil(stage.warmup_share * steps),
            total_steps=steps,
        ),
        batches=DataLoader(
            Subset(data, range(first_step * accumulation, len(data))),
            batch_size=None,
            num_workers=recipe.run.num_workers,
            # Otherwise starting the loader would draw from the generator that dropout uses.
            generator=torch.Generator().manual_seed(recipe.seed),
        ),
        checkpoints=checkpoints,
        tally=tally,
        steps=steps,
        first_step=first_step,
        accumulation=accumulation,
        feature_scale=network.resampler.feature_scale.detach().clone(),
        facts=_facts(found, len(pairs), too_long, recipe),
    )


def _groups(network: VoxelFMForReportGeneration, stage: StageSettings) -> list[dict[str, Any]]:
    """What is trained, resampler and projector apart; each group knows its share of the learning rate."""
    ours = [p for part in TRAINED_PARTS for p in getattr(network, part).parameters() if p.requires_grad]
    known = {id(parameter) for parameter in ours}
    adapter = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": ours, "share": stage.projector_share}, {"params": adapter, "share": 1.0}]
    return [group for group in groups if group["params"]]


def stage_folder(recipe: ReportRecipe, number: int) -> Path:
    """Where a stage lies in the run folder."""
    return Path(recipe.output_dir) / f"stage{number}"


def _sizes(recipe: ReportRecipe, number: int, pairs: int, processes: int) -> tuple[int, int]:
    """Micro-batches of an optimiser step on one process, and optimiser steps."""
    stage = recipe.stage(number)
    a_round = stage.batch_size * processes
    if stage.total_batch % a_round:
        raise RecipeError(
            f"stage{number}.total_batch {stage.total_batch} is not a multiple of batch_size x processes = "
            f"{stage.batch_size} x {processes}; choose numbers that divide it."
        )
    return stage.total_batch // a_round, max(1, math.ceil(stage.epochs * pairs / stage.total_batch))


def _model(
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
        tokenizer = _tokenizer(settings.language_model, settings.language_model_revision)
        processor = VoxelFMReportProcessor(
            images, tokenizer, settings.num_image_tokens, request=settings.request, max_length=settings.max_length
        )
        config = VoxelFMReportConfig(
            vision_config=tower.config,
            text_config=speaks.config,
            image_token_id=processor.image_token_id,
            base_vision_model=settings.vision_model
            if settings.vision_model == EMBEDDED
            else str(settings.vision_model),
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
        network.language_model.add_adapter(_lora(recipe))
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


def _lora(recipe: ReportRecipe) -> Any:
    try:
        from peft import LoraConfig
    except ImportError:
        raise RecipeError("Stage 2 trains a LoRA adapter, which needs peft: pip install peft.") from None
    settings = recipe.lora
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )


def _tokenizer(name: str, revision: str | None) -> Any:
    try:
        if name.endswith(".gguf"):
            file = Path(name)
            return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the tokenizer of {name} cannot be loaded ({str(error).splitlines()[0]}): it belongs into the language "
            "model's folder."
        ) from None


def _standardise(network: VoxelFMForReportGeneration, scans: list[torch.Tensor]) -> None:
    """Mean and spread of the features of some training scans, into the resampler."""
    tokens = torch.cat(scans)[:, : len(network.resampler.feature_mean)].double()
    mean, scale = tokens.mean(0), tokens.std(0, correction=0)
    scale = torch.where(scale > 1e-6 * scale.max().clamp_min(1e-12), scale, torch.ones_like(scale))
    network.resampler.feature_mean.copy_(mean)
    network.resampler.feature_scale.copy_(scale)


def _learn_words_once(
    network: VoxelFMForReportGeneration,
    folder: Path,
    accelerator: Accelerator,
    pairs: list[ReportPair],
    labels: list[list[int]],
    read: Callable[[str], torch.Tensor],
    recipe: ReportRecipe,
) -> None:
    """The passes over words, or what they gave where a run stopped after them."""
    path = folder / _WORDS
    if not path.exists():
        learn_words(network, pairs, labels, read, recipe.stage1, seed=recipe.seed)
        if accelerator.is_main_process:
            with written_file(path) as temporary:
                save_file(trained_state(network), temporary)
        return
    network.load_state_dict(load_file(path), strict=False)


def _save_only_trained(accelerator: Accelerator) -> None:
    """Checkpoints hold what is trained, not the frozen language model."""

    def save(models: list[nn.Module], weights: list, folder: str) -> None:
        if accelerator.is_main_process:
            save_file(trained_state(accelerator.unwrap_model(models[0])), Path(folder) / _TRAINED)
        weights.clear()  # nothing is left for accelerate to write

    def load_back(models: list[nn.Module], folder: str) -> None:
        network = accelerator.unwrap_model(models.pop())
        state = load_file(Path(folder) / _TRAINED)
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


def _facts(found: PairSet, pairs: int, too_long: int, recipe: ReportRecipe) -> dict[str, Any]:
    left_out = {**found.left_out, **({"too long": too_long} if too_long else {})}
    return {"pairs": pairs, "left_out": left_out, "reduced": recipe.data.reduce}
