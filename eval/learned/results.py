"""Results of the learned-or-not comparison as JSON, CSV, a Markdown table and pictures."""

from pathlib import Path
from typing import Any

from voxelfm_hf.eval.learned.features import READOUT
from voxelfm_hf.eval.metrics.catalogue import metric_title
from voxelfm_hf.eval.plots.learned import save_comparison, save_curve
from voxelfm_hf.eval.result_files import write_csv, write_json
from voxelfm_hf.files import written_file
from voxelfm_hf.markdown import table

FIELDS = ("encoder", "task", "target", "metric", "value", "low", "high", "n", "seeds")


def write_results(results: dict[str, Any], out: Path) -> str:
    """Writes results.json, results.csv, results.md and results.png.

    Args:
        results: From `learned.compare`.
        out: Folder.

    Returns:
        The Markdown.
    """
    text = results_table(results)
    differences = ({**row, "metric": f"difference of {row['metric']}"} for row in results["differences"])
    write_json(out / "results.json", results)
    write_csv(out / "results.csv", [*results["rows"], *differences], fields=FIELDS)
    with written_file(out / "results.md") as path:
        path.write_text(text)
    save_comparison(out / "results.png", results)
    return text


def results_table(results: dict[str, Any]) -> str:
    """Scores and differences of all tasks as Markdown."""
    settings = results["settings"]
    lines = [
        f"Frozen features of `{results['model']}` (weights {results['weight_hash'][:12]}) under a linear probe, "
        f"cross-validated by patient on patients that pre-training has not seen ({', '.join(settings['splits'])}); "
        f"mean over {settings['seeds']} seeds, 95 % intervals by bootstrap over patients.",
        "",
    ]
    for name, task in results["tasks"].items():
        rows = [row for row in results["rows"] if row["task"] == name]
        classes = ", ".join(f"{label} {count}" for label, count in task["regions"].items())
        lines += [
            f"**{name}**: {task['target']}; cubes of {task['edge_mm']:g} mm; {rows[0]['n']} regions of "
            f"{task['patients']} patients ({classes}).",
            "",
            *table(("encoder", metric_title(rows[0]["metric"]), "95 % interval"), (_cells(row, ".3f") for row in rows)),
            "",
            *table(
                ("paired difference", "", "95 % interval"),
                (_cells(row, "+.3f") for row in results["differences"] if row["task"] == name),
            ),
            "",
        ]
    for name, readouts in results["better"].items():
        verdicts = ", ".join(f"{readout} {'yes' if is_better else 'no'}" for readout, is_better in readouts.items())
        lines.append(f"Better than the untrained model and the histogram, intervals above 0, on {name}: {verdicts}.")
    lines.append(f"The readout that counts, the same for all tasks: {READOUT}.")
    return "\n".join(lines)


def write_curve(curve: dict[str, Any], out: Path) -> str:
    """Writes curve.json, curve.md and curve.png; returns the scores as a Markdown table."""
    write_json(out / "curve.json", curve)
    save_curve(out / "curve.png", curve)
    columns = [(task, readout) for task in curve["tasks"] for readout in curve["points"][0][task]]
    header = ("step", *(f"{task}, {readout}" for task, readout in columns))
    body = ([p["step"], *(f"{p[task][readout]:.3f}" for task, readout in columns)] for p in curve["points"])
    text = "\n".join(table(header, body))
    with written_file(out / "curve.md") as path:
        path.write_text(text + "\n")
    return text


def _cells(row: dict[str, Any], digits: str) -> list[str]:
    value, low, high = (format(row[name], digits) for name in ("value", "low", "high"))
    return [row["encoder"], value, f"{low} to {high}"]
