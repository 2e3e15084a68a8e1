"""The results of the report benchmark as pages: scores with intervals, differences, examples."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from voxelfm_hf.eval.labeller import FINDINGS
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.eval.reports.scores import VISIBLE, LabelledReports, compare_reports
from voxelfm_hf.markdown import table

TASK = "report"
# A finding whose probe has at least this AUROC on the validation scans counts as visible in the features.
VISIBLE_FROM = 0.7


def _cell(rows: list[dict[str, Any]], encoder: str, target: str, metric: str) -> str:
    for row in rows:
        if (row["encoder"], row["target"], row["metric"]) == (encoder, target, metric):
            if not np.isfinite(row["value"]):
                return "-"
            interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if np.isfinite(row["low"]) else ""
            return f"{row['value']:.3f}{interval}"
    return "-"


def results_page(
    title: str,
    rows: list[dict[str, Any]],
    comparisons: list[dict[str, Any]],
    written: Mapping[str, LabelledReports],
    visible: Collection[str],
    *,
    synthetic: bool,
    train_rows: int,
    replicates: int,
) -> str:
    """results.md.

    Args:
        title: Of the benchmark.
        rows: Of results.csv.
        comparisons: Of comparisons.csv.
        written: Row -> what it wrote.
        visible: Findings that a probe sees in the features of validation scans.
        synthetic: Whether the scans are.
        train_rows: Scans to learn from.
        replicates: Bootstrap draws.
    """
    first = next(iter(written.values()))
    metrics = {
        (MACRO, "f1"): "macro F1",
        (VISIBLE, "f1"): "of visible findings",
        (MACRO, "hallucinated"): "hallucinated",
        (MACRO, "missed"): "missed",
        (MACRO, "bleu"): "BLEU",
        (MACRO, "rouge_l"): "ROUGE-L",
        (MACRO, "meteor"): "METEOR",
    }
    seen = [FINDINGS[i] for i in first.scored_among(visible)]
    if not seen:
        del metrics[VISIBLE, "f1"]
    explained = (
        f" Visible: {', '.join(seen)}, whose probes reach an AUROC of {VISIBLE_FROM} on the validation scans."
        if seen
        else ""
    )
    drawn = "patients" if any(row["patients"] is not None for row in rows) else "scans"
    lines = [
        f"# {title}",
        "",
        f"{len(first.true)} {'synthetic ' * synthetic}test scans, {train_rows} to learn from; "
        f"95 % intervals over {drawn} "
        f"({replicates} draws). Macro F1 is a mean over the {len(first.scored)} findings that at least five references "
        "state, labelled in both texts by rules; hallucinated: share of stated findings that the reference does not "
        f"state; missed: share of its findings that are not stated.{explained}",
        "",
        *table(
            ("row", *metrics.values()),
            ([name, *(_cell(rows, name, *metric) for metric in metrics)] for name in written),
        ),
        "",
        "F1 by finding:",
        "",
        *table(
            ("finding (positives)", *written),
            (
                [
                    f"{FINDINGS[i]} ({int(first.true[:, i].sum())})",
                    *(_cell(rows, name, FINDINGS[i], "f1") for name in written),
                ]
                for i in first.scored
            ),
        ),
        "",
    ]
    if comparisons:
        lines += ["F1 of the adapter minus that of each row, same patients:", "", *_differences(comparisons)]
    return "\n".join(lines)


def comparison_rows(
    written: Mapping[str, LabelledReports], visible: Collection[str], *, replicates: int
) -> list[dict[str, Any]]:
    """Rows of comparisons.csv: the adapter's F1 minus that of each other row, same patients.

    Args:
        written: Row -> what it wrote.
        visible: Findings that a probe sees in the features of validation scans.
        replicates: Bootstrap draws.

    Returns:
        For each other row a difference over all findings and, where there are any, over the visible ones.
    """
    if "adapter" not in written:
        return []
    adapter = written["adapter"]
    kinds = {MACRO: FINDINGS, **({VISIBLE: visible} if adapter.scored_among(visible) else {})}
    rows = []
    for name, reports in written.items():
        for target, findings in kinds.items() if name != "adapter" else ():
            found = compare_reports(adapter, reports, findings=findings, replicates=replicates)
            rows.append(
                {"first": "adapter", "second": name, "task": TASK, "target": target, "metric": "f1",
                 "difference": found.difference, "low": found.low, "high": found.high, "p_value": found.p_value,
                 "n": len(adapter.true), "test": "paired bootstrap"}
            )  # fmt: skip
    return rows


def _differences(comparisons: list[dict[str, Any]]) -> list[str]:
    """A line a row, a pair of columns a set of findings."""
    kinds = {MACRO: "all findings", VISIBLE: "visible findings"}
    targets = [target for target in kinds if any(row["target"] == target for row in comparisons)]
    cells: dict[str, list[str]] = {}
    for row in comparisons:
        shown = f"{row['difference']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        cells.setdefault(row["second"], []).extend((shown, f"{row['p_value']:.3g}"))
    heading = ("row", *(word for target in targets for word in (kinds[target], "p")))
    return [*table(heading, ([name, *line] for name, line in cells.items())), ""]


def examples_page(written: Mapping[str, LabelledReports], scans: Sequence[str]) -> str:
    """examples.md: what the reference and every row say of the first test scans.

    Args:
        written: Row -> what it wrote.
        scans: Names of the first test scans.
    """
    lines = ["# Examples: the first test scans", ""]
    for index, scan in enumerate(scans):
        reference = next(iter(written.values())).reference[index]
        lines += [f"## {scan}", "", f"- reference: {on_one_line(reference)}"]
        lines += [f"- {name}: {on_one_line(reports.written[index])}" for name, reports in written.items()]
        lines.append("")
    return "\n".join(lines)


def on_one_line(text: str) -> str:
    """The lines of a text with slashes between them."""
    return " / ".join(text.splitlines())


def terminal_table(rows: list[dict[str, Any]]) -> Any:
    """The macro scores of every row as a rich table."""
    from rich.table import Table

    shown = Table(title="reports: findings against the reference")
    metrics = ("f1", "hallucinated", "missed", "bleu", "rouge_l", "meteor")
    for column in ("row", *metrics):
        shown.add_column(column)
    for name in dict.fromkeys(row["encoder"] for row in rows):
        shown.add_row(name, *(_cell(rows, name, MACRO, metric) for metric in metrics))
    return shown
