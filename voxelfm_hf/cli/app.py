"""What the subcommands of `voxelfm` share: the app, consoles, progress and the report of failures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from voxelfm_hf import __version__
from voxelfm_hf.command import EXIT_BAD_INPUT, EXIT_PARTLY_FAILED
from voxelfm_hf.failures import FAILURES_FILE, FAILURES_SHOWN, alike
from voxelfm_hf.progress import Progress

app = typer.Typer(
    name="voxelfm",
    help="VoxelFM: features of CT scans from a 3D foundation model, for light probes on top.",
    epilog="Exit codes: 0 all done, 2 bad input or options, 3 part of a batch failed (the rest is done).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Paths and sentences stay on one line, for those who copy them.
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False)


def plain(text: object) -> str:
    """Text with its square brackets kept from being read as markup."""
    from rich.markup import escape

    return escape(str(text))


def quiet_libraries() -> None:
    """Loading bars of transformers say nothing a user of the command needs."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def progress_bar(total: int, what: str):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=errors,
        transient=False,
        disable=not errors.is_terminal,
    )
    progress.add_task(what, total=total, rate="")
    return progress


def advance(progress, unit: str, *, done: int | None = None, total: int | None = None) -> None:
    """One step further, or to `done` of `total`, with the rate so far."""
    task = progress.tasks[0]
    completed = task.completed + 1 if done is None else done
    rate = completed / max(task.elapsed or 0, 1e-9)
    said = f"{rate:.2g}" if rate < 100 else f"{rate:.0f}"
    progress.update(task.id, completed=completed, total=total or task.total, rate=f"{said} {unit}")


@contextmanager
def bar_of_parts(unit: str) -> Iterator[Progress]:
    """A bar for work of several parts, each with a rate and a time left of its own; seen once the first part begins."""
    bar = progress_bar(1, "")
    task = bar.tasks[0]

    def progress(part: str, done: int, total: int) -> None:
        if done == 0:
            bar.reset(task.id, total=total, description=plain(part), rate="")
        else:
            bar.update(task.id, description=plain(part))
            advance(bar, unit, done=done, total=total)
        bar.start()

    try:
        yield progress
    finally:
        bar.stop()


def say_failed(reason: str) -> None:
    """One line for a scan of a batch that failed."""
    errors.print(f"[red]failed:[/] {plain(reason)}", soft_wrap=True)


def end_batch(*, failed: int, done: int, out: Path | None = None) -> None:
    """Ends the command: 3 when part of a batch failed, 2 when all of it did; `out` is the folder that lists them."""
    if failed:
        if out is not None:
            errors.print(f"{failed} failed, listed in {plain(out / FAILURES_FILE)}", soft_wrap=True)
        raise typer.Exit(EXIT_PARTLY_FAILED if done else EXIT_BAD_INPUT)


def report_failures(failures: dict[str, str], where: Path) -> None:
    """Says failures, those of one reason once, and where all of them are listed, and ends the command with 3."""
    if not failures:
        return
    for first, more in alike(failures)[:FAILURES_SHOWN]:
        say_failed(first)
        if more:
            errors.print(f"        and {more} more for the same reason", soft_wrap=True)
    errors.print(f"all listed in {plain(where)}", soft_wrap=True)
    raise typer.Exit(EXIT_PARTLY_FAILED)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit
