"""`voxelfm info`, `embed` and `picture`: from scan files to facts, features and pictures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxelfm_hf.cli.app import (
    advance,
    app,
    console,
    end_batch,
    plain,
    progress_bar,
    quiet_libraries,
    report_failures,
)
from voxelfm_hf.cli.options import (
    AsJson,
    MaxPatches,
    ModelOption,
    Pad,
    Series,
    scan_options,
    scan_tasks,
    size_options,
)
from voxelfm_hf.cli.shared_options import with_options
from voxelfm_hf.command import say_error
from voxelfm_hf.failures import FAILURES_FILE
from voxelfm_hf.hub import EMBEDDED
from voxelfm_hf.volumes.errors import ScanError

if TYPE_CHECKING:
    from voxelfm_hf.scan_list import Task


@app.command()
@with_options(opening=scan_options)
def info(
    *,
    scans: Annotated[list[Path], typer.Argument(help="Scan files or DICOM folders.", metavar="SCAN")],
    series: Series = None,
    opening: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """What a file is: geometry, HU range, orientation, and what was repaired or assumed.

    Example: voxelfm info chest.nii.gz dicom_folder/
    """
    from voxelfm_hf.volumes.facts import scan_facts

    failed = 0
    for path in scans:
        try:
            facts = scan_facts(path, series=series, **opening)
        except ScanError as error:
            failed += 1
            if as_json:
                print(json.dumps({"scan": str(path), "error": str(error)}))
            else:
                say_error(error)
            continue
        if as_json:
            print(json.dumps({"scan": str(path), **facts}))
        else:
            _print_facts(path, facts)
    end_batch(failed=failed, done=len(scans) - failed)


def _print_facts(path: Path, facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=plain(path), title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, value in facts.items():
        if isinstance(value, list):
            between = " x " if "_zyx" in name else ", "
            lines = [between.join(f"{v:g}" for v in value)] if value and not isinstance(value[0], str) else value
        else:
            lines = [f"{value:g}" if isinstance(value, float) else str(value)]
        for index, line in enumerate(lines or ["none"]):
            table.add_row("" if index else name.replace("_", " "), plain(line))
    console.print(table, soft_wrap=False)


@app.command()
@with_options(tasks=scan_tasks, sizes=size_options, opening=scan_options)
def embed(
    *,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Feature store: a folder, new or made by the same settings.", file_okay=False),
    ],
    model: ModelOption = EMBEDDED,
    patches: Annotated[bool, typer.Option("--patches", help="Also keep the features of every patch.")] = False,
    tasks: "list[Task]",
    sizes: dict[str, Any],
    voxel_mm: Annotated[
        float | None, typer.Option(help="Voxel size of every prepared scan; by default that of its finest axis.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Take whole scans in overlapping tiles of so many voxels, such as the training crop."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 where the hardware computes in it), float32, bfloat16, float16.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read ahead; by default up to four, with a GPU one a core.")
    ] = None,
    opening: dict[str, Any],
) -> None:
    """Features of scans into a store; a rerun adds only what is missing.

    Scans that cannot be read are listed in STORE/failures.csv while the rest goes on; the exit code is then 3. The list
    is the store's, not the run's: those of earlier runs stay in it until they are embedded.

    Example: voxelfm embed scans/ --out features

    Dense features for segmentation: voxelfm embed scans/ --out dense --patches --voxel-mm 2 --tile 40

    Example: accelerate launch -m voxelfm_hf.cli embed scans/ --out features --model user/voxelfm
    """
    import torch

    from voxelfm_hf.features import EmbedOptions, embed_scans
    from voxelfm_hf.read_ahead import default_readers

    quiet_libraries()
    options = EmbedOptions(
        patches=patches,
        voxel_mm=voxel_mm,
        tile=tile,
        dtype=dtype,
        workers=default_readers(len(tasks), on_gpu=torch.cuda.is_available()) if workers is None else workers,
        **sizes,
        **opening,
    )
    progress = progress_bar(len(tasks), "embedding")
    with progress:
        summary = embed_scans(
            tasks,
            model,
            out,
            options,
            on_start=lambda total: progress.update(progress.task_ids[0], total=total),
            on_scan=lambda _: advance(progress, "scans/s"),
        )
    console.print(
        f"{summary.added} added, {summary.present} there before, {len(summary.failures)} failed: {plain(out)}"
    )
    report_failures(summary.failures, out / FAILURES_FILE)


@app.command()
@with_options(opening=scan_options)
def picture(
    *,
    scan: Annotated[Path, typer.Argument(help="Scan file or DICOM folder.", metavar="SCAN")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")],
    model: ModelOption = EMBEDDED,
    features: Annotated[
        bool, typer.Option("--features/--no-features", help="Add the principal components of patch features as colour.")
    ] = True,
    max_patches: MaxPatches = None,
    pad: Pad = False,
    series: Series = None,
    opening: dict[str, Any],
) -> None:
    """Axial, coronal and sagittal planes in lung, soft-tissue and bone windows, and patch features as colour.

    Radiological view: head up, patient's right on the left of the picture.

    Example: voxelfm picture chest.nii.gz --out chest.png
    """
    from voxelfm_hf.pictures import save_picture
    from voxelfm_hf.volumes import read_volume

    volume = read_volume(scan, series=series, **opening)
    layers: dict[str, Any] = {}
    if features:
        from voxelfm_hf.features import EmbedOptions, embed_volume
        from voxelfm_hf.hub import load

        quiet_libraries()
        network, processor = load(model)
        EmbedOptions(max_patches=max_patches, pad=pad).set_up(processor)
        try:
            grid, geometry = embed_volume(network, processor, volume)
        except ValueError as error:
            raise ScanError(f"{scan}: {error}; or draw it with --no-features") from None
        layers = {"patch_features": grid, "patch_box": (geometry.region_start, geometry.region_stop)}
    save_picture(volume, out, **layers)
    console.print(f"{plain(out)}")
