"""What a run leaves in its folder beside checkpoints: recipe, versions, log, picture of the losses, card, teacher."""

import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from voxelfm_hf.files import written_file
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.recipes import load_recipe, save_recipe, to_values
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe
from voxelfm_hf.volumes.errors import RecipeError

logger = logging.getLogger(__name__)

# Fields that may change when a run goes on: they touch neither the weights nor the order of the data.
_FREE_FIELDS = {
    "output_dir",
    "run.log_every",
    "run.checkpoint_every",
    "run.keep_last",
    "run.keep_every",
    "run.max_bad_steps",
    "run.trackers",
    "run.export_max_patches",
}
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


def settle_recipe(recipe: Any, folder: Path) -> None:
    """Save the resolved recipe in the run folder, or check it against the one the run began with.

    Raises:
        RecipeError: the folder holds a run with other settings.
    """
    path = folder / "recipe.yaml"
    if path.exists():
        ours, theirs = flat(to_values(recipe)), flat(to_values(load_recipe(path, type(recipe))))
        names = sorted(ours.keys() | theirs.keys())
        different = [
            name
            for name in names
            if ours.get(name) != theirs.get(name) and name not in _FREE_FIELDS and not name.startswith("probe.")
        ]
        if different:
            name = different[0]
            raise RecipeError(
                f"{folder} holds a run with {name} {theirs.get(name)!r}, not {ours.get(name)!r} "
                f"({len(different)} field(s) differ); go on with its recipe.yaml or choose another output_dir."
            )
    folder.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, path)


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


def plot_log(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw losses, collapse metrics and probe scores against steps."""
    from matplotlib.figure import Figure  # slow to import, needed at the end of a run

    panels = {
        "losses": ["total", "dino_local", "dino_global", "ibot"],
        "KoLeo": ["koleo"],
        "teacher targets (nats)": ["teacher_entropy", "teacher_kl_to_uniform"],
        "feature rank": ["feature_rank"],
        "gradient norm": ["grad_norm"],
        "online probe (balanced accuracy)": ["probe_knn", "probe_linear"],
    }
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name)
        axis.set_title(title)
        axis.set_xlabel("optimiser step")
        if axis.lines:
            axis.legend()
    with written_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def make_processor(recipe: PretrainRecipe, *, max_patches: int) -> VoxelFMImageProcessor:
    """The image processor that prepares scans as the recipe's views were normalised."""
    crops = recipe.crops
    return VoxelFMImageProcessor(
        hu_range=list(crops.hu_range),
        image_mean=crops.image_mean,
        image_std=crops.image_std,
        patch_size=recipe.model.patch_size,
        max_patches=max_patches,
    )


def export_teacher(backbone: PreTrainedModel, recipe: PretrainRecipe, folder: Path) -> None:
    """Write the teacher as an ordinary `from_pretrained` folder; what was there is replaced when it is whole."""
    processor = make_processor(recipe, max_patches=recipe.run.export_max_patches)

    def write(part: Path) -> None:
        backbone.save_pretrained(part)
        processor.save_pretrained(part)

    replace_folder(folder, write)


def write_card(
    folder: Path, recipe: PretrainRecipe, facts: dict[str, Any], entries: list[dict[str, Any]], command: str
) -> None:
    """Write the card of the run: what it is, what it was trained on, how far it came, how to repeat it."""
    last = next((entry for entry in reversed(entries) if entry.get("total") is not None), {"step": 0})
    model, run, data = recipe.model, recipe.run, facts["data"]
    names = ("total", "dino_local", "dino_global", "ibot", "koleo", "teacher_entropy", "feature_rank")
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-feature-extraction",
        "tags: [medical, ct, self-supervised, voxelfm]",
        "---",
        "# VoxelFM pre-training run",
        "",
        '`teacher/` is the encoder: `AutoModel.from_pretrained("teacher")`. Not a medical device.',
        "",
        f"- Backbone: width {model.hidden_size}, depth {model.num_hidden_layers}, {model.num_attention_heads} heads, "
        f"patch {model.patch_size}; {facts['parameters']:,} parameters.",
        f"- Steps: {facts['step']} of {run.total_steps}, {run.total_batch} volumes each "
        f"({facts['volumes']:,} in total); {facts['bad_steps']} skipped because the loss was not finite.",
        f"- Time: {facts['hours']:.2f} hours on {facts['environment']['processes']} process(es), "
        f"{facts['environment']['device']}, mixed precision {run.mixed_precision}.",
        f"- Data (fingerprint `{data['fingerprint']}`; {data['skipped']} volumes skipped, see `skipped.jsonl`):",
        *(f"  - {source['name']}: {source['scans'] or 'an unknown number of'} scans" for source in data["sources"]),
        "",
        "![losses](losses.png)",
        "",
        f"| value at step {last['step']} | |",
        "|---|---|",
        *(f"| {name} | {last[name]:.4g} |" for name in names if last.get(name) is not None),
        "",
    ]
    probes = [entry for entry in entries if entry.get("probe_linear") is not None]
    if probes:
        lines += [
            "Balanced accuracy of the online probe (a development aid, scored again and again on the same scans):",
            "",
            "| step | nearest neighbours | linear |",
            "|---|---|---|",
            *(f"| {entry['step']} | {entry['probe_knn']:.3f} | {entry['probe_linear']:.3f} |" for entry in probes),
            "",
        ]
    lines += [
        "## Repeat",
        "",
        f"    {command}",
        "",
        "`recipe.yaml` holds every setting, `environment.json` the versions, `log.jsonl` the curves.",
        "",
    ]
    with written_file(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines))


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


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
