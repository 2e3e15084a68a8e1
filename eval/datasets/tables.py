"""Reading the tables of published data sets: every column that is missing and every odd number gets its sentence."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelfm_hf.data.reports import read_rows
from voxelfm_hf.eval.datasets import About
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.features import Task
from voxelfm_hf.scan_list import Scan
from voxelfm_hf.volumes.errors import DatasetError

EMPTY = ("", "na", "n/a", "nan", "none", "null", "unknown")


def required(path: Path, about: About) -> Path:
    """The path, which must exist.

    Raises:
        DatasetError: it does not; says where the data set is to be had and what it looks like.
    """
    if not path.exists():
        raise DatasetError(
            f"{path} does not exist: get {about.title} from {about.where} and lay it out as {about.layout}"
        )
    return path


def required_rows(path: Path, about: About, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV (comma or semicolon), TSV or Parquet table as text, one by one.

    Args:
        path: The table.
        about: The data set, for messages.
        columns: Columns it must have.

    Raises:
        DatasetError: the file or a column is missing.
        LabelError: the file cannot be read as a table, or has no rows.
    """
    for count, row in enumerate(read_rows(required(path, about))):
        missing = [column for column in columns if column not in row] if count == 0 else []
        if missing:
            raise DatasetError(
                f"{path} has no column {', '.join(missing)} (it has {', '.join(row)}): it is not the table that "
                f"{about.title} is published with at {about.where}"
            )
        yield row


def on_disk(
    rows: Sequence[dict[str, Any]], folder: Path, about: About, *, column: str = "file"
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows whose file or folder exists, and a note on how many do not: large data sets are often there in part.

    Args:
        rows: With a path relative to the folder in `column`.
        folder: Of the data set.
        about: The data set, for messages.
        column: Its name.

    Raises:
        DatasetError: none exists.
    """
    found = [row for row in rows if (folder / row[column]).exists()]
    if not found:
        example = f" (for example {rows[0][column]})" if rows else ""
        raise DatasetError(
            f"{folder} holds none of the {len(rows)} scans of {about.title}{example}: get them from {about.where} and "
            f"lay them out as {about.layout}"
        )
    lost = len(rows) - len(found)
    return found, [f"{lost} of {len(rows)} listed scans are not in the folder and were left out"] if lost else []


def whole_scans(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Task]:
    """What to embed: the file of each row under its id."""
    return [Task(Scan(str(row["id"]), folder / row["file"], named=True)) for row in rows]


def varying(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[str, ...]:
    """Those of the columns that hold two different values or more; others tell nothing and cannot be learned from."""
    return tuple(name for name in names if len({row.get(name) for row in rows} - {None}) > 1)


def held_out(name: str, *, share: float) -> bool:
    """Whether a patient belongs to a held-out share of a published training split; the same on every machine."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < share * 2**32


def age_years(text: str | None) -> int | None:
    """An age as DICOM writes it ("058Y") or in plain years; None for anything else."""
    match = re.fullmatch(r"0*(\d{1,3})(?:\.\d+)?Y?", (text or "").strip())
    return int(match[1]) if match else None


def number(text: str | None, *, column: str, path: Path) -> float | None:
    """A cell as a number, None where it is empty or says that the value is not known."""
    cell = (text or "").strip()
    if cell.lower() in EMPTY:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(f"{path}: column {column} holds {cell}, which is no number: correct or empty the cell")
    return value


def label_table(source: str, rows: Iterable[Mapping[str, Any]]) -> LabelTable:
    """A label table of rows with the key `id`; a column that a row lacks is empty there."""
    listed = list(rows)
    names = dict.fromkeys(name for row in listed for name in row)
    columns = {name: [row.get(name) for row in listed] for name in names}
    return LabelTable(source, [str(value) for value in columns.get("id", [])], columns)
