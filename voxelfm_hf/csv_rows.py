"""CSV files that people write: rows as text with their lines, and a sentence for everything that is wrong with one."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from voxelfm_hf.volumes.errors import LabelError


def csv_rows(path: str | Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads a CSV (UTF-8; comma or semicolon) or TSV row by row.

    Args:
        path: The file.
        needed: Columns that must be there and filled in every row.

    Yields:
        (line that the row ends on, column -> text); cells that a short row lacks are empty.

    Raises:
        LabelError: The file is missing, is no such table, has no rows, lacks a column or has one name twice; or a row
            lacks a needed cell or has more cells than there are columns.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelError(f"{path} is not a file: name a CSV")
    csv.field_size_limit(2**31 - 1)
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header_line = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter_of(path, header_line), restval="", strict=True)
            _check_header(path, list(reader.fieldnames or ()), needed)
            for row in reader:
                line = reader.line_num
                if any(row.pop(None, ())):  # type: ignore[call-overload]
                    raise LabelError(
                        f"{path} line {line}: there are more cells than columns: put texts with commas or line breaks "
                        "in quotation marks"
                    )
                empty = [name for name in needed if not row[name].strip()]
                if empty:
                    raise LabelError(f"{path} line {line}: {empty[0]} is empty: fill it in or remove the row")
                yield line, row
    except UnicodeDecodeError:
        raise LabelError(f"{path} is not UTF-8 text: save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise LabelError(f"{path} cannot be read as CSV ({error}): check its quotation marks") from None
    except OSError as error:
        raise LabelError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from None
    if not line:
        raise LabelError(f"{path} has no rows: it needs a header line and a line for each")


def delimiter_of(path: Path, header_line: str) -> str:
    """What stands between the cells of a CSV (comma or semicolon) or TSV."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return ";" if ";" in header_line and "," not in header_line else ","


def _check_header(path: Path, names: list[str], needed: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1 and name]
    if repeated:
        raise LabelError(f"{path} line 1: column {repeated[0]} occurs twice: give every column a name of its own")
    missing = [name for name in needed if name not in names]
    if missing:
        raise LabelError(f"{path} has no column {', '.join(missing)}: it needs {', '.join(needed)}")
