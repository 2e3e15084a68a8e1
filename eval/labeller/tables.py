"""Label a table of reports, and measure the labeller on an annotated one."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxelfm_hf.data.reports import read_reports, read_rows
from voxelfm_hf.eval.labeller.findings import FINDINGS, label_report
from voxelfm_hf.files import written_file
from voxelfm_hf.markdown import table
from voxelfm_hf.volumes.errors import LabelError


@dataclass(frozen=True)
class LabelSummary:
    """What was labelled.

    Attributes:
        reports: Rows read.
        empty: Rows without a report; their labels are left blank, which is not the same as no finding.
        positives: For each finding the number of reports that state it.
        numbered: Rows without a name in the table, whose id is the number of the row.
    """

    reports: int
    empty: int
    positives: dict[str, int]
    numbered: int


def label_csv(
    path: str | Path, out: str | Path, *, columns: str | Sequence[str] | None = None, id_column: str | None = None
) -> LabelSummary:
    """Label every report of a table (`voxelfm label`).

    Args:
        path: CSV, TSV or Parquet table of reports.
        out: The CSV to write: `id` and one 0/1 column a finding, no report text. It appears whole or not at all.
        columns: Column(s) with the text; by default the usual layouts are recognised.
        id_column: Column that names the scan; by default a usual name, else the row number, from 1.

    Returns:
        How many reports, empty reports, findings and ids that are row numbers there were.

    Raises:
        LabelError: The table is missing, unreadable or empty, lacks a column, or would be overwritten by `out`.
    """
    path, out = Path(path), Path(out)
    if out.exists() and path.exists() and out.samefile(path):
        raise LabelError(f"{out.name} holds the reports themselves: write the labels to another file")
    reports = read_reports(path, columns=columns, id_column=id_column)
    total, empty, numbered, positives = 0, 0, 0, dict.fromkeys(FINDINGS, 0)
    with written_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *FINDINGS])
        for report in reports:
            total += 1
            numbered += report.numbered
            if report.is_empty:
                empty += 1
                writer.writerow([report.id, *[""] * len(FINDINGS)])
                continue
            labels = label_report(report.text)
            for finding, label in labels.items():
                positives[finding] += label
            writer.writerow([report.id, *labels.values()])
    return LabelSummary(reports=total, empty=empty, positives=positives, numbered=numbered)


@dataclass(frozen=True)
class FindingScore:
    """How well one finding is labelled; a ratio without a denominator is 0."""

    finding: str
    positives: int
    precision: float
    recall: float
    f1: float


def score_labels(truth: Sequence[dict[str, int]], predicted: Sequence[dict[str, int]]) -> list[FindingScore]:
    """Compare labels with annotations.

    Args:
        truth: 0/1 for each of `FINDINGS`, one dict a report.
        predicted: The same from the labeller, in the same order.

    Returns:
        A score for each finding, in the order of `FINDINGS`.
    """
    scores = []
    for finding in FINDINGS:
        pairs = [(bool(t[finding]), bool(p[finding])) for t, p in zip(truth, predicted, strict=True)]
        hits, misses, false_alarms = pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))
        scores.append(
            FindingScore(
                finding=finding,
                positives=hits + misses,
                precision=hits / (hits + false_alarms) if hits + false_alarms else 0.0,
                recall=hits / (hits + misses) if hits + misses else 0.0,
                f1=2 * hits / (2 * hits + misses + false_alarms) if hits + misses + false_alarms else 0.0,
            )
        )
    return scores


def measure_csv(path: str | Path, *, columns: str | Sequence[str] | None = None) -> list[FindingScore]:
    """Label annotated reports and compare.

    Args:
        path: Table of reports with a 0/1 column for each of `FINDINGS` (any case).
        columns: Column(s) with the text; by default the usual layouts are recognised.

    Returns:
        A score for each finding; empty reports are left out.

    Raises:
        LabelError: The table cannot be read, lacks a finding, or holds something else than 0 and 1.
    """
    name = Path(path).name
    truth, predicted = [], []
    pairs = zip(read_rows(path), read_reports(path, columns=columns), strict=True)
    for number, (row, report) in enumerate(pairs, start=1):
        if report.is_empty:
            continue
        cells = {column.strip().lower(): cell.strip() for column, cell in row.items()}
        missing = [finding for finding in FINDINGS if finding.lower() not in cells]
        if missing:
            raise LabelError(f"{name} has no column for {', '.join(missing)}: it needs one for each of the 18 findings")
        place = f"{name}, row {number}"
        truth.append({finding: _binary(cells[finding.lower()], f"{place}, {finding}") for finding in FINDINGS})
        predicted.append(label_report(report.text))
    return score_labels(truth, predicted)


def _binary(cell: str, place: str) -> int:
    if cell in ("0", "0.0", "1", "1.0", "True", "False"):
        return int(cell in ("1", "1.0", "True"))
    raise LabelError(f"{place}: the annotation is {cell!r} but must be 0 or 1")


def scores_table(scores: Iterable[FindingScore]) -> str:
    """Write scores as a Markdown table.

    Args:
        scores: One score a finding.

    Returns:
        The table, with the plain mean of the F1 scores (macro F1) in its last line.
    """
    scores = list(scores)
    body = [[s.finding, s.positives, f"{s.precision:.3f}", f"{s.recall:.3f}", f"{s.f1:.3f}"] for s in scores]
    body.append(["macro", "", "", "", f"{macro_f1(scores):.3f}"])
    return "\n".join(table(("finding", "positive", "precision", "recall", "F1"), body))


def macro_f1(scores: Sequence[FindingScore]) -> float:
    """The plain mean of the findings' F1 scores.

    Args:
        scores: One score a finding.

    Returns:
        Macro F1 in 0..1.
    """
    return sum(score.f1 for score in scores) / len(scores)
