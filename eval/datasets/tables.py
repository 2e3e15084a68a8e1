"""Reading the tables of published data sets: every column that is missing and every odd number gets its sentence."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelfm_hf.data.reports import read_rows
from voxelfm_hf.eval.datasets import About
from voxelfm_hf.eval.labels import LabelTable
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


def required_rows(path: Path, about: About, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV (comma or semicolon), TSV or Parquet table as text.

    Args:
        path: The table.
        about: The data set, for messages.
        columns: Columns it must have.

    Raises:
        DatasetError: the file or a column is missing.
        LabelError: the file cannot be read as a table, or has no rows.
    """
    rows = list(read_rows(required(path, about)))
    missing = [column for column in columns if column not in rows[0]]
    if missing:
        raise DatasetError(
            f"{path} has no column {', '.join(missing)} (it has {', '.join(rows[0])}): it is not the table that "
            f"{about.title} is published with at {about.where}"
        )
    return rows


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
