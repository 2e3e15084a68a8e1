"""Results as CSV and JSON: whole or not at all, with numbers that are not defined left empty."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.files import written_file


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], *, fields: Sequence[str] | None = None) -> None:
    """Writes rows; a field that a row lacks and a number that is not defined are empty cells.

    Args:
        path: The file.
        rows: Field -> value.
        fields: The columns; by default all fields in the order in which the rows have them.
    """
    rows = list(rows)
    fields = list(dict.fromkeys(name for row in rows for name in row)) if fields is None else fields
    with written_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows({name: _defined(row.get(name)) for name in fields} for row in rows)


def write_json(path: Path, value: Any) -> None:
    """Writes a value of dictionaries, sequences, texts and numbers; one that is not defined becomes null."""
    with written_file(path) as temporary:
        temporary.write_text(json.dumps(_plain(value), indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _defined(value.item() if isinstance(value, np.generic) else value)


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
