"""Radiology reports from the tables that hold them: CT-RATE's, Merlin's, or any CSV, TSV or Parquet with texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from voxelfm_hf.column_names import usual_column
from voxelfm_hf.csv_rows import csv_rows
from voxelfm_hf.data.reports.text import split_sections
from voxelfm_hf.volumes.errors import LabelError

# What some tables hold where a section is missing.
_PLACEHOLDERS = {"", "nan", "none", "null", "n/a", "not given", "not given."}


@dataclass(frozen=True)
class Report:
    """One radiology report.

    Attributes:
        id: Name of the scan or study, or the number of the row, from 1, where the table has none.
        findings: What was seen; the whole text of a report without headings.
        impression: The conclusion, empty if the report has none.
        numbered: Whether the id is the number of the row.
    """

    id: str
    findings: str
    impression: str
    numbered: bool = field(default=False, compare=False)

    @property
    def text(self) -> str:
        """Findings and impression, one below the other."""
        return "\n".join(part for part in (self.findings, self.impression) if part)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to read."""
        return not self.text


def parse_report(text: str, *, id: str = "") -> Report:
    """Take findings and impression out of a free-text report ("FINDINGS: ... IMPRESSION: ...").

    Args:
        text: The whole report. Indication, technique, comparison and recommendations are left out.
        id: A name for it.

    Returns:
        The report; text before or without headings counts as findings.
    """
    parts: dict[str, list[str]] = {"": [], "findings": [], "impression": []}
    for section in split_sections(text):
        if section.title in parts and section.text.lower() not in _PLACEHOLDERS:
            parts[section.title].append(section.text)
    # Before the first heading stands a title, unless no section of findings follows.
    findings = parts["findings"] or parts[""]
    return Report(id=id, findings="\n".join(findings), impression="\n".join(parts["impression"]))


@dataclass(frozen=True)
class Layout:
    """Names of the columns of a table of reports, lower case; the first that exists is taken.

    Ids are found however they are written (see `usual_column`).

    Attributes:
        findings: Columns with the findings section, or with the whole report.
        impression: Columns with the impression section.
        id: Columns that name the scan or study.
    """

    findings: tuple[str, ...]
    impression: tuple[str, ...]
    id: tuple[str, ...]


_IDS = (
    "id",
    "scan_id",
    "study_id",
    "volume_name",
    "accession_number",
    "accession_no",
    "accession",
    "report_id",
    "exam_id",
    "series_instance_uid",
    "series_uid",
    "study_instance_uid",
    "study_uid",
)
# Some tables name the study by it, others say what was examined: taken where no other column is and it has no repeats.
_UNSURE_ID = "study"
CT_RATE = Layout(("findings_en",), ("impressions_en", "impression_en"), ("volume_name", *_IDS))
MERLIN = Layout(("findings",), ("impression", "impressions"), ("study_id", "volume_name", *_IDS))
PLAIN = Layout(("report_text", "report", "text"), (), (*_IDS, "name", "path"))
LAYOUTS = (CT_RATE, MERLIN, PLAIN)


def read_reports(
    path: str | Path, *, columns: str | Sequence[str] | None = None, id_column: str | None = None
) -> Iterator[Report]:
    """Read a table of reports row by row.

    Args:
        path: A CSV (UTF-8; comma or semicolon), TSV or Parquet file with one report a row.
        columns: Columns with the text; several are joined. By default the layout is recognised: CT-RATE
            (Findings_EN, Impressions_EN), Merlin (Findings), or report_text, report or text.
        id_column: Column that names the scan or study; by default a usual name, else the row number is used.

    Returns:
        An iterator over the reports in file order; an empty one has empty findings and impression.

    Raises:
        LabelError: The file is missing, unreadable, without rows, or lacks a column.
    """
    rows = read_rows(path)
    first = next(rows)
    chosen = _choose_columns(Path(path), list(first), columns, id_column)

    def reports() -> Iterator[Report]:
        number = 1
        yield _report_of(first, chosen, number)
        for number, row in enumerate(rows, start=2):
            yield _report_of(row, chosen, number)

    return reports()


@dataclass(frozen=True)
class _Chosen:
    findings: tuple[str, ...]
    impression: str | None
    id: str | None


def _choose_columns(
    path: Path, header: list[str], columns: str | Sequence[str] | None, id_column: str | None
) -> _Chosen:
    by_name = {name.strip().lower(): name for name in header}
    for name in [*([columns] if isinstance(columns, str) else columns or []), *([id_column] if id_column else [])]:
        if name not in header:
            raise LabelError(f"{path.name} has no column {name!r}: it has {_listed(header)}; name one of these")
    if columns:
        findings: tuple[str, ...] = (columns,) if isinstance(columns, str) else tuple(columns)
        return _Chosen(findings, None, id_column or _id_of(PLAIN, header, path))
    for layout in LAYOUTS:
        text = _first_of(layout.findings, by_name)
        if text is not None:
            impression = _first_of(layout.impression, by_name)
            return _Chosen((text,), impression, id_column or _id_of(layout, header, path))
    raise LabelError(
        f"{path.name} has no column known to hold reports (Findings_EN, Findings, report_text, report, text): "
        f"it has {_listed(header)}; name the column with the text"
    )


def _first_of(names: Sequence[str], by_name: dict[str, str]) -> str | None:
    return next((by_name[name] for name in names if name in by_name), None)


def _id_of(layout: Layout, header: list[str], path: Path) -> str | None:
    """The column of ids: the likeliest that is there, in whatever spelling."""
    found = next((found for name in layout.id if (found := usual_column(header, (name,))) is not None), None)
    unsure = usual_column(header, (_UNSURE_ID,))
    if found is not None or unsure is None:
        return found
    given = [name for row in read_rows(path) if (name := row[unsure].strip())]
    return unsure if len(set(given)) == len(given) else None


def _listed(header: list[str]) -> str:
    shown = ", ".join(repr(name) for name in header[:12])
    return shown if len(header) <= 12 else f"{shown} and {len(header) - 12} more"


def _report_of(row: dict[str, str], chosen: _Chosen, number: int) -> Report:
    name = row[chosen.id].strip() if chosen.id else ""
    text = "\n".join(part for part in (_cell(row, column) for column in chosen.findings) if part)
    parsed = replace(parse_report(text, id=name or str(number)), numbered=not name)
    impression = _cell(row, chosen.impression) if chosen.impression else ""
    if not impression:
        return parsed
    impression = parse_report(impression).text or impression
    return replace(parsed, findings=parsed.findings or text, impression=impression)


def _cell(row: dict[str, str], column: str) -> str:
    text = row[column].strip()
    return "" if text.lower() in _PLACEHOLDERS else text


def read_rows(path: str | Path) -> Iterator[dict[str, str]]:
    """Read a CSV, TSV or Parquet table row by row, every cell as text.

    Args:
        path: The file.

    Returns:
        An iterator over at least one row.

    Raises:
        LabelError: The file is missing, is no such table, or has no rows; at the first row or at the row in question.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelError(f"{path} is not a file: name a CSV, TSV or Parquet table of reports")
    if path.suffix.lower() in (".xlsx", ".xls"):
        raise LabelError(f"{path.name} is a spreadsheet: save it as CSV (UTF-8) first")
    if path.suffix.lower() != ".parquet":
        yield from (row for _, row in csv_rows(path))
        return
    count = 0
    for count, row in enumerate(_parquet_rows(path), start=1):  # noqa: B007
        yield row
    if not count:
        raise LabelError(f"{path.name} has no rows: it needs a header line and one line a report")


def _parquet_rows(path: Path) -> Iterator[dict[str, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    yield {name: "" if cell is None else str(cell) for name, cell in row.items()}
    except (pyarrow.ArrowException, OSError):
        raise LabelError(f"{path.name} cannot be read as Parquet: check that the file is complete") from None
