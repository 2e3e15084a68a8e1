"""`voxelfm probe` and `predict`: from features and labels to a probe, and from a scan to its answer."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from voxelfm_hf.cli_app import (
    EXIT_BAD_INPUT,
    EXIT_PARTLY_FAILED,
    AssumeHU,
    Spacing,
    app,
    console,
    errors,
    parse_spacing,
    plain,
    quiet_libraries,
)
from voxelfm_hf.volumes.errors import ScanError

# Tasks whose labels are one or more columns named by --target.
COLUMN_TASKS = ("classification", "regression", "retrieval", "localization")


@app.command()
def probe(
    store: Annotated[Path, typer.Argument(help="Feature store of `voxelfm embed`.", metavar="STORE")],
    labels: Annotated[
        Path, typer.Argument(help="CSV or Parquet: an id column and one column a target.", metavar="LABELS")
    ],
    task: Annotated[
        str, typer.Option(help="classification, regression, survival, retrieval, localization or segmentation.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the probe, new or empty.")],
    target: Annotated[
        list[str] | None, typer.Option(help="Label column, may be repeated; localization: x, y and z of each point.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="linear, mlp or pooler (over patches).")] = None,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="Classification: one column of class names, exactly one holds.")
    ] = False,
    time: Annotated[str, typer.Option(help="Survival: column of the follow-up time.")] = "time",
    event: Annotated[str, typer.Option(help="Survival: column with 1 for an event, 0 for censored.")] = "event",
    classes: Annotated[
        list[str] | None, typer.Option(help="Segmentation: names of the map's values, the background first.")
    ] = None,
    masks: Annotated[str | None, typer.Option(help="Segmentation: column with the path of the label map.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column that names the scan as the store does.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the splits (where none are given) and of the fit.")] = 0,
) -> None:
    """Fits a probe on frozen features, calibrates it on validation scans, scores it once on test scans.

    Splits come from a column `split` (train, val, test) or are drawn by patient where a patient column exists.

    Example: voxelfm probe features labels.csv --task classification --target malignant --out probe
    """
    from voxelfm_hf.eval.labels import read_labels
    from voxelfm_hf.eval.probe_run import fit_and_evaluate, save_probe
    from voxelfm_hf.eval.tasks import task_names
    from voxelfm_hf.store import FeatureStore

    if task not in task_names():
        raise typer.BadParameter(f"--task is one of {', '.join(task_names())}, got {task}")
    if task in COLUMN_TASKS and not target:
        raise typer.BadParameter(f"--task {task} needs --target")
    if task == "segmentation" and not classes:
        raise typer.BadParameter("--task segmentation needs --classes, the background first")
    quiet_libraries()
    read: dict[str, Any] = {"split_seed": seed}
    if task in COLUMN_TASKS:
        read["targets"] = target
    if task == "classification":
        read["exclusive"] = exclusive
    if task == "survival":
        read.update(time=time, event=event)
    if task == "segmentation":
        read.update(classes=classes, masks=masks, folder=labels.parent)
    if head and task in ("classification", "regression", "survival"):
        read["head"] = head
    fit = {} if task == "retrieval" else {"seed": seed}
    fitted, reports, data, predictions = fit_and_evaluate(
        FeatureStore(store), read_labels(labels, id_column=id_column), task=task, read=read, fit=fit
    )
    for name, report in reports.items():
        for metric, estimate in report["estimates"].items():
            console.print(f"{plain(name)}  {metric}  {_estimate(estimate)}", highlight=False)
    if fitted is None:
        console.print("retrieval has nothing to fit: no probe was written", highlight=False)
        return
    save_probe(out, fitted, reports, data, predictions)
    console.print(f"{plain(out)}: voxelfm predict SCAN --probe {plain(out)}", highlight=False, soft_wrap=True)


def _estimate(estimate: dict[str, Any]) -> str:
    value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
    if value is None or value != value:
        return f"undefined: {estimate.get('note') or 'no rows'}"
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and low == low else ""
    return f"{value:.3f}{interval} (n {estimate.get('n')})"


@app.command()
def predict(
    scans: Annotated[list[Path], typer.Argument(help="Scan files or DICOM folders.", metavar="SCAN…")],
    probe: Annotated[str, typer.Option("--probe", "-p", help="Probe folder or Hub id.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Backbone, where the probe does not name it.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for pictures and label maps.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a scan and line.")] = False,
    assume_hu: AssumeHU = False,
    spacing: Spacing = None,
) -> None:
    """What a probe says about scans: probability, value with interval, position or label map.

    With --out, a picture of each scan and, for segmentation, the label map on the scan's own grid as NIfTI.

    Example: voxelfm predict chest.nii.gz --probe probe --model model --out answers
    """
    from voxelfm_hf.eval.apply_probe import ProbeReader
    from voxelfm_hf.volumes import read_volume

    quiet_libraries()
    reader = ProbeReader(probe, model=model)
    failed = 0
    for path in scans:
        try:
            volume = read_volume(path, assume_hu=assume_hu, spacing=parse_spacing(spacing))
            answer = reader.answer(volume)
        except (ScanError, ValueError) as error:
            failed += 1
            errors.print(f"[red]failed:[/] {plain(error)}", highlight=False, soft_wrap=True)
            continue
        if out is not None:
            _write_answer(out / path.name, volume, answer)
        facts = answer.facts()
        if as_json:
            print(json.dumps({"scan": str(path), **facts}))
        else:
            console.print(f"[bold]{plain(path)}[/]", highlight=False, soft_wrap=True)
            for name, value in facts.items():
                console.print(
                    f"  {name.replace('_', ' ')}: {plain(json.dumps(value))}", highlight=False, soft_wrap=True
                )
    if failed:
        raise typer.Exit(EXIT_BAD_INPUT if failed == len(scans) else EXIT_PARTLY_FAILED)


def _write_answer(folder: Path, volume: Any, answer: Any) -> None:
    import nibabel
    import numpy as np

    from voxelfm_hf.files import written_file
    from voxelfm_hf.pictures import save_picture

    layers: dict[str, Any] = {}
    if answer.label_map is not None:
        layers["labels"] = answer.label_map
        with written_file(folder / "labels.nii.gz") as path:
            nibabel.save(volume.restore(answer.label_map), path)
    if answer.points_lps is not None:
        point = np.linalg.solve(volume.affine, [*answer.points_lps[0], 1.0])[:3]
        layers["position"] = np.clip(point, 0, np.array(volume.hu.shape) - 1)
    save_picture(volume, folder / "picture.png", **layers)
