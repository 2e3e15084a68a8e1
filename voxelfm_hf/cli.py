"""The `voxelfm` command. Every subcommand parses, calls one function and prints.

Exit codes: 0 all done, 1 a programming error (with a traceback), 2 bad input or options, 3 part of a batch failed.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from voxelfm_hf import __version__
from voxelfm_hf.volumes.errors import ScanError, VoxelFMError

app = typer.Typer(
    name="voxelfm",
    help="VoxelFM: features of CT scans from a 3D foundation model, for light probes on top.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
errors = Console(stderr=True)

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model folder or Hub id; by default the small model inside the package."),
]
AssumeHU = Annotated[bool, typer.Option("--assume-hu", help="Take the values as HU even if they do not look like it.")]
Series = Annotated[int | None, typer.Option(help="Series of a DICOM folder, by the number that `voxelfm info` lists.")]
Spacing = Annotated[
    str | None, typer.Option(help="Voxel size z,y,x in mm of .npy files that have no sidecar, for example 2.5,0.7,0.7.")
]

EXIT_BAD_INPUT = 2
EXIT_PARTLY_FAILED = 3
FAILURES_SHOWN = 20


def main() -> None:
    """Runs the command; errors a user can fix are one sentence on stderr and exit code 2."""
    try:
        app()
    except VoxelFMError as error:
        errors.print(f"[bold red]voxelfm:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT)


def _plain(text: object) -> str:
    """Text with its square brackets kept from being read as markup."""
    from rich.markup import escape

    return escape(str(text))


def _parse_spacing(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise ScanError(f"--spacing takes three numbers z,y,x in mm, for example 2.5,0.7,0.7, got {text}") from None
    return z, y, x


def _model_or_default(model: str | None) -> str:
    from voxelfm_hf.hub import embedded_model

    return str(embedded_model()) if model is None else model


def _quiet_libraries() -> None:
    """Loading bars of transformers say nothing a user of the command needs."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _progress(total: int, what: str):
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


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


@app.command()
def info(
    scans: Annotated[list[Path], typer.Argument(help="Scan files or DICOM folders.", metavar="SCAN…")],
    series: Series = None,
    assume_hu: AssumeHU = False,
    spacing: Spacing = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a scan and line.")] = False,
) -> None:
    """What a file is: geometry, HU range, orientation, and what was repaired or assumed.

    Example: voxelfm info chest.nii.gz dicom_folder/
    """
    from voxelfm_hf.scan_facts import scan_facts

    failed = 0
    for path in scans:
        try:
            facts = scan_facts(path, series=series, assume_hu=assume_hu, spacing=_parse_spacing(spacing))
        except ScanError as error:
            failed += 1
            if as_json:
                print(json.dumps({"scan": str(path), "error": str(error)}))
            else:
                errors.print(f"[bold red]voxelfm:[/] {_plain(error)}", highlight=False, soft_wrap=True)
            continue
        if as_json:
            print(json.dumps({"scan": str(path), **facts}))
        else:
            _print_facts(path, facts)
    if failed:
        raise typer.Exit(EXIT_BAD_INPUT if failed == len(scans) else EXIT_PARTLY_FAILED)


def _print_facts(path: Path, facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=_plain(path), title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, value in facts.items():
        if isinstance(value, list):
            lines = [" x ".join(f"{v:g}" for v in value)] if value and not isinstance(value[0], str) else value
        else:
            lines = [f"{value:g}" if isinstance(value, float) else str(value)]
        for index, line in enumerate(lines or ["none"]):
            table.add_row("" if index else name.replace("_", " "), _plain(line))
    console.print(table)


@app.command()
def embed(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Scans, folders to search for scans, or CSV lists (path, id).", metavar="[INPUT…]"),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Feature store: a folder, new or made by the same settings.")
    ] = ...,  # type: ignore[assignment]
    model: ModelOption = None,
    patches: Annotated[bool, typer.Option("--patches", help="Also keep the features of every patch.")] = False,
    max_patches: Annotated[int | None, typer.Option(min=1, help="Patch budget a scan; more detail, more time.")] = None,
    pad: Annotated[bool, typer.Option("--pad", help="Pad scans thinner than one patch by their edge values.")] = False,
    regions: Annotated[
        Path | None,
        typer.Option(help="CSV of cubes to embed in place of whole scans: scan,x,y,z,edge_mm[,id], LPS mm."),
    ] = None,
    region_size: Annotated[
        int | None, typer.Option(min=1, help="Voxels along a region's edge; by default the model's training crop.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 where the hardware computes in it), float32, bfloat16, float16.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read ahead; by default by the cores.")
    ] = None,
    assume_hu: AssumeHU = False,
    spacing: Spacing = None,
) -> None:
    """Features of scans into a store; a rerun adds only what is missing.

    Scans that cannot be read are listed in STORE/failures.csv while the rest goes on; the exit code is then 3.

    Example: voxelfm embed scans/ --out features

    Example: accelerate launch -m voxelfm_hf.cli embed scans/ --out features --model user/voxelfm
    """
    from voxelfm_hf.features import EmbedOptions, Task, embed_scans
    from voxelfm_hf.read_ahead import default_workers
    from voxelfm_hf.scan_list import list_scans, read_regions

    if not inputs and regions is None:
        raise typer.BadParameter("name scans, folders or a CSV list, or --regions")
    _quiet_libraries()
    scans = list_scans(inputs or [])
    if regions is None:
        tasks = [Task(scan) for scan in scans]
    else:
        tasks = [Task(scan, tuple(cubes)) for scan, cubes in read_regions(regions, scans).items()]
    options = EmbedOptions(
        patches=patches,
        max_patches=max_patches,
        pad=pad,
        region_size=region_size,
        dtype=dtype,
        workers=default_workers(len(tasks)) if workers is None else workers,
        assume_hu=assume_hu,
        spacing=_parse_spacing(spacing),
    )
    progress = _progress(len(tasks), "embedding")
    with progress:
        summary = embed_scans(
            tasks,
            _model_or_default(model),
            out,
            options,
            on_start=lambda total: progress.update(progress.task_ids[0], total=total),
            on_scan=lambda _: _advance(progress, "scans/s"),
        )
    console.print(
        f"{summary.added} added, {summary.present} there before, {len(summary.failures)} failed: {_plain(out)}",
        highlight=False,
    )
    _report_failures(summary.failures, out / "failures.csv")


def _advance(progress, unit: str) -> None:
    task = progress.tasks[0]
    progress.advance(task.id)
    rate = task.completed / max(task.elapsed or 0, 1e-9)
    progress.update(task.id, rate=f"{rate:.2g} {unit}")


def _report_failures(failures: dict[str, str], where: Path) -> None:
    if not failures:
        return
    for reason in list(failures.values())[:FAILURES_SHOWN]:
        errors.print(f"[red]failed:[/] {_plain(reason)}", highlight=False, soft_wrap=True)
    if len(failures) > FAILURES_SHOWN:
        errors.print(f"and {len(failures) - FAILURES_SHOWN} more, all in {_plain(where)}", highlight=False)
    raise typer.Exit(EXIT_PARTLY_FAILED)


@app.command()
def picture(
    scan: Annotated[Path, typer.Argument(help="Scan file or DICOM folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")],
    model: ModelOption = None,
    features: Annotated[
        bool, typer.Option("--features/--no-features", help="Add the principal components of patch features as colour.")
    ] = True,
    max_patches: Annotated[int | None, typer.Option(min=1, help="Patch budget of the features.")] = None,
    pad: Annotated[bool, typer.Option("--pad", help="Pad scans thinner than one patch by their edge values.")] = False,
    series: Series = None,
    assume_hu: AssumeHU = False,
    spacing: Spacing = None,
) -> None:
    """Axial, coronal and sagittal planes in lung, soft-tissue and bone windows, and patch features as colour.

    Radiological view: head up, patient's right on the left of the picture.

    Example: voxelfm picture chest.nii.gz --out chest.png
    """
    from voxelfm_hf.pictures import save_picture
    from voxelfm_hf.volumes import read_volume

    volume = read_volume(scan, series=series, assume_hu=assume_hu, spacing=_parse_spacing(spacing))
    layers: dict[str, Any] = {}
    if features:
        from voxelfm_hf.features import embed_volume
        from voxelfm_hf.hub import load

        _quiet_libraries()
        network, processor = load(_model_or_default(model))
        processor.max_patches = max_patches or processor.max_patches
        processor.pad_thin = pad
        try:
            grid, geometry = embed_volume(network, processor, volume)
        except ValueError as error:
            raise ScanError(f"{scan}: {error}; or draw it with --no-features") from None
        layers = {"patch_features": grid, "patch_box": (geometry.region_start, geometry.region_stop)}
    save_picture(volume, out, **layers)
    console.print(f"{_plain(out)}", highlight=False, soft_wrap=True)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Published training checkpoint (.pth).", metavar="CHECKPOINT")],
    config: Annotated[Path, typer.Option(help="The config.yaml published beside it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write, new or empty.")],
) -> None:
    """A published checkpoint as a folder for `from_pretrained`; nothing in it is unpickled.

    Example: voxelfm convert 99999.pth --config config.yaml --out voxelfm-base
    """
    from voxelfm_hf.convert import convert_checkpoint

    _quiet_libraries()
    folder = convert_checkpoint(checkpoint, config, out)
    console.print(f"{_plain(folder)}: AutoModel.from_pretrained loads it", highlight=False, soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Which synthetic patient.")] = 0,
) -> None:
    """The main job on a synthetic CT: written as NIfTI and DICOM, embedded, compared, drawn.

    Example: voxelfm demo --out demo
    """
    from voxelfm_hf.demo import run_demo

    _quiet_libraries()
    run_demo(out, seed=seed, say=lambda text: console.print(text, highlight=False, soft_wrap=True))


if __name__ == "__main__":
    main()
