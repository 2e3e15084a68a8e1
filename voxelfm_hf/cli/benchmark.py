"""`voxelfm benchmark`: encoders x tasks x label fractions x seeds from a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from voxelfm_hf.cli.app import app, bar_of_parts, console, plain, quiet_libraries, say_failed
from voxelfm_hf.command import EXIT_PARTLY_FAILED


@app.command()
def benchmark(
    recipe: Annotated[str, typer.Argument(help="Recipe: a YAML file or the name of a packaged one.", metavar="RECIPE")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the results; an interrupted one is resumed.", file_okay=False)
    ],
    data: Annotated[Path | None, typer.Option(help="Folder of the data set, in place of the recipe's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The recipe's own short form: fewer seeds and scans.")] = False,
) -> None:
    """Compares encoders on the same scans, splits, probes and seeds, with intervals and paired tests.

    Writes results.csv, results.md, results.json, comparisons.csv, plots and the predictions of every probe. Finished
    parts are kept: run the same command again after an interruption. Packaged recipes: lidc, lidc_finetuning, openkbp,
    openkbp_centres, phantoms, phantom_lesions, reports, and one for each published data set.

    Example: voxelfm benchmark lidc --data ct --quick --out benchmark-lidc
    """
    from voxelfm_hf.eval.benchmark.run import run_recipe

    quiet_libraries()
    with bar_of_parts("steps/s") as progress:
        finished = run_recipe(recipe, data=data, out=out, quick=quick, progress=progress)
    for table in finished.tables:
        console.print(table, soft_wrap=False)
    console.print(f"{plain(out)}/results.md")
    for sentence in finished.failures:
        say_failed(sentence)
    if finished.failures:
        raise typer.Exit(EXIT_PARTLY_FAILED)
