"""The table and the figure of a confound check: confounds.csv, confounds.md, confounds.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelfm_hf.eval.confounds.check import FIELDS, Confounds
from voxelfm_hf.eval.plots.confounds import STAGES, save_confounds
from voxelfm_hf.eval.result_files import write_csv, write_json
from voxelfm_hf.files import written_file
from voxelfm_hf.markdown import table


def write_confounds(folder: str | Path, found: Confounds, *, encoder: str, run: Mapping[str, Any]) -> Path:
    """Writes what was found.

    Args:
        folder: Created when new; earlier files of a check are replaced.
        found: From `measure_confounds`.
        encoder: Name of the encoder.
        run: The store's run.json, for the weight hash.

    Returns:
        The Markdown file.
    """
    folder = Path(folder)
    write_csv(
        folder / "confounds.csv", ({"encoder": encoder, **row} for row in found.rows), fields=("encoder", *FIELDS)
    )
    facts = {"encoder": encoder, "weight_hash": run.get("weight_hash"), "rows": found.rows, "notes": found.notes}
    write_json(folder / "confounds.json", facts)
    save_confounds(folder / "confounds.png", found.rows, encoder=encoder)
    with written_file(folder / "confounds.md") as path:
        path.write_text(confounds_markdown(found, encoder=encoder), encoding="utf-8")
    return folder / "confounds.md"


def confounds_markdown(found: Confounds, *, encoder: str) -> str:
    """The tables of a check."""
    rank, width = found.rank
    lines = [
        f"# Acquisition in the features of {encoder}",
        "",
        f"The erasure of {', '.join(found.facts)} takes {rank} of {width} dimensions out. Intervals (95 %) resample "
        "patients. Acquisition is told out of fold, by probes fitted on other patients than the erasure; task scores "
        "and retrieval are of the test rows, with the erasure fitted on the training rows.",
        "",
        *(f"- {note}" for note in found.notes),
        "",
    ]
    questions = {"acquisition": "How well features tell", "task": "Task", "retrieval": "Retrieval"}
    for question, name in questions.items():
        rows = [row for row in found.rows if row["question"] == question]
        if rows:
            lines += [*_table(name, rows), ""]
    lines.append("![figure](confounds.png)")
    return "\n".join(lines) + "\n"


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    stages = [stage for stage in STAGES if any(row["stage"] == stage for row in rows)]
    groups: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["what"], row["stratum"], row["metric"]), {})[row["stage"]] = row
    body = []
    for (what, stratum, metric), by_stage in groups.items():
        first = next(iter(by_stage.values()))
        title = f"{what}, {stratum}" if stratum else what
        cells = [_cell(by_stage.get(stage)) for stage in stages]
        body.append([title, metric, first["n"], f"{first['chance']:.3g}", *cells])
    return table((name, "metric", "n", "chance", *stages), body)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["value"] is None:
        return f"undefined: {row['note']}"
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else ""
    return f"{row['value']:.3f}{interval}"
