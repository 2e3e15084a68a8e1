"""What a stage of report training is made of: network, data, optimiser, checkpoints."""

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

from voxelfm_hf.files import written_file
from voxelfm_hf.modeling.modeling_voxelfm_report import (
    VoxelFMForReportGeneration,
)
from voxelfm_hf.modeling.processing_voxelfm_report import ReportInputError, VoxelFMReportProcessor
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.checkpoints import Checkpoints
from voxelfm_hf.training.network_options import recompute_activations
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
from voxelfm_hf.training.report.network import (
    parameter_groups,
    save_only_trained,
    stage_folder,
    stage_network,
    standardise,
    trained_state,
)
from voxelfm_hf.training.report.recipe import ReportRecipe
from voxelfm_hf.training.report.words import learn_words
from voxelfm_hf.training.run_folder import CHECKPOINTS_FOLDER
from voxelfm_hf.training.schedules import Schedule, learning_rate
from voxelfm_hf.volumes.errors import RecipeError

logger = logging.getLogger(__name__)

# Training scans whose features say how to standardise.
STANDARDISED_ON = 64
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
        network, processor = stage_network(recipe, number, store)
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
        standardise(network, [read(pair.scan) for pair in kept[:STANDARDISED_ON]])

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
    checkpoints = Checkpoints(
        folder / CHECKPOINTS_FOLDER, accelerator, keep_last=recipe.run.keep_last, keep_every=recipe.run.keep_every
    )
    newest, tally = checkpoints.newest(), Tally()
    if number == 1 and stage.word_epochs and newest is None:
        if store is None:
            raise RecipeError("stage1.word_epochs needs features computed before: set data.store.")
        started = time.perf_counter()
        _learn_words_once(network, folder, accelerator, pairs, [labels for _, labels in encoded], read, recipe)
        tally.seconds += time.perf_counter() - started
    if recipe.run.gradient_checkpointing:
        recompute_activations(network.language_model)
    optimizer = torch.optim.AdamW(
        parameter_groups(network, stage), lr=stage.learning_rate, weight_decay=stage.weight_decay
    )
    model, optimizer = accelerator.prepare(network, optimizer)
    accelerator.register_for_checkpointing(tally)
    save_only_trained(accelerator)
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


def _facts(found: PairSet, pairs: int, too_long: int, recipe: ReportRecipe) -> dict[str, Any]:
    left_out = {**found.left_out, **({"too long": too_long} if too_long else {})}
    return {"pairs": pairs, "left_out": left_out, "reduced": recipe.data.reduce}
