"""A benchmark as files: results.csv, results.json, results.md, comparisons.csv, subgroups.csv, encoders.csv."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.benchmark import compare
from voxelfm_hf.eval.benchmark.entrants import BenchmarkRun
from voxelfm_hf.eval.benchmark.results import SUBGROUP_FIELDS, Results
from voxelfm_hf.eval.metrics.catalogue import is_error, metric_title
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.eval.result_files import write_csv, write_json
from voxelfm_hf.failures import FAILURES_FILE
from voxelfm_hf.files import written_file
from voxelfm_hf.markdown import table
from voxelfm_hf.recipes import save_recipe, to_values

CONSTANT = "mean_position_error_mm"


def write_benchmark(run: BenchmarkRun, results: Results, out: Path) -> str:
    """Writes everything a reader or a plot needs.

    Args:
        run: The run.
        results: Its numbers.
        out: Folder of the benchmark.

    Returns:
        The Markdown.
    """
    encoders = encoder_rows(run)
    failures = [
        {"encoder": encoder, "what": what, "reason": reason} for (encoder, what), reason in run.failures.items()
    ]
    text = results_markdown(run, results)
    save_recipe(run.recipe, out / "recipe.yaml")
    write_csv(out / "results.csv", results.rows)
    write_csv(out / "comparisons.csv", results.comparisons, fields=compare.FIELDS)
    write_csv(out / "subgroups.csv", results.subgroups, fields=SUBGROUP_FIELDS)
    write_csv(out / "encoders.csv", encoders)
    write_csv(out / FAILURES_FILE, failures, fields=("encoder", "what", "reason"))
    everything = {
        "title": run.recipe.title,
        "recipe": to_values(run.recipe),
        "rows": results.rows,
        "comparisons": results.comparisons,
        "subgroups": results.subgroups,
        "encoders": encoders,
        "failures": failures,
        "notes": run.notes,
        "counts": split_counts(run),
    }
    write_json(out / "results.json", everything)
    with written_file(out / "results.md") as path:
        path.write_text(text)
    return text


def encoder_rows(run: BenchmarkRun) -> list[dict[str, Any]]:
    """What each encoder sees and what it costs."""
    return [
        {
            "encoder": name,
            "kind": entrant.kind,
            "preprocessing": entrant.preprocessing,
            "rows": entrant.scans,
            "seconds_embedding": round(entrant.seconds, 1),
            "seconds_fitting": round(entrant.fit_seconds, 1),
            "failed": len(entrant.failures),
        }
        for name, entrant in run.entrants.items()
    ]


def split_counts(run: BenchmarkRun) -> dict[str, int]:
    """Rows by split, where the table has one."""
    labels = run.labels or run.data.labels
    if "split" not in labels.columns:
        return {"rows": len(labels)}
    names, counts = np.unique([str(value) for value in labels.column("split")], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def results_markdown(run: BenchmarkRun, results: Results) -> str:
    """Tables of the main metric: encoders by targets at all labels, and by label fraction."""
    counts = ", ".join(f"{name} {count}" for name, count in split_counts(run).items())
    drawn = "patients" if any(row["patients"] is not None for row in results.rows) else "rows or studies"
    lines = [
        f"# {run.recipe.title or run.recipe.data}",
        "",
        f"Frozen features, one probe recipe for all encoders; rows: {counts}. A number is the mean over seeds, with a "
        f"95 % bootstrap interval that resamples test {drawn} and keeps the predictions of all seeds. Ceiling: "
        "features that are the answer; floor: noise.",
        "",
    ]
    lines += [f"- {note}" for note in run.notes]
    for task in run.recipe.tasks:
        section = task_section(run, results, task.title)
        lines += ["", *section] if section else []
    lines += ["", *comparison_table(results.comparisons), *_cost_table(results.rows), *_encoder_table(run)]
    if run.failures:
        lines += [
            "",
            "## Failures",
            "",
            *(f"- {name} {what}: {reason}" for (name, what), reason in run.failures.items()),
        ]
    return "\n".join(lines) + "\n"


def task_section(run: BenchmarkRun, results: Results, title: str) -> list[str]:
    """Heading and tables of one task; nothing when no encoder has a result."""
    rows = [row for row in results.rows if row["task"] == title and row["main"]]
    constant = [row for row in results.rows if row["task"] == title and row["metric"] == CONSTANT]
    return [*_task_table(run, title, rows), *_fraction_table(rows), *_constant_answer(constant)] if rows else []


def main_table(rows: Sequence[Mapping[str, Any]], *, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """Header and body: encoders down, targets across, at the largest fraction of each.

    Args:
        rows: Rows of one task in the main metric.
        intervals: Write them behind the values.
    """
    whole = max(row["fraction"] for row in rows)
    targets = list(dict.fromkeys(row["target"] for row in rows))
    cells = {(row["encoder"], row["target"]): row for row in rows if row["fraction"] == whole}
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    header = ["encoder", *(f"{target} (n {_count(cells, target)})" for target in targets)]
    return header, [
        [name, *(_cell(cells.get((name, target)), interval=intervals) for target in targets)] for name in encoders
    ]


def _task_table(run: BenchmarkRun, title: str, rows: list[dict[str, Any]]) -> list[str]:
    first = rows[0]
    better = "lower is better" if is_error(first["metric"]) else "higher is better"
    head = f", {first['head']} head" if first["head"] != "none" else ""
    seeds = "1 seed" if first["seeds"] == 1 else f"{first['seeds']} seeds"
    about = f"## {title}: {metric_title(first['metric'])} ({better}){head}, {seeds}"
    header, body = main_table(rows)
    return [about, "", *table(header, body)]


def _fraction_table(rows: list[dict[str, Any]]) -> list[str]:
    """The label-efficiency curve as a table, on the macro mean where there is one."""
    fractions = sorted({row["fraction"] for row in rows})
    if len(fractions) < 2:
        return []
    targets = {row["target"] for row in rows}
    chosen = [row for row in rows if row["target"] == MACRO] if MACRO in targets else rows
    shown = list(dict.fromkeys(row["target"] for row in chosen))
    lines: list[str] = []
    for target in shown:
        cells = {(row["encoder"], row["fraction"]): row for row in chosen if row["target"] == target}
        counts = {f: next((r["train_rows"] for (_, at), r in cells.items() if at == f), np.nan) for f in fractions}
        header = [f"{target}: labels", *(f"{100 * f:g} % ({counts[f]:.0f})" for f in fractions)]
        encoders = list(dict.fromkeys(row["encoder"] for row in chosen))
        body = [[name, *(_cell(cells.get((name, f))) for f in fractions)] for name in encoders]
        lines += ["", *table(header, body)]
    return lines


def comparison_table(comparisons: list[dict[str, Any]]) -> list[str]:
    """The paired tests as Markdown, with a heading."""
    if not comparisons:
        return []
    first = comparisons[0]["first"]
    body = [
        [
            f"{row['task']}: {row['target']}",
            row["second"],
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            f"{row['p_value']:.2g}",
            f"{row['p_holm']:.2g}",
            row["test"],
        ]
        for row in comparisons
        if np.isfinite(row["p_value"])
    ]
    header = ["task", f"{first} minus", "difference", "p", f"p (Holm, {len(body)} tests)", "test"]
    return [f"## {first} against the others", "", *table(header, body)]


def _constant_answer(rows: list[dict[str, Any]]) -> list[str]:
    """What a localisation has to beat; the same for all encoders."""
    if not rows:
        return []
    return ["", f"A constant answer, the mean training position, has an error of {_cell(rows[-1])} mm."]


def _encoder_table(run: BenchmarkRun) -> list[str]:
    body = [
        [row["encoder"], row["preprocessing"], f"{row['seconds_embedding']:g}", f"{row['seconds_fitting']:g}"]
        for row in encoder_rows(run)
    ]
    return ["", "## Encoders", "", *table(["encoder", "what it sees", "s embedding", "s fitting"], body)]


def _cost_table(rows: list[dict[str, Any]]) -> list[str]:
    """What fine-tuning took, for each task at all labels."""
    costs: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row.get("seconds") is not None and row["main"]:
            at = (row["task"], row["encoder"])
            costs[at] = max(costs.get(at, row), row, key=lambda found: found["fraction"])
    if not costs:
        return []
    header = ["task", "encoder", "labelled rows", "seconds a fit", "peak memory (MB)", "trainable parameters"]
    body = [
        [
            task,
            encoder,
            f"{row['train_rows']:.0f}",
            f"{row['seconds']:.0f}",
            f"{row['peak_memory_mb']:.0f}",
            f"{row['trainable_parameters']:,.0f}",
        ]
        for (task, encoder), row in costs.items()
    ]
    return ["", "## Cost of fine-tuning", "", *table(header, body)]


def _cell(row: Mapping[str, Any] | None, *, interval: bool = True) -> str:
    if row is None or not np.isfinite(row["value"]):
        return "–"
    digits = 1 if is_error(row["metric"]) else 3
    bounds = f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]" if interval and np.isfinite(row["low"]) else ""
    return f"{row['value']:.{digits}f}{bounds}"


def _count(cells: Mapping[tuple[str, str], Mapping[str, Any]], target: str) -> int:
    return next((row["n"] for (_, at), row in cells.items() if at == target), 0)
