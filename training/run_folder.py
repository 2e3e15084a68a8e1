"""What every run keeps in its folder beside checkpoints: recipe, versions, log; and how results are put there."""

import importlib.metadata
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from voxelfm_hf.files import written_file
from voxelfm_hf.recipes import flat_values, load_recipe, save_recipe
from voxelfm_hf.training.run_settings import FREE_FIELDS, Recipe
from voxelfm_hf.volumes.errors import RecipeError

LOG_FILE = "log.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
_PACKAGES = ("voxelfm-hf", "torch", "transformers", "accelerate", "datasets", "numpy", "safetensors")


class RunLog:
    """The values of a run, one JSON object a line.

    A run that goes on first drops the lines after its checkpoint, so that the log of an interrupted run is that of an
    uninterrupted one. Lines hold nothing that depends on the clock.

    Args:
        path: file of the log.
    """

    def __init__(self, path: Path):
        self.path = path

    def entries(self) -> list[dict[str, Any]]:
        """All lines; a last one that was cut off while being written is left out."""
        if not self.path.exists():
            return []
        entries = []
        for line in self.path.read_text().splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
        return entries

    def cut(self, step: int) -> None:
        """Drop what was logged after `step` optimiser steps."""
        kept = [entry for entry in self.entries() if entry["step"] <= step]
        with written_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def add(self, entry: dict[str, Any]) -> None:
        """Append a line; numbers that are not finite become null, because JSON has none."""
        finite = {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in entry.items()
        }
        with self.path.open("a") as file:
            file.write(json.dumps(finite) + "\n")


def settle_recipe(recipe: Recipe, folder: Path, *, free: Sequence[str] = ()) -> None:
    """Save the resolved recipe in the run folder, or check it against the one the run began with.

    Args:
        recipe: of the run.
        folder: of the run.
        free: fields and sections that may change when the run goes on, beside `FREE_FIELDS`.

    Raises:
        RecipeError: the folder holds a run with other settings.
    """
    path = folder / "recipe.yaml"
    # A run that ended before its first step has nothing to go on with.
    if path.exists() and any((folder / name).exists() for name in (LOG_FILE, CHECKPOINTS_FOLDER)):
        ours, theirs = flat_values(recipe), flat_values(load_recipe(path, type(recipe)))
        fixed = [name for name in sorted(ours.keys() | theirs.keys()) if not _is_free(name, free)]
        different = [name for name in fixed if ours.get(name) != theirs.get(name)]
        if different:
            name = different[0]
            raise RecipeError(
                f"{folder} holds a run with {name} {theirs.get(name)!r}, not {ours.get(name)!r} "
                f"({len(different)} field(s) differ); go on with its recipe.yaml or choose another output_dir."
            )
    folder.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, path)


def _is_free(name: str, free: Sequence[str]) -> bool:
    return name in FREE_FIELDS or any(name == one or name.startswith(f"{one}.") for one in free)


def environment(num_processes: int, device: torch.device, precision: str) -> dict[str, Any]:
    """Versions and hardware, without names of people or machines."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu_cores": os.cpu_count(),
        "processes": num_processes,
        "mixed_precision": precision,
        "versions": versions,
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON atomically."""
    with written_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder aside and swap it in."""
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)
