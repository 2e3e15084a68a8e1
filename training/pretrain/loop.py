"""Pre-train VoxelFM: `accelerate launch -m voxelfm_hf.training.pretrain RECIPE --data SHARDS --output_dir RUN`.

RECIPE is a YAML file or the name of a packaged recipe (base, large, tiny, smoke); any of its fields can be changed with
`--section.field value`. A run found in the output folder goes on where its newest checkpoint stands, with the same
result as if it had never stopped. `--dry-run` prints what a run would need and ends.
"""

import json
import logging
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from voxelfm_hf.command import one_sentence_errors
from voxelfm_hf.recipes import load_recipe
from voxelfm_hf.training.launch import (
    end_run,
    launched_processes,
    recipe_parser,
    start_logging,
    start_run,
    stop_signals,
)
from voxelfm_hf.training.pretrain.collapse import collapse_metrics
from voxelfm_hf.training.pretrain.data_facts import data_facts
from voxelfm_hf.training.pretrain.estimate import describe
from voxelfm_hf.training.pretrain.files import export_teacher, plot_log, write_card
from voxelfm_hf.training.pretrain.journal import Journal, show
from voxelfm_hf.training.pretrain.rates import rates_at
from voxelfm_hf.training.pretrain.recipe import FREE_FIELDS, PretrainRecipe, check
from voxelfm_hf.training.pretrain.run_parts import RunParts, build_parts
from voxelfm_hf.training.pretrain.step import mean_losses, optimiser_step
from voxelfm_hf.training.progress import Clock
from voxelfm_hf.training.run_folder import CHECKPOINTS_FOLDER, LOG_FILE, RunLog, settle_recipe, write_json
from voxelfm_hf.volumes.errors import VoxelFMError

logger = logging.getLogger(__name__)

MODULE = "voxelfm_hf.training.pretrain"


def pretrain(recipe: PretrainRecipe, *, command: str = "") -> Path:
    """Run a recipe, or go on with it.

    Args:
        recipe: the run.
        command: how it was started, for the card.

    Returns:
        The run folder; `teacher/` in it is an ordinary `from_pretrained` folder.

    Raises:
        VoxelFMError: the recipe, the data or the folder do not allow the run, or the loss stayed not finite.
    """
    check(recipe)
    folder = Path(recipe.output_dir)
    accelerator = start_run(recipe, folder)
    _run(recipe, accelerator, command=command)  # model and optimizer end with it
    end_run(accelerator)
    return folder


def _run(recipe: PretrainRecipe, accelerator: Accelerator, *, command: str) -> None:
    folder = Path(recipe.output_dir)
    recipe.accumulation_steps(accelerator.num_processes)
    with accelerator.main_process_first():
        settle_recipe(recipe, folder, free=FREE_FIELDS)
    if accelerator.is_main_process:
        logger.info("%s", describe(recipe, num_processes=accelerator.num_processes, device=accelerator.device))
    parts = build_parts(recipe, accelerator)
    step = _train(recipe, accelerator, parts)
    if accelerator.is_main_process:
        _finish(recipe, parts, step, command=command)


def _train(recipe: PretrainRecipe, accelerator: Accelerator, parts: RunParts) -> int:
    """Do the steps that are left, or those before a signal to stop; returns how many are done in all."""
    run, folder, step = recipe.run, Path(recipe.output_dir), parts.first_step
    accumulation = recipe.accumulation_steps(accelerator.num_processes)
    is_main = accelerator.is_main_process
    journal = Journal(recipe, accelerator, parts) if is_main else None
    batches, clock = iter(parts.loader), Clock()
    progress = tqdm(
        total=run.total_steps, initial=step, desc="pre-training", unit="step", disable=None if is_main else True
    )
    with progress, stop_signals() as asked_to_stop:
        while step < run.total_steps:
            clock.start_wait()
            try:
                micro_batches = [next(batches) for _ in range(accumulation)]
            except StopIteration:
                # The stream is endless unless nothing in it can be used any more.
                raise VoxelFMError(f"The data ended after {step} steps. {parts.stream.summary()}") from None
            clock.end_wait()
            rates = rates_at(recipe.optimizer, recipe.teacher, total_steps=run.total_steps, step=step)
            result = optimiser_step(
                accelerator,
                parts.student,
                parts.teacher,
                parts.optimizer,
                micro_batches,
                parts.masks,
                step=step,
                rates=rates,
                clip_norm=recipe.optimizer.clip_norm,
                stop_requested=bool(asked_to_stop),
            )
            step += 1
            parts.tally.count(is_bad=result.is_bad, is_overflow=result.is_overflow)
            parts.tally.seconds += clock.end_step()
            is_last = step == run.total_steps
            hopeless = parts.tally.hopeless_steps(run.max_bad_steps)
            if result.is_bad:
                logger.warning("step %d skipped: loss or gradients not finite", step)
            is_probe_due = bool(recipe.probe.labels) and (step % recipe.probe.every == 0 or is_last)
            if step % run.log_every == 0 or is_last or result.is_bad or is_probe_due:
                losses = mean_losses(accelerator, result)
                if journal:
                    entry = {"step": step, "epoch": micro_batches[-1].epoch, **losses, "grad_norm": result.grad_norm}
                    entry |= {**vars(rates), **collapse_metrics(result.teacher_output, parts.teacher)}
                    speed = clock.speed(run.total_batch)
                    journal.write(entry, speed, with_probe=is_probe_due)
                    show(progress, entry, speed)
            progress.update()
            if step % run.checkpoint_every == 0 or is_last or result.stop or hopeless:
                parts.checkpoints.save(step, position=parts.loader.state_dict())
                is_kept = run.keep_every and step % run.keep_every == 0
                if is_main and (is_kept or is_last or result.stop):
                    export_teacher(parts.teacher.backbone, recipe, folder / "teacher")
                if is_main and is_kept:
                    # One model folder a kept step: what a curve of probe scores against steps is made from.
                    export_teacher(parts.teacher.backbone, recipe, folder / "teachers" / f"step-{step:08d}")
            if hopeless:
                raise VoxelFMError(
                    f"The loss was not finite for {hopeless} steps in a row; the weights of the last good step are "
                    f"in {folder / CHECKPOINTS_FOLDER}: lower optimizer.learning_rate or look at the data, then start "
                    "again."
                )
            if result.stop:
                logger.info("asked to stop: saved at step %d", step)
                break
    return step


def _finish(recipe: PretrainRecipe, parts: RunParts, step: int, *, command: str) -> None:
    """Leave teacher, picture and card in the run folder."""
    folder, backbone = Path(recipe.output_dir), parts.teacher.backbone
    if not (folder / "teacher").exists():
        export_teacher(backbone, recipe, folder / "teacher")
    facts = {
        "step": step,
        "volumes": step * recipe.run.total_batch,
        "bad_steps": parts.tally.bad_steps,
        "hours": parts.tally.seconds / 3600,
        "parameters": backbone.num_parameters(),
        "environment": json.loads((folder / "environment.json").read_text()),
        "data": data_facts(recipe, parts.stream),
    }
    write_json(folder / "data.json", facts["data"])
    entries = RunLog(folder / LOG_FILE).entries()
    plot_log(entries, folder / "losses.png")
    write_card(folder, recipe, facts, entries, command)
    logger.info("%s", parts.stream.summary())


@one_sentence_errors
def main(words: list[str] | None = None) -> None:
    """Command line entry; returns the exit code."""
    words = sys.argv[1:] if words is None else words
    parser = recipe_parser(MODULE, __doc__ or "", PretrainRecipe, recipes="base, large, tiny or smoke")
    parser.add_argument("--dry-run", action="store_true", help="print memory and time a run would need, and end")
    options, overrides = parser.parse_known_args(words)
    start_logging()
    if options.dry_run:
        recipe = load_recipe(
            options.recipe, PretrainRecipe, overrides=["--data=unused", "--output_dir=unused", *overrides]
        )
        check(recipe)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(describe(recipe, num_processes=launched_processes(), device=device))
        return
    recipe = load_recipe(options.recipe, PretrainRecipe, overrides=overrides)
    pretrain(recipe, command=" ".join(["accelerate launch -m", MODULE, *words]))
