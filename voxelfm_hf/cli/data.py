"""`voxelfm prepare`, `describe`, `label` and `convert`: data sets, reports and checkpoints."""

from pathlib import Path
from typing import Annotated, Any

import typer

from voxelfm_hf.cli.app import advance, app, console, errors, plain, progress_bar, quiet_libraries, report_failures
from voxelfm_hf.cli.options import AssumeHU, ModelOption, new_folder, scan_options
from voxelfm_hf.cli.shared_options import with_options
from voxelfm_hf.failures import FAILURES_FILE
from voxelfm_hf.hub import EMBEDDED


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(help="Scans, folders, CSV lists (path, patient), or a Hub data set.", metavar="SOURCE"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the prepared data set.", file_okay=False)],
    name: Annotated[str | None, typer.Option(help="Name of the source, kept with every scan.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence for the data set card, for example cc-by-4.0.")] = None,
    anonymous_ids: Annotated[
        bool, typer.Option("--anonymous-ids", help="Codes in place of ids, where file names hold people's names.")
    ] = False,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard in MB.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the global shuffle.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default as cores and memory allow.")] = None,
    assume_hu: AssumeHU = False,
) -> None:
    """Scans to Parquet shards for pre-training: checked, cropped to the body, isotropic, described in a card.

    Run it again to go on, to retry what failed or to add scans. Failures are listed in OUT/failures.csv (exit code 3).

    Example: voxelfm prepare scans/ --out shards --name my-hospital
    """
    from voxelfm_hf.data.prepare import prepare as prepare_scans

    progress = progress_bar(0, "preparing")
    with progress:
        summary = prepare_scans(
            sources if len(sources) > 1 else sources[0],
            out,
            name=name,
            license=license,
            anonymous_ids=anonymous_ids,
            shard_bytes=shard_mb * 1_000_000,
            seed=seed,
            workers=workers,
            assume_hu=assume_hu,
            progress=lambda done, total: advance(progress, "scans/s", done=done, total=total),
        )
    console.print(
        f"{summary.scans} scans ({summary.new} new) in {summary.shards} shards, {len(summary.duplicates)} repeated, "
        f"{len(summary.failed)} failed: {plain(out)}"
    )
    report_failures(summary.failed, out / FAILURES_FILE)


@app.command()
@with_options(opening=scan_options)
def describe(
    *,
    data: Annotated[
        Path, typer.Argument(help="Prepared shards, a feature store, or a folder of scans.", metavar="DATA")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where card, numbers and pictures go.", file_okay=False)
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Another data set: how far DATA lies from it.")] = None,
    model: ModelOption = EMBEDDED,
    max_scans: Annotated[int, typer.Option(min=2, help="At most so many scans a side are compared.")] = 500,
    opening: dict[str, Any],
) -> None:
    """What scans are: spacing, field of view, HU, body region, noise, duplicates; and how far they lie from others.

    With --against, the Fréchet distance of the features stands beside that between random halves of the other set:
    draws of one set are some distance apart too, more so the fewer the scans. All numbers are in OUT/description.json.

    Scans that cannot be read are listed in OUT/failures.csv while the rest goes on; the exit code is then 3.

    Example: voxelfm describe shards

    Example: voxelfm describe my_scans/ --against shards --out comparison
    """
    from voxelfm_hf.data.describe import describe as describe_data

    quiet_libraries()
    progress = progress_bar(0, "reading")
    failed: dict[str, str] = {}
    with progress:
        facts = describe_data(
            data,
            out=out,
            against=against,
            model=model if against else None,
            max_scans=max_scans,
            **opening,
            progress=lambda done, total: advance(progress, "scans/s", done=done, total=total),
            on_failure=failed.__setitem__,
        )
    console.print(f"card, description.json and pictures: {plain(out or data)}")
    if facts.get("distance"):
        _print_distance(facts["distance"])
    report_failures(failed, (out or data) / FAILURES_FILE)


def _print_distance(distance: dict[str, Any]) -> None:
    from rich.table import Table

    reference = plain(distance["against"])
    counts = f"{distance['scans']} scans against {distance['reference_scans']} of {reference}"
    farthest = ", ".join(entry["id"] for entry in distance["farthest"][:3])
    table = Table(title=counts, title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row("Fréchet distance", f"{distance['frechet']:.4g}")
    table.add_row(f"between halves of {reference}", f"{distance['frechet_within_reference']:.4g}")
    table.add_row("ratio (1 if alike)", f"{distance['frechet_ratio']:.2f}")
    table.add_row("beyond 95 % (5 % if alike)", f"{100 * distance['beyond_95']:.0f} % of the scans")
    table.add_row("farthest scans", plain(farthest))
    console.print(table, soft_wrap=False)


@app.command()
def label(
    reports: Annotated[Path, typer.Argument(help="CSV, TSV or Parquet of chest CT reports.", metavar="REPORTS")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write: id and one 0/1 column a finding.")],
    column: Annotated[
        list[str] | None, typer.Option(help="Column with the text, may be repeated; usual layouts are recognised.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column that names the scan; usual names are recognised, else rows are numbered.")
    ] = None,
) -> None:
    """The 18 findings of chest CT from report text, by rules that know negation.

    Example: voxelfm label reports.csv --column report_text --out findings.csv
    """
    from voxelfm_hf.eval.labeller.tables import label_csv

    summary = label_csv(reports, out, columns=column, id_column=id_column)
    console.print(f"{summary.reports} reports ({summary.empty} empty): {plain(out)}")
    if summary.numbered:
        every = summary.numbered == summary.reports
        which = "no report has an" if every else f"{summary.numbered} of {summary.reports} reports have no"
        where = f"column {plain(id_column)}" if id_column else "a column of a usual name"
        errors.print(
            f"note: {which} id in {where}, so row numbers are the{' ids' if every else 'ir ids'}; "
            "--id-column names the column with the ids",
            soft_wrap=True,
        )
    for finding, count in summary.positives.items():
        console.print(f"  {count:6d}  {finding}")


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Published training checkpoint (.pth).", metavar="CHECKPOINT", exists=True)
    ],
    config: Annotated[Path, typer.Option(help="The config.yaml published beside it.", exists=True)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write, new or empty.", callback=new_folder)],
) -> None:
    """A published checkpoint as a folder for `from_pretrained`; nothing in it is unpickled.

    Example: voxelfm convert 99999.pth --config config.yaml --out voxelfm-base
    """
    from voxelfm_hf.convert import convert_checkpoint

    quiet_libraries()
    folder = convert_checkpoint(checkpoint, config, out)
    console.print(f"{plain(folder)}: AutoModel.from_pretrained loads it")
