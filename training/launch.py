"""How a run meets the world: its command line, processes, devices, trackers, and signals that ask it to stop."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.utils import logging as transformers_logging

from voxelfm_hf.command import ModuleParser
from voxelfm_hf.recipes import field_lines, flat_values
from voxelfm_hf.training.run_settings import Recipe
from voxelfm_hf.volumes.errors import RecipeError

logger = logging.getLogger(__name__)


def recipe_parser(module: str, description: str, recipe_class: type, *, recipes: str) -> ModuleParser:
    """Command line of a module that runs a recipe; its fields are what `parse_known_args` leaves over.

    Args:
        module: Name of the module.
        description: Of the help, which also lists the fields.
        recipe_class: Dataclass of the recipe.
        recipes: Names of packaged recipes, in words.
    """
    parser = ModuleParser(module, description, "fields of a recipe:\n  " + "\n  ".join(field_lines(recipe_class)))
    parser.add_argument("recipe", help=f"YAML file, or {recipes}")
    return parser


def start_logging() -> None:
    """Messages of the main process on stderr, of the others only their warnings; no loading bars of transformers."""
    transformers_logging.disable_progress_bar()
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for name in ("accelerate", "httpx", "transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)


def launched_processes() -> int:
    """Processes that a launcher started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", 1))


def open_accelerator(
    mixed_precision: str, *, trackers: list[str] | None = None, folder: str | None = None
) -> Accelerator:
    """Accelerator of a run, checked against the way it was launched.

    Args:
        mixed_precision: no, bf16 or fp16.
        trackers: Experiment trackers.
        folder: Where they write.

    Raises:
        RecipeError: processes were launched that do not see each other, or a tracker that does not exist.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`log_with=.* no supported trackers")  # `start_run` says which
            accelerator = Accelerator(
                mixed_precision=mixed_precision,
                log_with=trackers or None,
                project_dir=folder,
                kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            )
    except ValueError as error:
        raise RecipeError(f"The run cannot start: {str(error).splitlines()[0]}") from error
    launched = launched_processes()
    if accelerator.num_processes != launched:
        raise RecipeError(
            f"{launched} processes were launched but do not see each other; on CPUs set ACCELERATE_USE_CPU=true and "
            "use accelerate launch --multi_gpu, or torchrun."
        )
    if plugin := getattr(accelerator.state, "fsdp_plugin", None):
        # Autocast chooses precisions here as everywhere; accelerate's policy would round targets, losses and sums too.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


def start_run(recipe: Recipe, folder: Path) -> Accelerator:
    """Accelerator of a recipe's run, its trackers started in the run's folder; RecipeError as in `open_accelerator`."""
    run = recipe.run
    accelerator = open_accelerator(run.mixed_precision, trackers=run.trackers, folder=str(folder))
    found = {getattr(tracker, "value", str(tracker)) for tracker in accelerator.log_with}
    for name in run.trackers:
        if name not in found:
            logger.warning("the tracker %s is not installed and is left out", name)
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    accelerator.init_trackers("trackers", config={name: str(value) for name, value in flat_values(recipe).items()})
    if accelerator.is_main_process:
        processes = accelerator.num_processes
        logger.info("%d process(es) on %s, mixed precision %s", processes, accelerator.device.type, run.mixed_precision)
    return accelerator


def end_run(accelerator: Accelerator) -> None:
    """End trackers and process group of a run; nothing but the accelerator may still hold its model.

    A model freed after the group holds the last reference to it, and closing a gloo group from there can wait for ever
    for a thread that waits for Python's lock.
    """
    accelerator.free_memory()
    accelerator.end_training()


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set on any rank; a collective call, which also makes all ranks wait for each other."""
    total = torch.tensor([float(flag)], device=accelerator.device)
    return bool(accelerator.reduce(total, reduction="sum").item() > 0)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or SIGUSR1 comes; the old handlers return afterwards."""
    received: list[int] = []
    old = {}
    for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
        old[number] = signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
