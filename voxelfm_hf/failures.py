"""failures.csv: what of a batch could not be done, and why, by id; one file in the folder of its results.

A benchmark's failures.csv is another table: encoder, what (a task; empty for the encoder itself) and reason.
"""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from voxelfm_hf.files import written_file

FAILURES_FILE = "failures.csv"
FAILURES_SHOWN = 20  # on the terminal


def alike(failures: Mapping[str, str]) -> list[tuple[str, int]]:
    """What failed with its reason, those of one reason once, and how many more there are of each."""
    groups: dict[str, list[str]] = {}
    for identifier, reason in failures.items():
        said = reason if identifier in reason else f"{identifier}: {reason}"
        groups.setdefault(re.sub(r"[\d.]+", "", said.replace(identifier, "")), []).append(said)
    return [(said[0], len(said) - 1) for said in groups.values()]


def failures_in_a_sentence(failures: Mapping[str, str], where: Path) -> str:
    """What failed, as far as it is said of a batch, and the file that lists all of it, for the end of an error."""
    said = [f"{first} (and {more} more)" if more else first for first, more in alike(failures)[:FAILURES_SHOWN]]
    return f"{'; '.join(said)}; all listed in {where}"


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
