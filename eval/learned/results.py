"""Results of the learned-or-not comparison as JSON, CSV, a Markdown table and pictures."""

from pathlib import Path
from typing import Any

from voxelfm_hf.eval.learned.features import READOUT
from voxelfm_hf.eval.metrics.catalogue import metric_title
from voxelfm_hf.eval.result_files import write_csv, write_json
from voxelfm_hf.files import written_file
from voxelfm_hf.markdown import table

FIELDS = ("encoder", "task", "target", "metric", "value", "low", "high", "n", "seeds")
COLOURS = {"trained": "#2b6cb0", "untrained": "#a0aec0", "histogram": "#dd9b4a"}


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
    with written_file(out / "results.png") as path:
        _bars(results).savefig(path, format="png", dpi=120)
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
    with written_file(out / "curve.png") as path:
        _lines(curve).savefig(path, format="png", dpi=120)
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


def _bars(results: dict[str, Any]):
    """One panel of bars with intervals a task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(results["tasks"]), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(results["tasks"]), squeeze=False)[0]
    for axis, (name, task) in zip(axes, results["tasks"].items(), strict=True):
        rows = [row for row in results["rows"] if row["task"] == name][::-1]
        values = [row["value"] for row in rows]
        below = [max(0.0, row["value"] - row["low"]) for row in rows]
        above = [max(0.0, row["high"] - row["value"]) for row in rows]
        colours = [COLOURS.get(row["encoder"].split()[0], "#718096") for row in rows]
        axis.barh([row["encoder"] for row in rows], values, xerr=[below, above], color=colours, capsize=3)
        axis.axvline(0.5 if len(task["regions"]) == 2 else 1 / len(task["regions"]), color="black", linestyle=":")
        axis.set_xlim(0, 1)
        axis.set_xlabel(f"{metric_title(rows[0]['metric'])} (dotted: chance)")
        axis.set_title(task["target"], fontsize=9, wrap=True)
    return figure


def _lines(curve: dict[str, Any]):
    """One panel of scores against steps a task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(curve["tasks"]), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(curve["tasks"]), squeeze=False)[0]
    steps = [point["step"] for point in curve["points"]]
    for axis, (name, task) in zip(axes, curve["tasks"].items(), strict=True):
        styles = dict(zip(curve["points"][0][name], ("-", "--", "-."), strict=False))
        for readout, style in styles.items():
            scores = [point[name][readout] for point in curve["points"]]
            axis.plot(steps, scores, style, marker="o", color=COLOURS["trained"], label=f"trained {readout}")
        for encoder, score in curve["references"][name].items():
            kind, _, readout = encoder.partition(" ")
            axis.axhline(score, linestyle=styles.get(readout, ":"), color=COLOURS[kind], label=encoder)
        axis.set_xlabel("pre-training step")
        axis.set_ylabel(metric_title(task["metric"]))
        axis.set_title(task["target"], fontsize=9, wrap=True)
    axes[0].legend(fontsize=8)
    return figure
