"""What pre-training leaves in its run folder: the teacher as a model, a picture of the log, a card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from voxelfm_hf.cards import NO_LICENSE, TAGS, render_card
from voxelfm_hf.files import written_file
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe
from voxelfm_hf.training.pretrain.self_distillation import LOSSES
from voxelfm_hf.training.run_folder import replace_folder

# What the picture of the log shows.
PANELS = {
    **LOSSES,
    "teacher targets (nats)": ("teacher_entropy", "teacher_kl_to_uniform"),
    "feature rank": ("feature_rank",),
    "gradient norm": ("grad_norm",),
    "online probe (balanced accuracy)": ("probe_knn", "probe_linear"),
}
PANELS_A_ROW = 3


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


def plot_log(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw losses, collapse metrics and probe scores against steps."""
    from matplotlib.figure import Figure  # slow to import, needed at the end of a run

    rows = -(-len(PANELS) // PANELS_A_ROW)
    figure = Figure(figsize=(4 * PANELS_A_ROW, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, PANELS_A_ROW).ravel()
    for axis, (title, names) in zip(axes, PANELS.items(), strict=False):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name)
        axis.set_title(title)
        axis.set_xlabel("optimiser step")
        if axis.lines:
            axis.legend()
    for axis in axes[len(PANELS) :]:
        axis.remove()
    with written_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def write_card(
    folder: Path, recipe: PretrainRecipe, facts: dict[str, Any], entries: Sequence[dict[str, Any]], command: str
) -> None:
    """Write the card of the run: what it is, what it was trained on, how far it came, how to repeat it.

    Args:
        folder: of the run.
        recipe: of the run.
        facts: step, volumes, bad_steps, hours, parameters, environment, data.
        entries: of the log.
        command: how the run was started.
    """
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        license=NO_LICENSE,
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=[*TAGS, "self-supervised", "voxelfm"],
    )
    last = next((entry for entry in reversed(entries) if entry.get("total") is not None), {"step": 0})
    shown = [name for names in PANELS.values() for name in names if not name.startswith("probe_")]
    values = {
        "model": vars(recipe.model),
        "run": vars(recipe.run),
        "facts": facts,
        "last_step": last["step"],
        "values": {name: last[name] for name in shown if last.get(name) is not None},
        "probes": [entry for entry in entries if entry.get("probe_linear") is not None],
        "command": command,
    }
    card = render_card("pretraining_run", header, values, optional=("values", "probes", "command"))
    with written_file(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
