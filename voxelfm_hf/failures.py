"""failures.csv: what of a batch could not be done, and why, by id; one file in the folder of its results.

A benchmark's failures.csv is another table: encoder, what (a task; empty for the encoder itself) and reason.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from voxelfm_hf.files import written_file

FAILURES_FILE = "failures.csv"
FAILURES_SHOWN = 20  # on the terminal


def write_failures(folder: Path, failures: Mapping[str, str]) -> None:
    """Replaces a folder's list: reasons by id; an empty list says that nothing failed."""
    with written_file(folder / FAILURES_FILE) as path, open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "reason"))
        writer.writerows(sorted(failures.items()))


def read_failures(folder: Path) -> dict[str, str]:
    """Reasons by id; empty where nothing is listed."""
    try:
        with open(folder / FAILURES_FILE, newline="", encoding="utf-8") as file:
            return {row["id"]: row["reason"] for row in csv.DictReader(file)}
    except FileNotFoundError:
        return {}
