"""`voxelfm probe` and `predict`: from features and labels to a probe, and from a scan to its answer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxelfm_hf.cli.app import (
    advance,
    app,
    bar_of_parts,
    console,
    end_batch,
    errors,
    plain,
    progress_bar,
    quiet_libraries,
    say_failed,
)
from voxelfm_hf.cli.options import AsJson, IdColumn, Point, new_folder, parse_point, scan_options, scan_tasks
from voxelfm_hf.cli.shared_options import with_options
from voxelfm_hf.cli.task import UNDEFINED, Seed, card_facts, estimate_text, reading_options, task_option

if TYPE_CHECKING:
    from voxelfm_hf.eval.probes.card import ProbeFacts
    from voxelfm_hf.scan_list import Task


@app.command()
@with_options(read=reading_options, facts=card_facts)
def probe(
    *,
    store: Annotated[
        Path, typer.Argument(help="Feature store of `voxelfm embed`.", metavar="STORE", exists=True, file_okay=False)
    ],
    labels: Annotated[
        Path,
        typer.Argument(
            help="CSV or Parquet: an id column and one column a target.", metavar="LABELS", exists=True, dir_okay=False
        ),
    ],
    task: Annotated[str, task_option()],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the probe, new or empty.", callback=new_folder)],
    id_column: IdColumn = None,
    read: dict[str, Any],
    seed: Seed = 0,
    facts: "ProbeFacts",
) -> None:
    """Fits a probe on frozen features, calibrates it on validation scans, scores it once on test scans.

    Splits come from a column `split` (train, val, test) or are drawn by patient where a patient column exists. The
    folder is ready to share: weights, a card with scores, intervals and figures, results.json. Retrieval fits nothing:
    features are compared as they are, and the folder holds the card and results.json.

    Example: voxelfm probe features labels.csv --task classification --target malignant --out probe

    Example: voxelfm probe features labels.csv --task segmentation --classes background --classes lung --out lungs
    """
    from voxelfm_hf.eval.labels import read_labels
    from voxelfm_hf.eval.probes.card import predict_command
    from voxelfm_hf.eval.probes.run import fit_and_evaluate, save_probe, save_retrieval
    from voxelfm_hf.store import FeatureStore

    quiet_libraries()
    with bar_of_parts("steps/s") as progress:
        fitted, reports, data, predictions = fit_and_evaluate(
            FeatureStore(store),
            read_labels(labels, id_column=id_column, patient_column=read.get("patient_column")),
            task=task,
            read=read,
            fit={"seed": seed},
            progress=progress,
        )
    for note in data.notes:
        errors.print(f"note: {plain(note)}", soft_wrap=True)
    for name, report in reports.items():
        for metric, estimate in report["estimates"].items():
            text = estimate_text(estimate)
            chance = f", chance {estimate['chance']:.3f}" if "chance" in estimate else ""
            why = f": {estimate.get('note') or 'no rows'}" if text == UNDEFINED else f" (n {estimate.get('n')}{chance})"
            console.print(f"{plain(name)}  {metric}  {text}{plain(why)}")
    if fitted is None:
        save_retrieval(out, reports, data, facts=facts)
        console.print(f"{plain(out)}: card and scores; nothing was fitted, so there is no probe to load")
        return
    save_probe(out, fitted, reports, data, predictions, facts=facts)
    console.print(f"{plain(out)}: {plain(predict_command(fitted.config, out))}", soft_wrap=True)


@app.command()
@with_options(tasks=scan_tasks, opening=scan_options)
def predict(
    *,
    tasks: "list[Task]",
    point: Point = None,
    probe: Annotated[
        str, typer.Option("--probe", "-p", help="Folder or Hub id of a probe, or of a model with its head.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Backbone, where the probe does not name it.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for answers, pictures, label maps; new or of this probe.", file_okay=False
        ),
    ] = None,
    as_json: AsJson = False,
    opening: dict[str, Any],
) -> None:
    """What a probe says about scans: probability, value with interval, position or label map.

    With --out, also a table, a picture of each scan and, for segmentation, the label map on the scan's own grid as
    NIfTI; a rerun does only what is missing. Scans that fail are listed in OUT/failures.csv; the exit code is then 3.

    Example: voxelfm predict chest.nii.gz --probe probe --model model --out answers

    Example: voxelfm predict scans/ --probe nodule_probe --regions nodules.csv --out answers
    """
    if point is not None:
        if any(task.regions for task in tasks):
            raise typer.BadParameter("--point and --regions both say where to look: give one of them")
        tasks = [replace(task, regions=(parse_point(point, task.scan.identifier),)) for task in tasks]

    from voxelfm_hf.eval.probes.apply import ProbeReader
    from voxelfm_hf.eval.probes.predict_scans import predict_scans

    quiet_libraries()
    reader = ProbeReader(probe, model=model)
    progress = progress_bar(len(tasks), "predicting")
    # On a terminal what prints beside a bar has to know of it.
    answers = progress.console if console.is_terminal and errors.is_terminal else console

    def show(_: Any, identifier: str, facts: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps({"scan": identifier, **facts}))
            return
        answers.print(f"[bold]{plain(identifier)}[/]")
        for key, value in facts.items():
            answers.print(f"  {key.replace('_', ' ')}: {plain(json.dumps(value))}")

    with progress:
        summary = predict_scans(
            tasks,
            reader,
            out,
            on_answer=show,
            on_failure=say_failed,
            on_scan=lambda _: advance(progress, "scans/s"),
            **opening,
        )
    end_batch(failed=len(summary.failures), done=summary.added + summary.present, out=out)
