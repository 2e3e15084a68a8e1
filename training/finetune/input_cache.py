"""Prepared model inputs on disk, so that an epoch of fine-tuning reads no scan.

    CACHE/settings.json             how the inputs were made; other settings are refused, not mixed
    CACHE/volumes/ID.safetensors    "voxels" (1, D, H, W) int16, "scale" (2,): value = voxels * scale[0] + scale[1]
    CACHE/failures.csv              what could not be prepared, and why

16 bits over the range of a volume keep 2900 HU to 0.05 HU; bfloat16, of the same size, would keep them to 8 HU.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.numpy import save_file

from voxelfm_hf.failures import write_failures
from voxelfm_hf.features import (
    EmbedOptions,
    Prepared,
    Task,
    mistaken,
    prepared_scans,
    process_state,
    processor_settings,
)
from voxelfm_hf.files import written_file
from voxelfm_hf.hub import load, resolve_model
from voxelfm_hf.volumes.errors import RecipeError, StoreError

STEPS = 65534


class InputCache:
    """Prepared inputs of scans and regions, by id.

    Args:
        folder: Made by `prepare_inputs`.

    Raises:
        StoreError: the folder is no such cache.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.settings: dict[str, Any] = json.loads((self.folder / "settings.json").read_text())
        except (OSError, ValueError):
            raise StoreError(f"{self.folder} holds no prepared inputs: make them with prepare_inputs") from None

    def __contains__(self, identifier: str) -> bool:
        return self._file(identifier).is_file()

    def read(self, identifier: str) -> torch.Tensor:
        """The voxels (1, D, H, W) of an input, float32, as the processor made them; StoreError when it is missing."""
        try:
            with safe_open(self._file(identifier), framework="np") as file:
                voxels, (step, low) = file.get_tensor("voxels"), file.get_tensor("scale")
        except FileNotFoundError:
            raise StoreError(f"{self.folder} holds no prepared input of {identifier}: prepare its scan") from None
        return torch.from_numpy(voxels.astype(np.float32) * np.float32(step) + np.float32(low))

    def write(self, identifier: str, prepared: Prepared) -> None:
        """Keeps an input."""
        low, high = float(prepared.voxels.min()), float(prepared.voxels.max())
        step = (high - low) / STEPS or 1.0
        middle = (low + high) / 2
        voxels = np.rint((prepared.voxels - middle) / step).astype(np.int16)
        with written_file(self._file(identifier)) as path:
            tensors: dict[str, Any] = {"voxels": voxels, "scale": np.array([step, middle], dtype=np.float64)}
            save_file(tensors, path, metadata={"input_hash": prepared.facts.get("input_hash") or ""})

    def input_hash(self, identifier: str) -> str | None:
        """What the input was made of, see `voxelfm_hf.features.identity`; None where it is not known."""
        with safe_open(self._file(identifier), framework="np") as file:
            return (file.metadata() or {}).get("input_hash") or None

    def _file(self, identifier: str) -> Path:
        return self.folder / "volumes" / f"{identifier}.safetensors"


def prepare_inputs(
    tasks: Sequence[Task],
    model: str | Path,
    folder: str | Path,
    options: EmbedOptions = EmbedOptions(),  # noqa: B008 (frozen)
    *,
    on_start: Callable[[int], None] | None = None,
    on_scan: Callable[[Task], None] | None = None,
) -> tuple[InputCache, dict[str, str]]:
    """Prepares scans with a model's processor and keeps the inputs; those there already are left alone.

    Under `accelerate launch` every process prepares its share.

    Args:
        tasks: Scans, whole or by regions, with unique ids.
        model: Folder or Hub repository whose processor and training crop are used.
        folder: Of the cache, created when new.
        options: How to read and prepare; the precision and the patches of features do not matter here.
        on_start: Called with the number of scans this process will prepare.
        on_scan: Called after each of them.

    Returns:
        The cache, and the reason of each failure by id.

    Raises:
        StoreError: the folder holds inputs made with other settings.
        RecipeError: scans in tiles were asked for.
    """
    network, processor = load(resolve_model(model), dtype=torch.float32)
    if options.tile:
        raise RecipeError("fine-tuning takes whole scans or regions, not tiles: leave tile out, or name regions")
    options.set_up(processor)
    region_size = options.region_size or network.config.image_size
    settings = processor_settings(processor)
    if any(task.regions for task in tasks):
        settings["region_size"] = region_size
    state = process_state()
    with state.main_process_first() if state.num_processes > 1 else nullcontext():
        _settle(Path(folder), json.loads(json.dumps(settings)))
    cache = InputCache(folder)
    present = frozenset(name for task in tasks for name in task.identifiers if name in cache)
    state.wait_for_everyone()  # every process has seen the same files before the first is added
    todo = [task for task in tasks if not present.issuperset(task.identifiers)]
    share = todo[state.process_index :: state.num_processes]
    if on_start:
        on_start(len(share))
    known = {name: cache.input_hash(name) for name in present}
    failures = mistaken(tasks[state.process_index :: state.num_processes], known, options, cache.folder)
    for task, results in prepared_scans(share, processor, options, region_size=region_size, present=present):
        for identifier, result in results.items():
            if isinstance(result, Prepared):
                cache.write(identifier, result)
            else:
                failures[identifier] = result
        if on_scan:
            on_scan(task)
    if state.num_processes > 1:
        failures = {key: reason for share in gather_object([failures]) for key, reason in share.items()}
    if state.is_main_process:
        write_failures(cache.folder, failures)
    state.wait_for_everyone()
    return cache, failures


def _settle(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new cache, or refuses to mix."""
    path = folder / "settings.json"
    if path.is_file():
        stored = InputCache(folder).settings
        different = sorted(k for k in {*stored, *settings} if stored.get(k) != settings.get(k))
        if different:
            raise StoreError(f"{folder} was made with other settings ({', '.join(different)}): name a new folder")
        return
    with written_file(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
