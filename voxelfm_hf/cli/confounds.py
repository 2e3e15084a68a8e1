"""`voxelfm confounds`: what the features of a store know of the scanner."""

from pathlib import Path
from typing import Annotated

import typer

from voxelfm_hf.cli.app import app, console, plain, quiet_libraries
from voxelfm_hf.cli.options import IdColumn
from voxelfm_hf.cli.task import AllowMissing


@app.command()
def confounds(
    store: Annotated[
        Path, typer.Argument(help="Feature store of any encoder.", metavar="STORE", exists=True, file_okay=False)
    ],
    labels: Annotated[
        Path,
        typer.Argument(
            help="CSV or Parquet: an id column, patients, acquisition, targets; with --dataset its folder.",
            metavar="LABELS",
            exists=True,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the table and the figure.", file_okay=False)],
    acquisition: Annotated[
        str | None,
        typer.Option(help="Columns that say how a scan was made, separated by commas: numbers or words."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set of the benchmark whose labels and acquisition columns are taken.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Column with 0 and 1, or numbers, of a task; may be repeated.")
    ] = None,
    id_column: IdColumn = None,
    patient_column: Annotated[
        str | None, typer.Option(help="Column that tells patients apart; by default patient_id or alike.")
    ] = None,
    allow_missing: AllowMissing = False,
    replicates: Annotated[int, typer.Option(help="Bootstrap replicates of the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of folds, splits and probes.")] = 0,
) -> None:
    """How well features tell spacing, kernel or scanner, and what tasks and retrieval are without that.

    The acquisition subspace is erased linearly (LEACE), fitted on training patients alone.

    Example: voxelfm confounds features labels.csv --acquisition spacing_z,kernel --target malignant --out confounds

    Example: voxelfm confounds benchmark/stores/tiny-76bc9030 ct --dataset lidc --target malignant --out confounds
    """
    if dataset is not None and id_column is not None:
        raise typer.BadParameter("--id-column is for a table: the data set of --dataset names its scans itself")

    from voxelfm_hf.eval.confounds.check import measure_confounds
    from voxelfm_hf.eval.confounds.results import write_confounds
    from voxelfm_hf.eval.datasets import load_dataset
    from voxelfm_hf.eval.labels import read_labels
    from voxelfm_hf.store import FeatureStore

    quiet_libraries()
    columns = [name.strip() for name in (acquisition or "").split(",") if name.strip()]
    if dataset is None:
        table = read_labels(labels, id_column=id_column, patient_column=patient_column)
    else:
        data = load_dataset(dataset).read(labels)
        table, columns = data.labels, columns or list(data.acquisition)
    if not columns:
        raise typer.BadParameter("--acquisition names at least one column")
    opened = FeatureStore(store)
    found = measure_confounds(
        opened,
        table,
        acquisition=columns,
        targets=target or [],
        patient_column=patient_column,
        allow_missing=allow_missing,
        replicates=replicates,
        seed=seed,
    )
    path = write_confounds(out, found, encoder=str(opened.run.get("model") or store.name), run=opened.run)
    console.print(path.read_text(encoding="utf-8"), markup=False)
    console.print(f"{plain(out)}/confounds.png")
