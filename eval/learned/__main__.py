"""The command of the comparison: `python -m voxelfm_hf.eval.learned --help`."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from voxelfm_hf.command import typer_main
from voxelfm_hf.eval.learned.comparison import CURVE_SEEDS, QUICK, Settings, compare, curve, curve_models
from voxelfm_hf.eval.learned.results import write_curve, write_results
from voxelfm_hf.volumes.errors import ModelError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    models: Annotated[list[str], typer.Argument(help="A model folder; with --curve a run folder or STEP=FOLDER ...")],
    ct: Annotated[Path, typer.Option(help="Folder with lidc/ and openkbp/, each with a labels.csv.")],
    out: Annotated[Path, typer.Option(help="Results; phantoms and features stay there for the next run.")],
    quick: Annotated[bool, typer.Option("--quick", help="300 phantoms and 2 seeds in place of 3000 and 5.")] = False,
    with_curve: Annotated[bool, typer.Option("--curve", help="Score checkpoints against steps.")] = False,
    region_size: Annotated[int | None, typer.Option(help="Edge of a cube in voxels; the training crop.")] = None,
    splits: Annotated[str, typer.Option(help="Splits of patients that pre-training has not seen.")] = "val,test",
) -> None:
    """Compares frozen features of a model with those of its untrained twin and with intensity histograms."""
    from transformers.utils.logging import disable_progress_bar

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    disable_progress_bar()
    base = QUICK if quick else Settings()
    settings = Settings(
        phantoms=base.phantoms, seeds=base.seeds, splits=tuple(splits.split(",")), region_size=region_size
    )
    if with_curve:
        settings = replace(settings, seeds=min(settings.seeds, CURVE_SEEDS))
        typer.echo(write_curve(curve(curve_models(models), ct, out, settings), out))
    elif len(models) > 1:
        raise ModelError("one model is compared at a time; several checkpoints make a --curve")
    else:
        typer.echo(write_results(compare(models[0], ct, out, settings), out))


sys.exit(typer_main(app, "python -m voxelfm_hf.eval.learned")())
