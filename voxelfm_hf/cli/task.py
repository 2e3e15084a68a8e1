"""What the commands that fit a probe share: options of task and card, what a task's reader gets, scores."""

import inspect
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxelfm_hf.eval.tasks import task_names

if TYPE_CHECKING:
    from voxelfm_hf.eval.probes.card import ProbeFacts

AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Leave labels without features out.")]
Seed = Annotated[int, typer.Option(help="Seed of the splits (where none are given) and of the fit.")]

UNDEFINED = "undefined"
# Options of `reading_options` whose argument has a name of its own.
OTHER_NAMES = {"mask_folder": "folder"}


def task_option(*, without: Sequence[str] = ()) -> Any:
    """The option --task, which takes the tasks there are without some; others are refused before torch is imported."""
    names = [name for name in task_names() if name not in without]

    def known(task: str) -> str:
        if task not in names:
            raise typer.BadParameter(f"it is one of {', '.join(names)}, got {task}")
        return task

    return typer.Option(help=f"{', '.join(names)}.", callback=known)


def estimate_text(estimate: dict[str, Any]) -> str:
    """A score with its interval, such as "0.812 [0.700, 0.900]"."""
    value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
    if value is None or value != value:
        return UNDEFINED
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if low is not None and low == low else f"{value:.3f}"


def reading_options(
    labels: Path,
    task: str,
    seed: int,
    head: Annotated[
        str | None,
        typer.Option(
            help="linear, mlp, pooler (over patches), knn (classification, `voxelfm probe` only); segmentation: "
            "subpatch, decoder; localization: position. The first of a task is its default."
        ),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Label column, may be repeated; localization: x, y and z of each point.")
    ] = None,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="Classification: one column of class names, exactly one holds.")
    ] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a class, repeated for each: of the values of a segmentation's map, the background first, or "
            "of the column of --exclusive, whose order it sets."
        ),
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(help="Regression: unit of the target, repeated for each target; survival: unit of the time."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Survival: column of the follow-up time; by default time.")] = None,
    event: Annotated[
        str | None, typer.Option(help="Survival: column with 1 for an event, 0 for censored; by default event.")
    ] = None,
    horizon: Annotated[
        list[float] | None,
        typer.Option(help="Survival: time at which an AUROC is given too, in the unit of the time; may be repeated."),
    ] = None,
    masks: Annotated[str | None, typer.Option(help="Segmentation: column with the path of the label map.")] = None,
    mask_folder: Annotated[
        str | None,
        typer.Option(help="Segmentation: where relative paths of maps start; by default at the labels.", metavar="DIR"),
    ] = None,
    patient_column: Annotated[
        str | None,
        typer.Option(help="Column that names the patient, whose scans stay in one split; usual names are recognised."),
    ] = None,
    allow_missing: AllowMissing = False,
) -> dict[str, Any]:
    """How a task reads its labels: arguments of the `read` of its file.

    An option is called as the argument of `read` or `open_data` that it sets, or by its singular where it may be
    repeated; defaults stand there.

    Raises:
        typer.BadParameter: no such head, or an option that the task does not take or lacks, that is empty, or
            that names something twice.
    """
    given = {name: value for name, value in locals().items() if name not in ("labels", "task", "seed")}
    # No truth value: an empty text, as of a shell variable that is not set, is given too.
    options = {name: None if value is False or value == [] else value for name, value in given.items()}
    for option, value in options.items():
        _check_texts(option, value if isinstance(value, list) else [value])

    from voxelfm_hf.eval.tasks import load_task
    from voxelfm_hf.eval.tasks.data import open_data
    from voxelfm_hf.modeling.configuration_voxelfm_probe import HEADS_OF_TASK

    heads = HEADS_OF_TASK.get(task, ())
    if head and head not in heads:
        known = f"--head of {task} is one of {', '.join(heads)}, got {head}"
        raise typer.BadParameter(known if heads else f"--task {task} takes no --head")
    taken = {**inspect.signature(open_data).parameters, **inspect.signature(load_task(task).read).parameters}
    read: dict[str, Any] = {"split_seed": seed, **({"folder": labels.parent} if "folder" in taken else {})}
    for option, value in options.items():
        names = (option, f"{option}s", OTHER_NAMES.get(option, option))
        argument = next((name for name in names if name in taken), None)
        if argument is None:
            if value is not None:
                raise typer.BadParameter(f"--task {task} takes no {_typed_option(option)}")
        elif value is not None:
            read[argument] = value
        elif taken[argument].default is inspect.Parameter.empty:
            raise typer.BadParameter(f"--task {task} needs {_typed_option(option)}")
    return read


def _typed_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_texts(option: str, values: list[Any]) -> None:
    """Refuses an empty text, and a value given twice where each names something else."""
    if any(isinstance(value, str) and not value.strip() for value in values):
        raise typer.BadParameter(f"{_typed_option(option)} is empty: name something or leave it out")
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None and option != "unit":
        raise typer.BadParameter(f"{_typed_option(option)} names {repeated} twice")


def card_facts(
    context: typer.Context,
    about: Annotated[
        str,
        typer.Option(help="For the card: what scans and labels are, where they come from.", rich_help_panel="Card"),
    ] = "",
    dataset: Annotated[
        str, typer.Option(help="For the card: name of the data set, or its Hub id.", rich_help_panel="Card")
    ] = "",
    license: Annotated[
        str | None,
        typer.Option(help="For the card: licence of the probe, as the Hub calls it.", rich_help_panel="Card"),
    ] = None,
) -> "ProbeFacts":
    """What the options of the card say, with the command as it was typed."""
    from voxelfm_hf.eval.probes.card import ProbeFacts

    dataset_id = dataset if dataset.count("/") == 1 else None
    command = _typed(context.info_name or "")
    return ProbeFacts(about=about, dataset=dataset, dataset_id=dataset_id, license=license, command=command)


def _typed(command: str) -> str:
    """The command as it was typed, without the folders of this machine; empty when it was not typed."""
    if command not in sys.argv:
        return ""
    words = sys.argv[sys.argv.index(command) :]
    return shlex.join(["voxelfm", *(Path(word).name if word.startswith(("/", ".", "~")) else word for word in words)])
