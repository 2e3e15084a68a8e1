"""How a run meets the world: processes, devices, trackers, and signals that ask it to stop."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from voxelfm_hf.recipes import to_values
from voxelfm_hf.training.run_folder import flat
from voxelfm_hf.volumes.errors import RecipeError

logger = logging.getLogger(__name__)


def make_accelerator(recipe: Any) -> Accelerator:
    """Accelerator of a run, checked against the way it was launched.

    Args:
        recipe: With `output_dir`, and `mixed_precision` and `trackers` in its section `run`.

    Raises:
        RecipeError: processes were launched that do not see each other, or a tracker that does not exist.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=recipe.run.mixed_precision,
            log_with=recipe.run.trackers or None,
            project_dir=recipe.output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
    except ValueError as error:
        raise RecipeError(f"The run cannot start: {str(error).splitlines()[0]}") from error
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != launched:
        raise RecipeError(
            f"{launched} processes were launched but do not see each other; on CPUs set ACCELERATE_USE_CPU=true and "
            "use accelerate launch --multi_gpu, or torchrun."
        )
    found = {getattr(tracker, "value", str(tracker)) for tracker in accelerator.log_with}
    for name in recipe.run.trackers:
        if name not in found:
            logger.warning("the tracker %s is not installed and is left out", name)
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    settings = {name: str(value) for name, value in flat(to_values(recipe)).items()}
    accelerator.init_trackers("trackers", config=settings)
    if accelerator.is_main_process:
        logger.info(
            "%d process(es) on %s, mixed precision %s", launched, accelerator.device.type, recipe.run.mixed_precision
        )
    return accelerator


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
