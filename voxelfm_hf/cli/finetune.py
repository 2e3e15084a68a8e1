"""`voxelfm finetune`: the backbone trained together with the head of a probe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxelfm_hf.cli.app import app, bar_of_parts, console, errors, plain, quiet_libraries
from voxelfm_hf.cli.options import IdColumn, ModelOption, scan_options, scan_tasks, size_options
from voxelfm_hf.cli.shared_options import with_options
from voxelfm_hf.cli.task import Seed, card_facts, estimate_text, reading_options, task_option
from voxelfm_hf.eval.tasks import HEADLESS
from voxelfm_hf.hub import EMBEDDED

if TYPE_CHECKING:
    from voxelfm_hf.eval.probes.card import ProbeFacts
    from voxelfm_hf.scan_list import Task


@app.command()
@with_options(read=reading_options, tasks=scan_tasks, sizes=size_options, opening=scan_options, facts=card_facts)
def finetune(
    *,
    tasks: "list[Task]",
    labels: Annotated[
        Path,
        typer.Option(
            "--labels", "-l", help="CSV or Parquet: an id column and one column a target.", exists=True, dir_okay=False
        ),
    ],
    task: Annotated[str, task_option(without=HEADLESS)],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the result; an interrupted run goes on there.", file_okay=False),
    ],
    model: ModelOption = EMBEDDED,
    mode: Annotated[str, typer.Option(help="lora, last_1, last_2, … (blocks), or full.")] = "lora",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="How to train, FIELD=VALUE, may be repeated: epochs=10, lora.rank=4, …"),
    ] = None,
    id_column: IdColumn = None,
    read: dict[str, Any],
    sizes: dict[str, Any],
    opening: dict[str, Any],
    seed: Seed = 0,
    facts: "ProbeFacts",
) -> None:
    """Fine-tunes a backbone for a task: LoRA adapters, the last blocks, or all of it, from the frozen probe on.

    Splits, missing labels, class balance, calibration and scores are those of `voxelfm probe`; the best epoch is chosen
    on validation scans. OUT gets adapter/ (a few MB) or model/, and probe/: `voxelfm predict SCAN --probe OUT/probe
    --model OUT/adapter`. Comparisons with seeds and intervals: a benchmark recipe with a line `fine_tuning:`.

    Example: voxelfm finetune scans/ --labels labels.csv --task classification --target malignant --out tuned

    Example: accelerate launch -m voxelfm_hf.cli finetune scans/ --labels labels.csv --task survival --out tuned
    """
    from voxelfm_hf.eval.labels import read_labels
    from voxelfm_hf.eval.probes.card import predict_command
    from voxelfm_hf.eval.probes.finetune import finetune_and_save
    from voxelfm_hf.features import EmbedOptions
    from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
    from voxelfm_hf.training.finetune.settings import change_settings

    quiet_libraries()

    def show(entry: dict[str, Any]) -> None:
        losses = {"training": entry["loss"], "validation": entry["score"] and -entry["score"]}
        said = ", ".join(f"{name} loss {loss:.4f}" for name, loss in losses.items() if loss is not None)
        errors.print(f"epoch {entry['epoch']}: {said}")

    with bar_of_parts("steps/s") as progress:
        finished = finetune_and_save(
            tasks,
            read_labels(labels, id_column=id_column, patient_column=read.get("patient_column")),
            out,
            model=model,
            task=task,
            read=read,
            mode=mode,
            seed=seed,
            settings=change_settings(change or []),
            options=EmbedOptions(**sizes, **opening),
            facts=facts,
            on_epoch=show,
            progress=progress,
        )
    if finished is None:
        return
    for name, report in finished.reports.items():
        for metric, estimate in report["estimates"].items():
            before = finished.frozen[name]["estimates"].get(metric, {})
            console.print(f"{plain(name)}  {metric}  frozen {estimate_text(before)}  {mode} {estimate_text(estimate)}")
    cost = finished.cost
    console.print(
        f"{cost.trainable_parameters:,} parameters trained, {cost.seconds:.0f} s of training, "
        f"{cost.peak_memory_mb:.0f} MB at most"
    )
    config = VoxelFMProbeConfig.from_pretrained(finished.probe)
    console.print(plain(predict_command(config, finished.probe, model=finished.backbone)), soft_wrap=True)
