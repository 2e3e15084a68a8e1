"""The usual names of columns, found however a table writes them: PatientID, patient_id and "Patient ID" are one."""

import re
from collections.abc import Iterable, Sequence

PATIENT_COLUMNS = (
    "patient_id",
    "patient",
    "subject_id",
    "subject",
    "participant_id",
    "participant",
    "pid",
    "case_id",
)
SPLIT_ALIASES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


def split_name(cell: object) -> str:
    """The split that a cell of a table names: train, val or test however it is written; empty where it names none."""
    name = "" if cell is None else str(cell).strip().lower()
    return SPLIT_ALIASES.get(name, name)


def usual_column(available: Iterable[str], usual: Sequence[str]) -> str | None:
    """The first of the usual names that is a column, or None.

    Args:
        available: The columns of a table.
        usual: Names, the likelier first; one that is there letter by letter goes before any that differs in case,
            spaces, "_" or "-".
    """
    names = list(available)
    plain = {_plain(name): name for name in reversed(names)}
    return next(
        (name for name in usual if name in names),
        next((plain[_plain(name)] for name in usual if _plain(name) in plain), None),
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()
