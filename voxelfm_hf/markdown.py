"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[object], body: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table."""
    return [_line(header), "|" + "---|" * len(header), *map(_line, body)]


def cell(text: object) -> str:
    """Text that stays in its cell."""
    return " ".join(str(text).replace("|", "\\|").split())


def _line(row: Sequence[object]) -> str:
    return "| " + " | ".join(map(cell, row)) + " |"
