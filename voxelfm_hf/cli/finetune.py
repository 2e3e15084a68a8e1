"""`voxelfm finetune`: the backbone trained together with the head of a probe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from voxelfm_hf.cli.app import ModelOption, app, console, errors, plain, quiet_libraries
from voxelfm_hf.cli.task import (
    Classes,
    Event,
    Exclusive,
    MaskFolder,
    Masks,
    Seed,
    Target,
    Time,
    reading_options,
)


@app.command()
def finetune(
    labels: Annotated[
        Path, typer.Option("--labels", "-l", help="CSV or Parquet: an id column and one column a target.")
    ],
    task: Annotated[str, typer.Option(help="classification, regression, survival, localization or segmentation.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the result; an interrupted run goes on there.")],
    inputs: Annotated[
        list[Path] | None, typer.Argument(help="Scans, folders or CSV lists, as for embed.", metavar="INPUT…")
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="CSV of cubes (scan, x, y, z, edge_mm) in place of whole scans.")
    ] = None,
    model: ModelOption = "tiny",
    mode: Annotated[str, typer.Option(help="lora, last_1, last_2, … (blocks), or full.")] = "lora",
    target: Target = None,
    head: Annotated[str | None, typer.Option(help="linear, mlp or pooler (over patches).")] = None,
    exclusive: Exclusive = False,
    time: Time = "time",
    event: Event = "event",
    classes: Classes = None,
    masks: Masks = None,
    mask_folder: MaskFolder = None,
    id_column: Annotated[str | None, typer.Option(help="Column that names the scan as the inputs do.")] = None,
    max_patches: Annotated[int | None, typer.Option(min=1, help="Patch budget of a whole scan.")] = None,
    region_size: Annotated[int | None, typer.Option(min=1, help="Voxels along a region's edge.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="How to train, FIELD=VALUE, may be repeated: epochs=10, lora.rank=4, …"),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Fine-tunes a backbone for a task: LoRA adapters, the last blocks, or all of it, from the frozen probe on.

    Splits, missing labels, class balance, calibration and scores are those of `voxelfm probe`; the best epoch is chosen
    on validation scans. OUT gets adapter/ (a few MB) or model/, and probe/: `voxelfm predict SCAN --probe OUT/probe
    --model OUT/adapter`. Comparisons with seeds and intervals: a benchmark recipe with a line `fine_tuning:`.

    Example: voxelfm finetune scans/ --labels labels.csv --task classification --target malignant --out tuned

    Example: accelerate launch -m voxelfm_hf.cli finetune scans/ --labels labels.csv --task survival --out tuned
    """
    from voxelfm_hf.eval.finetune_run import finetune_and_save
    from voxelfm_hf.eval.labels import read_labels
    from voxelfm_hf.features import EmbedOptions, Task
    from voxelfm_hf.scan_list import list_scans, read_regions
    from voxelfm_hf.training.finetune.settings import change_settings

    if task in ("retrieval", "report"):
        raise typer.BadParameter(f"--task {task} has no labels to fine-tune on")
    if not inputs and regions is None:
        raise typer.BadParameter("name scans, folders or a CSV list, or --regions")
    read = reading_options(
        labels,
        task=task,
        target=target,
        head=head,
        exclusive=exclusive,
        time=time,
        event=event,
        classes=classes,
        masks=masks,
        mask_folder=mask_folder,
        seed=seed,
    )
    quiet_libraries()
    scans = list_scans(inputs or [])
    tasks = [Task(scan) for scan in scans]
    if regions is not None:
        tasks = [Task(scan, tuple(cubes)) for scan, cubes in read_regions(regions, scans).items()]

    def show(entry: dict[str, Any]) -> None:
        loss = "" if entry["loss"] is None else f"  loss {entry['loss']:.4f}"
        score = "" if entry["score"] is None else f"  validation {entry['score']:.4f}"
        errors.print(f"epoch {entry['epoch']}{loss}{score}", highlight=False)

    finished = finetune_and_save(
        tasks,
        read_labels(labels, id_column=id_column),
        out,
        model=model,
        task=task,
        read=read,
        mode=mode,
        head=head,
        seed=seed,
        settings=change_settings(change or []),
        options=EmbedOptions(max_patches=max_patches, region_size=region_size),
        on_epoch=show,
    )
    if finished is None:
        return
    for name, report in finished.reports.items():
        for metric, estimate in report["estimates"].items():
            before = finished.frozen[name]["estimates"].get(metric, {})
            console.print(f"{plain(name)}  {metric}  frozen {_text(before)}  {mode} {_text(estimate)}", highlight=False)
    cost = finished.cost
    console.print(
        f"{cost.trainable_parameters:,} parameters trained, {cost.seconds:.0f} s, {cost.peak_memory_mb:.0f} MB at most",
        highlight=False,
    )
    console.print(
        f"voxelfm predict SCAN --probe {plain(finished.probe)} --model {plain(finished.backbone)}",
        highlight=False,
        soft_wrap=True,
    )


def _text(estimate: dict[str, Any]) -> str:
    value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
    if value is None or value != value:
        return "undefined"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if low is not None and low == low else f"{value:.3f}"
