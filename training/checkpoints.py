"""Checkpoints of a run: written aside, renamed when whole, thinned out, refused where they do not fit."""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from voxelfm_hf.training.launch import any_rank
from voxelfm_hf.volumes.errors import RecipeError, VoxelFMError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})")
_FACTS = "run.json"


class Checkpoints:
    """The `checkpoints` folder of a run.

    A checkpoint is a folder in Accelerate's format (weights, optimiser, scaler, random states of every rank, registered
    objects) with the data position of every rank beside it. It appears under its name only when it is complete.

    Args:
        folder: where checkpoints lie.
        accelerator: of the run; everything to be saved is prepared by or registered with it.
        keep_last: newest checkpoints kept.
        keep_every: checkpoints at multiples of this many steps are kept for good; 0 keeps none.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, *, keep_last: int, keep_every: int):
        self.folder = folder
        self.accelerator = accelerator
        self.keep_last = keep_last
        self.keep_every = keep_every

    def newest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        complete = complete_checkpoints(self.folder)
        return complete[-1] if complete else None

    def save(self, step: int, *, position: dict[str, Any]) -> Path:
        """Write a checkpoint; a collective call between optimiser steps.

        Args:
            step: optimiser steps done.
            position: this rank's data position, plain numbers and strings.

        Returns:
            The checkpoint.

        Raises:
            VoxelFMError: it could not be written (a full disk); earlier checkpoints are untouched.
        """
        final = self.folder / f"step-{step:08d}"
        if final.exists():
            return final
        part = self.folder / f".{final.name}.part"
        problem = self._attempt(lambda: self._start(part))
        self.accelerator.wait_for_everyone()
        problem = problem or self._attempt(lambda: self._write(part, step, position))
        if any_rank(self.accelerator, problem is not None):
            if self.accelerator.is_main_process:
                shutil.rmtree(part, ignore_errors=True)
            previous = self.newest()
            usable = f"{previous.name} is still usable" if previous else "there is no earlier one"
            reason = problem or "another process failed"
            raise VoxelFMError(
                f"The checkpoint of step {step} could not be written to {self.folder} ({reason}); {usable}."
            )
        if self.accelerator.is_main_process:
            os.replace(part, final)
            self._thin_out()
        self.accelerator.wait_for_everyone()
        return final

    def load(self, checkpoint: Path) -> tuple[int, dict[str, Any]]:
        """Restore everything registered with the accelerator.

        Args:
            checkpoint: a complete checkpoint.

        Returns:
            Optimiser steps done, and this rank's data position.

        Raises:
            RecipeError: it was saved by another number of processes.
        """
        facts = json.loads((checkpoint / _FACTS).read_text())
        processes = self.accelerator.num_processes
        if facts["num_processes"] != processes:
            raise RecipeError(
                f"{checkpoint.parent.parent} was trained with {facts['num_processes']} processes and cannot go on with "
                f"{processes}: every process has its own place in the data; start it with {facts['num_processes']}."
            )
        self.accelerator.load_state(str(checkpoint))
        position = json.loads((checkpoint / f"data_position_{self.accelerator.process_index}.json").read_text())
        return facts["step"], position

    def _start(self, part: Path) -> None:
        """Make an empty folder to write into; what a killed save left is removed."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".step-*.part"):
                shutil.rmtree(left)
            part.mkdir()

    def _write(self, part: Path, step: int, position: dict[str, Any]) -> None:
        self.accelerator.save_state(str(part))
        rank = self.accelerator.process_index
        (part / f"data_position_{rank}.json").write_text(json.dumps(position))
        if self.accelerator.is_main_process:
            facts = {"step": step, "num_processes": self.accelerator.num_processes}
            (part / _FACTS).write_text(json.dumps(facts))
            for file in part.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())

    def _attempt(self, action) -> str | None:
        """Run an action that writes; the reason in words when it fails."""
        try:
            action()
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            logger.debug("checkpoint failed", exc_info=True)
            return getattr(error, "strerror", None) or str(error).splitlines()[0]
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            return str(error).splitlines()[0]
        return None

    def _thin_out(self) -> None:
        """Remove old checkpoints that are not kept for good."""
        for path in complete_checkpoints(self.folder)[: -self.keep_last]:
            step = int(path.name.removeprefix("step-"))
            if not (self.keep_every and step % self.keep_every == 0):
                shutil.rmtree(path, ignore_errors=True)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))
