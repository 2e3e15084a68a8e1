"""The parts of a pre-training run, built from its recipe and restored from its newest checkpoint."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from voxelfm_hf.data.stream import SampleStream, StreamLoader
from voxelfm_hf.training.checkpoints import Checkpoints
from voxelfm_hf.training.network_options import choose_attention, recompute_activations
from voxelfm_hf.training.pretrain.loader import make_loader, open_stream
from voxelfm_hf.training.pretrain.masking import MaskSource
from voxelfm_hf.training.pretrain.optimizer import make_adamw, parameter_groups
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe
from voxelfm_hf.training.pretrain.self_distillation import Student, Teacher
from voxelfm_hf.training.progress import Tally
from voxelfm_hf.training.run_folder import CHECKPOINTS_FOLDER

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunParts:
    """What a run is made of, on this rank.

    Args:
        student: prepared by the accelerator.
        teacher: not prepared; equal on all ranks.
        optimizer: prepared by the accelerator.
        stream: samples of this rank.
        loader: micro-batches of views of this rank.
        masks: masks of this rank.
        checkpoints: of the run.
        tally: counts that survive in checkpoints.
        first_step: optimiser steps already done.
    """

    student: nn.Module
    teacher: Teacher
    optimizer: torch.optim.Optimizer
    stream: SampleStream
    loader: StreamLoader
    masks: MaskSource
    checkpoints: Checkpoints
    tally: Tally
    first_step: int


def build_parts(recipe: PretrainRecipe, accelerator: Accelerator) -> RunParts:
    """Build a run, and bring it to where its newest checkpoint stands; a collective call.

    Args:
        recipe: of the run.
        accelerator: of the run.

    Returns:
        The parts, ready for the next step.

    Raises:
        VoxelFMError: the data cannot be opened, or the checkpoint does not fit this start.
    """
    student, teacher, optimizer = _build_models(recipe, accelerator)
    tally = Tally()
    accelerator.register_for_checkpointing(teacher, tally)
    rank = accelerator.process_index
    stream = open_stream(recipe, rank=rank, world_size=accelerator.num_processes)
    loader = make_loader(
        stream,
        recipe.crops,
        batch_size=recipe.run.batch_size,
        seed=recipe.seed,
        num_workers=recipe.run.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    masks = MaskSource(
        (recipe.seed, rank),
        2 * recipe.run.batch_size,
        masked_share=recipe.masks.masked_share,
        ratio_range=recipe.masks.ratio_range,
    )
    checkpoints = Checkpoints(
        Path(recipe.output_dir) / CHECKPOINTS_FOLDER,
        accelerator,
        keep_last=recipe.run.keep_last,
        keep_every=recipe.run.keep_every,
    )
    first_step = 0
    newest = checkpoints.newest()
    if newest is not None:
        first_step, position = checkpoints.load(newest)
        loader.load_state_dict(position)
        logger.info("going on from %s", newest.name)
    return RunParts(student, teacher, optimizer, stream, loader, masks, checkpoints, tally, first_step)


def _build_models(recipe: PretrainRecipe, accelerator: Accelerator) -> tuple[nn.Module, Teacher, torch.optim.Optimizer]:
    """Student and optimiser, prepared, and the teacher."""
    # Every rank builds the same weights; only then do their random numbers part.
    set_seed(recipe.seed)
    student = Student(recipe.model_config(), recipe.head, recipe.loss)
    teacher = Teacher(student).to(accelerator.device)
    set_seed(recipe.seed, device_specific=True)
    for backbone in (student.backbone, teacher.backbone):
        choose_attention(backbone, accelerator)
    if recipe.run.checkpoint_activations:
        recompute_activations(student.backbone)
    if recipe.run.compile:
        student.backbone.compile()
        teacher.backbone.compile()
    settings = recipe.optimizer
    groups = parameter_groups(
        student,
        num_layers=recipe.model.num_hidden_layers,
        layer_decay=settings.layer_decay,
        patch_embedding_multiplier=settings.patch_embedding_multiplier,
    )
    optimizer = make_adamw(
        groups, device=accelerator.device, learning_rate=settings.learning_rate, betas=settings.betas
    )
    prepared, optimizer = accelerator.prepare(student, optimizer)
    prepared.train()
    return prepared, teacher, optimizer
