"""Label tables: reading, matching to a feature store, and targets of every kind, each bad input with its sentence."""

import codecs
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from voxelfm_hf.column_names import PATIENT_COLUMNS, usual_column
from voxelfm_hf.csv_rows import delimiter_of
from voxelfm_hf.volumes.errors import LabelError
from voxelfm_hf.volumes.find import format_ending

ID_COLUMNS = ("id", "file", "path", "scan", "source", "image")
STUDY_COLUMNS = ("study_id", "study", "study_uid", "study_instance_uid", "accession", "accession_number")
_NOT_UTF8 = "{} is not UTF-8 text: save the table as UTF-8"
YES, NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}


@dataclass(frozen=True, eq=False)
class LabelTable:
    """A table of labels, one row a scan or region.

    Args:
        source: The file name or data set, for messages.
        ids: The id of each row, unique.
        columns: Column name -> values; a missing value is None.
    """

    source: str
    ids: list[str]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> list[Any]:
        """The values of a column; LabelError with the names there are if it is missing."""
        if name not in self.columns:
            raise LabelError(f"{self.source} has no column {name}: it has {', '.join(self.columns)}")
        return self.columns[name]

    def first_of(self, names: Sequence[str]) -> str | None:
        """The first of the names that is a column (see `usual_column`), or None."""
        return usual_column(self.columns, names)

    def take(self, rows: Sequence[int] | np.ndarray) -> "LabelTable":
        """The table of some rows, in their order."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        return LabelTable(self.source, [self.ids[i] for i in rows], columns)


def read_labels(
    source: str | Path | Any, *, id_column: str | None = None, patient_column: str | None = None
) -> LabelTable:
    """Reads labels from a CSV (UTF-8; comma or semicolon), TSV or Parquet file or an HF data set.

    Args:
        source: A path, or a `datasets.Dataset`.
        id_column: The column that names the scan as the feature store does; by default the first of id, file, path,
            scan, source, image (see `usual_column`).
        patient_column: The column that tells patients apart; by default the first of `PATIENT_COLUMNS` that exists.

    Returns:
        LabelTable: ids are strings; empty cells, NA and NaN are None. Ids, patients and studies of a CSV are as they
        are written: 007 and 7 are two.

    Raises:
        LabelError: the file cannot be read, is empty, has no id column, two columns have one name, or an id is missing
            or repeated.
    """
    table, name = _arrow_table(source, id_column, patient_column)
    named_twice = [column for column, count in Counter(table.column_names).items() if count > 1 and column]
    if named_twice:
        raise LabelError(f"{name} has more than one column {named_twice[0]}: give every column a name of its own")
    garbled = [str(field.name) for field in table.schema if pa.types.is_binary(field.type)]
    if garbled:
        raise LabelError(f"{name}: column {garbled[0]} is not UTF-8 text: save the table as UTF-8")
    columns = {
        str(column): _without_nan(values.to_pylist())
        for column, values in zip(table.column_names, table.columns, strict=True)
    }
    if table.num_rows == 0:
        raise LabelError(f"{name} holds no rows: fill in one a scan")
    found = _id_column(list(columns), id_column)
    if found is None:
        raise LabelError(
            f"{name} has no column {id_column or ' or '.join(ID_COLUMNS)} to match scans by: its columns are "
            f"{', '.join(columns)}; name the right one with --id-column"
        )
    if any(value is None for value in columns[found]):
        raise LabelError(
            f"{name} has {columns[found].count(None)} rows without a value in {found}: fill or remove them"
        )
    ids = [str(value) for value in columns[found]]
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        raise LabelError(f"{name} has {len(repeated)} ids more than once ({_examples(repeated)}): keep one row an id")
    return LabelTable(name, ids, columns)


def match_to_store(labels: LabelTable, store_ids: Sequence[str], *, allow_missing: bool = False) -> np.ndarray:
    """For every label row, the row of the store with the same id.

    Ids match when they are equal, or when one ends with "/" and the other and no second one does. One of them may lack
    the ending of the file: labels are often of "scan-1" where the store has "scan-1.nii.gz".

    Args:
        labels: The labels.
        store_ids: Ids of the store, in its order.
        allow_missing: Accept labels without features; they get -1.

    Returns:
        (labels,) row numbers of the store.

    Raises:
        LabelError: labels without features (how many, examples), or two labels of one row.
    """
    exact = {identifier: row for row, identifier in enumerate(store_ids)}
    by_name: dict[str, list[int]] = {}
    for row, identifier in enumerate(store_ids):
        by_name.setdefault(_without_ending(identifier.rsplit("/", 1)[-1]), []).append(row)
    rows = []
    for identifier in labels.ids:
        row = exact.get(identifier, -1)
        if row < 0:
            named = by_name.get(_without_ending(identifier.rsplit("/", 1)[-1]), [])
            near = [r for r in named if _is_end(identifier, store_ids[r])]
            if not near:
                near = [
                    r
                    for r in named
                    if _is_end(identifier, _without_ending(store_ids[r]))
                    or _is_end(_without_ending(identifier), store_ids[r])
                ]
            row = near[0] if len(near) == 1 else -1
        rows.append(row)
    found = np.array(rows)
    missing = [identifier for identifier, row in zip(labels.ids, rows, strict=True) if row < 0]
    if len(missing) == len(labels):
        raise LabelError(
            f"none of the {len(labels)} ids of {labels.source} ({_examples(labels.ids)}) is in the feature store "
            f"({_examples(store_ids)}): make them equal or name another id column"
        )
    if missing and not allow_missing:
        raise LabelError(
            f"{len(missing)} of {len(labels)} ids of {labels.source} have no features ({_examples(missing)}): embed "
            "these scans, remove the rows, or leave them out (--allow-missing)"
        )
    taken = Counter(row for row in rows if row >= 0)
    twice = [store_ids[row] for row, count in taken.items() if count > 1]
    if twice:
        raise LabelError(f"{labels.source} labels {len(twice)} scans twice ({_examples(twice)}): keep one row a scan")
    return found


def _is_end(first: str, second: str) -> bool:
    """Whether two ids are one, or one of them the end of the other as a path."""
    return f"/{first}".endswith(f"/{second}") or f"/{second}".endswith(f"/{first}")


def _without_ending(identifier: str) -> str:
    return identifier[: len(identifier) - len(format_ending(identifier))]


def binary_target(labels: LabelTable, column: str) -> np.ndarray:
    """(n,) 0.0 or 1.0, NaN where empty; LabelError for other values or when only one class occurs."""
    values = labels.column(column)
    texts = ["" if value is None else str(value).strip().lower() for value in values]
    unknown = sorted({str(values[i]) for i, text in enumerate(texts) if text and text not in YES | NO})
    if unknown:
        raise LabelError(
            f"{labels.source}: column {column} holds {_examples(unknown)}, which is neither 0 nor 1 (or empty where "
            "unknown): recode it; class names are for --exclusive, numbers for --task regression"
        )
    target = np.array([1.0 if text in YES else 0.0 if text in NO else np.nan for text in texts])
    known = target[np.isfinite(target)]
    if not len(known) or known.min() == known.max():
        state = f"only {int(known[0])}" if len(known) else "no values"
        raise LabelError(f"{labels.source}: column {column} holds {state}: a classifier needs both 0 and 1")
    return target


def class_target(
    labels: LabelTable, column: str, *, classes: Sequence[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Class numbers (n,), NaN where empty, and the class names.

    Args:
        labels: The labels.
        column: Its name.
        classes: The allowed names in their order; by default the values that occur, sorted.

    Raises:
        LabelError: a value outside `classes`, or fewer than two classes.
    """
    texts = [None if value is None else str(value).strip() for value in labels.column(column)]
    present = sorted({text for text in texts if text is not None})
    names = list(classes) if classes is not None else present
    unknown = [text for text in present if text not in names]
    if unknown:
        raise LabelError(
            f"{labels.source}: column {column} holds {_examples(unknown)}, not among the classes {', '.join(names)}"
        )
    if len(present) < 2:
        raise LabelError(f"{labels.source}: column {column} holds {len(present)} class: a classifier needs two or more")
    number = {name: float(index) for index, name in enumerate(names)}
    return np.array([np.nan if text is None else number[text] for text in texts]), names


def number_target(labels: LabelTable, column: str) -> np.ndarray:
    """(n,) numbers, NaN where empty; LabelError for text, infinities or a constant column."""
    target = _numbers(labels, column)
    known = target[np.isfinite(target)]
    if len(known) == 0:
        raise LabelError(f"{labels.source}: column {column} holds no number")
    if known.min() == known.max():
        raise LabelError(f"{labels.source}: column {column} is {known[0]:g} in every row: there is nothing to learn")
    return target


def survival_target(labels: LabelTable, *, time: str = "time", event: str = "event") -> np.ndarray:
    """(n, 2) follow-up time and event; rows with either empty are NaN.

    Raises:
        LabelError: a negative time, an event other than 0 or 1, or no event at all.
    """
    times, events = _numbers(labels, time), _numbers(labels, event)
    if (times < 0).any():
        raise LabelError(
            f"{labels.source}: column {time} is negative in {int((times < 0).sum())} rows: follow-up times start at 0"
        )
    wrong = np.unique(events[np.isfinite(events) & ~np.isin(events, (0, 1))])
    if len(wrong):
        raise LabelError(
            f"{labels.source}: column {event} holds {_examples([f'{w:g}' for w in wrong])}: use 1 for an event, 0 for "
            "censored"
        )
    target = np.stack([times, events], axis=1)
    target[~np.isfinite(target).all(axis=1)] = np.nan
    if not (target[:, 1] == 1).any():
        raise LabelError(f"{labels.source}: no row has an event in column {event}: a survival probe needs some")
    return target


def point_target(labels: LabelTable, columns: Sequence[str]) -> np.ndarray:
    """(n, points, 3) LPS millimetres from columns x, y, z of each point in turn; NaN where one of them is empty."""
    if len(columns) == 0 or len(columns) % 3:
        raise LabelError(f"a point is three columns (x, y, z in LPS mm), got {len(columns)}: {', '.join(columns)}")
    points = np.stack([_numbers(labels, column) for column in columns], axis=1).reshape(len(labels), -1, 3)
    points[~np.isfinite(points).all(axis=2)] = np.nan
    if np.isnan(points).all():
        raise LabelError(f"{labels.source}: no row has a point in {', '.join(columns)}")
    return points


def _numbers(labels: LabelTable, column: str) -> np.ndarray:
    values = labels.column(column)
    numbers = np.full(len(values), np.nan)
    text = []
    for index, value in enumerate(values):
        try:
            numbers[index] = np.nan if value is None else float(value)
        except (TypeError, ValueError):
            text.append(str(value))
    if text:
        raise LabelError(
            f"{labels.source}: column {column} holds {_examples(sorted(set(text)))}, which is no number: "
            "write 1.5, with a point, and leave cells empty where it is unknown"
        )
    if np.isinf(numbers).any():
        raise LabelError(f"{labels.source}: column {column} is infinite in {int(np.isinf(numbers).sum())} rows")
    return numbers


def _id_column(names: Sequence[str], id_column: str | None) -> str | None:
    if id_column is None:
        return usual_column(names, ID_COLUMNS)
    return id_column if id_column in names else None


def _arrow_table(source: str | Path | Any, id_column: str | None, patient_column: str | None) -> tuple[pa.Table, str]:
    """The table and a short name for messages."""
    if not isinstance(source, (str, Path)):
        kept = [name for name, kind in source.features.items() if getattr(kind, "dtype", None) is not None]
        return source.select_columns(kept).with_format("arrow")[:], "the data set"
    path = Path(source)
    if not path.is_file():
        raise LabelError(f"{path} is not a file: name a CSV or Parquet file with labels")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pa.parquet.read_table(path), path.name
        with pa.input_stream(str(path)) as stream:
            content = stream.read()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise LabelError(_NOT_UTF8.format(path.name))
        header_line = io.BytesIO(content).readline().decode(errors="replace")
        parsing = pa.csv.ParseOptions(delimiter=delimiter_of(path, header_line), newlines_in_values=True)
        with pa.csv.open_csv(pa.BufferReader(content), parse_options=parsing) as reader:
            names = reader.schema.names
        patient = patient_column or usual_column(names, PATIENT_COLUMNS)
        naming = (_id_column(names, id_column), patient, usual_column(names, STUDY_COLUMNS))
        converting = pa.csv.ConvertOptions(
            strings_can_be_null=True, column_types={column: pa.string() for column in naming if column}
        )
        table = pa.csv.read_csv(pa.BufferReader(content), parse_options=parsing, convert_options=converting)
        return table, path.name
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if "Empty CSV" in str(error):
            raise LabelError(f"{path} is empty: fill in one row a scan") from None
        if "invalid UTF8" in str(error):
            raise LabelError(_NOT_UTF8.format(path.name)) from None
        if cells := re.search(r"Expected (\d+) columns, got (\d+)", str(error)):
            raise LabelError(
                f"{path}: a row has {cells[2]} cells, the header {cells[1]}: put texts with commas or line breaks in "
                "quotation marks, and write decimals with a point"
            ) from None
        raise LabelError(f"{path} cannot be read as a table: save it as CSV (UTF-8) or Parquet") from None
    except OSError as error:
        raise LabelError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from None


def _without_nan(values: list[Any]) -> list[Any]:
    return [None if isinstance(value, float) and np.isnan(value) else value for value in values]


def _examples(values: Sequence[str]) -> str:
    shown = ", ".join(str(value) for value in values[:3])
    return shown + (", ..." if len(values) > 3 else "")
