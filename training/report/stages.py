"""Train a report model: `accelerate launch -m voxelfm_hf.training.report RECIPE --stage 1`, then `--stage 2`.

RECIPE is a YAML file or the name of a packaged one (report_qwen3_4b, report_smollm2); any of its fields can be changed
with `--section.field value`. Stage 1 trains resampler and projector, stage 2 those and a LoRA adapter of the language
model; the encoder stays frozen. A run stopped at any moment goes on with the result it would have had.
"""

import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from voxelfm_hf.command import one_sentence_errors
from voxelfm_hf.recipes import load_recipe, to_values
from voxelfm_hf.training.launch import any_rank, end_run, recipe_parser, start_logging, start_run, stop_signals
from voxelfm_hf.training.progress import Clock
from voxelfm_hf.training.report.network import stage_folder
from voxelfm_hf.training.report.parts import ReportParts, build_parts
from voxelfm_hf.training.report.recipe import ReportRecipe, StageSettings, check
from voxelfm_hf.training.report.words import with_noise
from voxelfm_hf.training.run_folder import LOG_FILE, RunLog, environment, replace_folder, settle_recipe, write_json
from voxelfm_hf.volumes.errors import VoxelFMError

logger = logging.getLogger(__name__)

MODULE = "voxelfm_hf.training.report"


def train_reports(recipe: ReportRecipe, *, stage: int, command: str = "") -> Path:
    """Run a stage, or go on with it.

    Args:
        recipe: The run.
        stage: 1 or 2.
        command: How it was started, for the card.

    Returns:
        The model folder of the stage, which `VoxelFMForReportGeneration.from_pretrained` opens.

    Raises:
        VoxelFMError: recipe, data, models or folder do not allow the run.
    """
    check(recipe)
    folder = stage_folder(recipe, stage)
    accelerator = start_run(recipe, folder)
    _run(recipe, stage, accelerator, command)  # model and optimizer end with it
    end_run(accelerator)
    return folder / "model"


def _run(recipe: ReportRecipe, stage: int, accelerator: Accelerator, command: str) -> None:
    with accelerator.main_process_first():
        settle_recipe(recipe, stage_folder(recipe, stage))
    parts = build_parts(recipe, stage, accelerator)
    step = _train(recipe, stage, accelerator, parts)
    if accelerator.is_main_process and step == parts.steps:
        _finish(recipe, stage, accelerator, parts, command)
    accelerator.wait_for_everyone()


def _train(recipe: ReportRecipe, number: int, accelerator: Accelerator, parts: ReportParts) -> int:
    """Do the steps that are left; returns how many are done in all."""
    stage, run, step = recipe.stage(number), recipe.run, parts.first_step
    folder, is_main = stage_folder(recipe, number), accelerator.is_main_process
    log = RunLog(folder / LOG_FILE)
    if is_main:
        log.cut(step or -1)
        facts = environment(accelerator.num_processes, accelerator.device, run.mixed_precision)
        write_json(folder / "environment.json", facts)
    parts.model.train()
    batches, clock = iter(parts.batches), Clock()
    progress = tqdm(
        total=parts.steps, initial=step, desc=f"stage {number}", unit="step", disable=None if is_main else True
    )
    with progress, stop_signals() as asked_to_stop:
        while step < parts.steps:
            clock.start_wait()
            micro_batches = [next(batches) for _ in range(parts.accumulation)]
            clock.end_wait()
            rate = parts.schedule(step)
            for group in parts.optimizer.param_groups:
                group["lr"] = rate * group["share"]
            loss, norm = _step(accelerator, parts, micro_batches, stage)
            step += 1
            parts.tally.seconds += clock.end_step()
            if is_main and (step % run.log_every == 0 or step == parts.steps):
                entry = {"step": step, "loss": loss, "grad_norm": norm, "learning_rate": rate}
                log.add(entry)
                accelerator.log(entry, step=step)
                progress.set_postfix(loss=f"{loss:.3f}")
                if progress.disable:
                    logger.info("step %d of %d: loss %.3f", step, parts.steps, loss)
            progress.update()
            stop = any_rank(accelerator, bool(asked_to_stop))
            if step % run.checkpoint_every == 0 or step == parts.steps or stop:
                parts.checkpoints.save(step, position={})
            if stop:
                logger.info("asked to stop: saved at step %d", step)
                break
    return step


def _step(
    accelerator: Accelerator, parts: ReportParts, micro_batches: list[dict[str, Any]], stage: StageSettings
) -> tuple[float, float]:
    """One optimiser step on the mean loss over all answer tokens of its batches; that loss and the gradient norm."""
    device = accelerator.device
    tokens = [torch.tensor(float((batch["labels"] >= 0).sum()), device=device) for batch in micro_batches]
    total = accelerator.reduce(torch.stack(tokens).sum(), reduction="sum")
    losses = torch.zeros((), device=device)
    for index, (batch, count) in enumerate(zip(micro_batches, tokens, strict=True)):
        # Gradients are exchanged between processes once, with the last micro-batch.
        with nullcontext() if index == len(micro_batches) - 1 else accelerator.no_sync(parts.model):
            loss = parts.model(**_inputs(batch, parts, stage, device), use_cache=False).loss
            # DDP averages gradients over processes.
            accelerator.backward(loss * (count / total * accelerator.num_processes))
        losses += loss.detach() * count
    norm = accelerator.clip_grad_norm_([p for p in parts.model.parameters() if p.requires_grad], stage.clip_norm)
    parts.optimizer.step()
    parts.optimizer.zero_grad()
    mean = accelerator.reduce(losses, reduction="sum") / total
    if not torch.isfinite(mean):
        raise VoxelFMError(
            "The loss is not finite; the last checkpoint is untouched: lower the learning rate or look at the features."
        )
    return float(mean), float(norm)


def _inputs(batch: dict[str, Any], parts: ReportParts, stage: StageSettings, device: torch.device) -> dict[str, Any]:
    """The batch on the device, its features with noise."""
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    features = inputs.get("vision_features")
    if features is not None and stage.feature_noise:
        inputs["vision_features"] = with_noise(features, parts.feature_scale.to(device), stage)
    return inputs


def _finish(recipe: ReportRecipe, number: int, accelerator: Accelerator, parts: ReportParts, command: str) -> None:
    """Leave the model, its processor and the facts of the run in the stage's folder."""
    folder, network = stage_folder(recipe, number), accelerator.unwrap_model(parts.model)
    facts = {
        **parts.facts,
        "stage": number,
        "steps": parts.steps,
        "hours": round(parts.tally.seconds / 3600, 4),
        "command": command,
        "settings": to_values(recipe.stage(number)),
        "seed": recipe.seed,
        "text_only": recipe.data.shuffle_features,
    }
    network.config.fit = {**(network.config.fit or {}), f"stage{number}": facts}
    network.vision_tower = None  # named in the config, never written

    def write(part: Path) -> None:
        network.save_pretrained(part)
        parts.processor.save_pretrained(part)

    replace_folder(folder / "model", write)
    write_json(folder / "facts.json", facts)
    logger.info("%s", folder / "model")


@one_sentence_errors
def main(words: list[str] | None = None) -> None:
    """Command line entry; returns the exit code."""
    words = sys.argv[1:] if words is None else words
    parser = recipe_parser(MODULE, __doc__ or "", ReportRecipe, recipes="report_qwen3_4b or report_smollm2")
    parser.add_argument("--stage", type=int, choices=(1, 2), required=True, help="1: projector, 2: and LoRA")
    options, overrides = parser.parse_known_args(words)
    start_logging()
    recipe = load_recipe(options.recipe, ReportRecipe, overrides=overrides)
    train_reports(recipe, stage=options.stage, command=" ".join(["accelerate launch -m", MODULE, *words]))
