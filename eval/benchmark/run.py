"""From a recipe file to results: what `voxelfm benchmark` calls."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from voxelfm_hf.eval.benchmark.card import write_report
from voxelfm_hf.eval.benchmark.grid import run_benchmark
from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe, read_recipe
from voxelfm_hf.eval.benchmark.results import Results, score_benchmark
from voxelfm_hf.eval.benchmark.tables import main_table, write_benchmark
from voxelfm_hf.eval.datasets import BenchmarkData, load_dataset
from voxelfm_hf.failures import FAILURES_FILE, FAILURES_SHOWN
from voxelfm_hf.progress import Progress, unwatched
from voxelfm_hf.recipes import find_recipe
from voxelfm_hf.volumes.errors import RecipeError

MAX_WITH_INTERVALS = 3


@dataclass(frozen=True)
class Outcome:
    """What the command shows.

    Attributes:
        tables: rich tables of the main metric, one a task.
        failures: Sentences.
    """

    tables: Sequence[Any]
    failures: Sequence[str]


def run_recipe(
    name: str | Path,
    *,
    data: Path | None,
    out: Path,
    quick: bool = False,
    progress: Progress = unwatched,
) -> Outcome:
    """Runs a recipe, or goes on with an interrupted run of it.

    Args:
        name: Path or name of the recipe.
        data: Folder of the data set; the recipe's by default.
        out: Folder of the results.
        quick: The recipe's short form.
        progress: Told what is done.
    """
    if _is_of_reports(name):
        from voxelfm_hf.eval.reports import benchmark as report_benchmark

        return report_benchmark.run(name, data, out, quick)
    recipe = read_recipe(name, quick=quick)
    run = run_benchmark(recipe, read_data(recipe, data), out, progress=progress)
    progress("scores", 0, 1)
    results = score_benchmark(run)
    write_benchmark(run, results, out)
    typed = ["voxelfm benchmark", Path(name).name, *(["--data DATA"] if data else []), *(["--quick"] if quick else [])]
    write_report(out, run.data, command=" ".join([*typed, "--out OUT"]))
    progress("scores", 1, 1)
    failures = [f"{' '.join(part for part in key if part)}: {reason}" for key, reason in run.failures.items()]
    if len(failures) > FAILURES_SHOWN:
        failures = [*failures[:FAILURES_SHOWN], f"{len(failures) - FAILURES_SHOWN} more in {out / FAILURES_FILE}"]
    return Outcome(_tables(recipe, results), failures)


def read_data(recipe: BenchmarkRecipe, folder: Path | None) -> BenchmarkData:
    """The data set of a recipe.

    Args:
        recipe: The recipe.
        folder: Where it lies; the recipe's `folder` by default.

    Raises:
        RecipeError: no folder, an unknown data set or option.
        VoxelFMError: files that are missing or cannot be read.
    """
    module = load_dataset(recipe.data)
    if folder is None and not recipe.folder:
        raise RecipeError(f"the data set {recipe.data} needs --data FOLDER ({module.ABOUT.where}).")
    known = [name for name in inspect.signature(module.read).parameters if name != "folder"]
    for name in recipe.data_options:
        if name not in known:
            raise RecipeError(f"data_options: {recipe.data} has no option {name}; it has {', '.join(known) or 'none'}.")
    return module.read(Path(folder or recipe.folder), **recipe.data_options)


def _is_of_reports(name: str | Path) -> bool:
    """Whether the recipe is one of report generation, which has a runner of its own."""
    try:
        values = yaml.safe_load(find_recipe(name, package="voxelfm_hf.eval")[1])
    except yaml.YAMLError:
        return False  # said properly by `read_recipe`
    return isinstance(values, dict) and "reports" in values


def _tables(recipe: BenchmarkRecipe, results: Results) -> list[Any]:
    """The main metric of every task for the terminal."""
    from rich.table import Table

    tables = []
    for task in recipe.tasks:
        rows = [row for row in results.rows if row["task"] == task.title and row["main"]]
        if not rows:
            continue
        # Intervals of many targets fit no terminal; they are in results.md.
        few = len({row["target"] for row in rows}) <= MAX_WITH_INTERVALS
        header, body = main_table(rows, intervals=few)
        table = Table(title=f"{task.title}: {rows[0]['metric']}")
        for column in header:
            table.add_column(column, overflow="fold")
        for line in body:
            table.add_row(*line)
        tables.append(table)
    return tables
