"""What the commands that fit a probe share: options of task and card, what a task's reader gets, scores."""

import inspect
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from voxelfm_hf.eval.probes.card import ProbeFacts

Target = Annotated[
    list[str] | None, typer.Option(help="Label column, may be repeated; localization: x, y and z of each point.")
]
Exclusive = Annotated[
    bool, typer.Option("--exclusive", help="Classification: one column of class names, exactly one holds.")
]
Time = Annotated[str, typer.Option(help="Survival: column of the follow-up time.")]
Event = Annotated[str, typer.Option(help="Survival: column with 1 for an event, 0 for censored.")]
Classes = Annotated[
    list[str] | None, typer.Option(help="Segmentation: names of the map's values, the background first.")
]
Masks = Annotated[str | None, typer.Option(help="Segmentation: column with the path of the label map.")]
MaskFolder = Annotated[
    Path | None, typer.Option(help="Segmentation: where relative paths of maps start; by default at the labels.")
]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Leave labels without features out.")]
Seed = Annotated[int, typer.Option(help="Seed of the splits (where none are given) and of the fit.")]
About = Annotated[
    str, typer.Option(help="For the card: what scans and labels are, where they come from.", rich_help_panel="Card")
]
Dataset = Annotated[
    str, typer.Option(help="For the card: name of the data set, or its Hub id.", rich_help_panel="Card")
]
License = Annotated[
    str | None, typer.Option(help="For the card: licence of the probe, as the Hub calls it.", rich_help_panel="Card")
]

UNDEFINED = "undefined"


def estimate_text(estimate: dict[str, Any]) -> str:
    """A score with its interval, such as "0.812 [0.700, 0.900]"."""
    value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
    if value is None or value != value:
        return UNDEFINED
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if low is not None and low == low else f"{value:.3f}"


def reading_options(
    labels: Path,
    *,
    task: str,
    target: Sequence[str] | None,
    head: str | None,
    exclusive: bool,
    time: str,
    event: str,
    classes: Sequence[str] | None,
    masks: str | None,
    mask_folder: Path | None,
    allow_missing: bool,
    seed: int,
) -> dict[str, Any]:
    """The arguments of the `read` of a task's file: those of the options that it takes.

    Raises:
        typer.BadParameter: no such task or head, or an option that the task needs is missing.
    """
    from voxelfm_hf.eval.tasks import load_task, task_names
    from voxelfm_hf.modeling.configuration_voxelfm_probe import HEADS_OF_TASK

    if task not in task_names():
        raise typer.BadParameter(f"--task is one of {', '.join(task_names())}, got {task}")
    if head and head not in HEADS_OF_TASK.get(task, ()):
        raise typer.BadParameter(f"--head of {task} is one of {', '.join(HEADS_OF_TASK.get(task, ()))}, got {head}")
    taken = inspect.signature(load_task(task).read).parameters
    if "targets" in taken and not target:
        raise typer.BadParameter(f"--task {task} needs --target")
    if task == "segmentation" and not classes:
        raise typer.BadParameter("--task segmentation needs --classes, the background first")
    given: dict[str, Any] = {"targets": target, "exclusive": exclusive, "time": time, "event": event, "head": head}
    given |= {"classes": classes, "masks": masks, "folder": mask_folder or labels.parent}
    always = {"split_seed": seed, "allow_missing": allow_missing}
    return {**always, **{name: value for name, value in given.items() if name in taken and value is not None}}


def card_facts(command: str, *, about: str, dataset: str, license: str | None) -> "ProbeFacts":
    """What the options of the card say, with the command as it was typed."""
    from voxelfm_hf.eval.probes.card import ProbeFacts

    dataset_id = dataset if dataset.count("/") == 1 else None
    return ProbeFacts(about=about, dataset=dataset, dataset_id=dataset_id, license=license, command=_typed(command))


def _typed(command: str) -> str:
    """The command as it was typed, without the folders of this machine; empty when it was not typed."""
    if command not in sys.argv:
        return ""
    words = sys.argv[sys.argv.index(command) :]
    return shlex.join(["voxelfm", *(Path(word).name if word.startswith(("/", ".", "~")) else word for word in words)])
