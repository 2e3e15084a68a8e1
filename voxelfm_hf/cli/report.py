"""`voxelfm report`: what a report model writes about scans, beside a probe, and where its resampler looked."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from voxelfm_hf.cli.app import app, console, end_batch, errors, plain, quiet_libraries, say_failed
from voxelfm_hf.cli.options import AsJson, scan_options, some_exist
from voxelfm_hf.cli.shared_options import with_options
from voxelfm_hf.failures import write_failures
from voxelfm_hf.volumes.errors import ModelError, ScanError


@app.command()
@with_options(opening=scan_options)
def report(
    *,
    scans: Annotated[list[Path], typer.Argument(help="Scan files or DICOM folders.", metavar="SCAN")],
    model: Annotated[str, typer.Option("--model", "-m", help="Report model: a folder or Hub id.")],
    prompt: Annotated[
        str | None, typer.Option(help="What to ask, in place of the request the model was trained with.")
    ] = None,
    prior: Annotated[
        list[Path] | None,
        typer.Option(help="Earlier scan of the same patient, may be repeated, oldest first.", exists=True),
    ] = None,
    probe: Annotated[
        str | None, typer.Option("--probe", "-p", help="Classification probe, its probabilities beside the text.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for the texts and pictures of the attention weights.", file_okay=False
        ),
    ] = None,
    as_json: AsJson = False,
    language_model: Annotated[
        str | None, typer.Option(help="Where the language model lies, if not where the report model says.")
    ] = None,
    vision_model: Annotated[
        str | None, typer.Option(help="Where the encoder lies, if not where the report model says.")
    ] = None,
    merge: Annotated[
        Path | None, typer.Option(help="Also write the model whole, with encoder and language model, to this folder.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest report in tokens.")] = 256,
    opening: dict[str, Any],
) -> None:
    """Writes the findings of scans as text, organ by organ. Not for clinical use.

    With --probe, the probe's probability of every finding stands beside the text, and disagreement is marked. With
    --out, a picture of each scan shows the attention weights of the resampler: where the model looked, no explanation.
    Scans that fail are listed in OUT/failures.csv while the rest goes on; the exit code is then 3.

    Example: voxelfm report chest.nii.gz --model report/stage2/model --probe probe --out written
    """
    folders = [Path(os.path.abspath(path)).name for path in some_exist(scans)]
    if out is not None and len(set(folders)) < len(folders):
        raise typer.BadParameter("scans of the same name would share a folder in --out: give each an --out of its own")

    from voxelfm_hf.eval.probes.apply import ProbeReader
    from voxelfm_hf.eval.reports.agreement import compare_with_probe, finding_of
    from voxelfm_hf.eval.tasks.answer import output_names
    from voxelfm_hf.report_writer import ReportWriter
    from voxelfm_hf.volumes import read_volume

    quiet_libraries()
    writer = ReportWriter(model, language_model=language_model, vision_model=vision_model)
    reader = ProbeReader(probe) if probe else None
    if reader is not None and reader.probe.config.task != "classification":
        raise ModelError(f"{probe} is a {reader.probe.config.task} probe: --probe takes one of classification")
    asked = list(output_names(reader.probe).values()) if reader else []
    unknown = [name for name in asked if finding_of(name) is None]
    if asked and len(unknown) == len(asked):
        raise ModelError(
            f"{probe} knows {', '.join(unknown)}, none of the 18 findings that are looked for in a text: name a probe "
            "of one of them, or leave --probe out"
        )
    if unknown:
        errors.print(f"not compared, as no finding that is looked for in the text: {plain(', '.join(unknown))}")
    earlier = [read_volume(path, **opening) for path in prior or ()]
    failures: list[tuple[str, str]] = []
    for path, folder in zip(scans, folders, strict=True):
        try:
            volume = read_volume(path, **opening)
            written = writer.write(volume, prior=earlier, request=prompt, max_new_tokens=max_new_tokens)
            answer = reader.answer(volume) if reader else None
        except (ScanError, ValueError) as error:
            failures.append((folder, str(error)))
            say_failed(str(error))
            continue
        agreement = compare_with_probe(written.text, answer.values, answer.positive) if answer else []
        if out is not None:
            _write_out(out / folder, volume, written)
        if as_json:
            print(json.dumps(_facts(path, written, agreement)))
        else:
            _show(path, written, agreement)
    if out is not None:
        write_failures(out, dict(failures))
    if merge is not None:
        writer.save_merged(merge)
    end_batch(failed=len(failures), done=len(scans) - len(failures), out=out)


def _facts(path: Path, written: Any, agreement: list[Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"scan": str(path), "report": written.text, "organs": written.organs}
    if agreement:
        facts["findings"] = [
            {**vars(finding), "probability": round(finding.probability, 4), "disagrees": finding.disagrees}
            for finding in agreement
        ]
    if written.notes:
        facts["notes"] = list(written.notes)
    return facts


def _show(path: Path, written: Any, agreement: list[Any]) -> None:
    console.print(f"[bold]{plain(path)}[/]")
    if not written.organs:
        console.print(f"  {plain(written.text)}")
    for organ, statements in written.organs.items():
        text = " ".join(f"{statement}." for statement in statements)
        console.print(f"  [cyan]{plain(organ)}:[/] {plain(text)}")
    for finding in agreement:
        mark = "  [yellow]disagrees[/]" if finding.disagrees else ""
        said = "stated" if finding.stated else "not stated"
        console.print(
            f"  {plain(finding.finding)}: {said}, probe {finding.probability:.2f} "
            f"({'positive' if finding.positive else 'negative'}){mark}"
        )
    for note in written.notes:
        console.print(f"  [dim]{plain(note)}[/]")


def _write_out(folder: Path, volume: Any, written: Any) -> None:
    from voxelfm_hf.files import written_file
    from voxelfm_hf.pictures import save_picture

    with written_file(folder / "report.txt") as path:
        path.write_text(written.text + "\n", encoding="utf-8")
    if written.attention is not None:
        save_picture(
            volume,
            folder / "attention.png",
            heat=written.attention,
            heat_limits=(1.0, max(2.0, float(written.attention[written.attention == written.attention].max()))),
            title="attention weights (1 is even), not an explanation",
        )
