"""The numbers of README.md and docs/results.md: `python docs/make_tables.py` writes both pages from docs/results/.

docs/results/ is made by docs/measure.py. docs/results.md is the template of its name; in README.md the parts between
`<!-- NAME.md.jinja -->` and `<!-- end -->` are.
"""

import csv
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

DOCS = Path(__file__).parent
KEPT = DOCS / "results"
README = DOCS.parent / "README.md"
PART = re.compile(r"<!-- (\S+\.md\.jinja) -->\n.*?<!-- end -->", re.DOTALL)

Row = dict[str, str]


@cache
def _rows(name: str) -> list[Row]:
    with open(KEPT / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@cache
def runs() -> dict[str, Any]:
    """Commands, dates, machines and times of all measurements."""
    return json.loads((KEPT / "runs.json").read_text())


def dates(prefix: str) -> str:
    """First and last day of the measurements whose names begin so."""
    days = sorted({run["date"] for name, run in runs().items() if name.startswith(prefix)})
    return " to ".join(days if len(days) < 2 else (days[0], days[-1]))


def row(name: str, *, fraction: float = 1.0, **wanted: str) -> Row:
    """The one row of a table whose columns hold these values; a column that is not named does not matter.

    Raises:
        LookupError: none or several do.
    """
    found = [
        row
        for row in _rows(name)
        if all(row[column] == value for column, value in wanted.items())
        and ("fraction" not in row or float(row["fraction"]) == fraction)
    ]
    if len(found) != 1:
        raise LookupError(f"{name} has {len(found)} rows with {wanted}")
    return found[0]


def number(value: str, *, digits: int = 3, sign: bool = False) -> str:
    """A number as tables show it."""
    return f"{float(value):{'+' if sign else ''}.{digits}f}"


def with_interval(row: Row, *, digits: int = 3, sign: bool = False) -> str:
    """value [low, high] of a row with either a value or a difference; ends that are the value itself are left out."""
    key = "difference" if "difference" in row else "value"
    value, low, high = (
        row[column] and number(row[column], digits=digits, sign=sign) for column in (key, "low", "high")
    )
    return value if low in ("", "nan") or low == high == value else f"{value} [{low}, {high}]"


def score(name: str, encoder: str, task: str, target: str, digits: int = 3, **wanted: Any) -> str:
    """Score of an encoder with its interval."""
    return with_interval(row(name, encoder=encoder, task=task, target=target, **wanted), digits=digits)


def value(name: str, encoder: str, task: str, target: str, digits: int = 3, **wanted: Any) -> str:
    """Score of an encoder without an interval."""
    return number(row(name, encoder=encoder, task=task, target=target, **wanted)["value"], digits=digits)


def compared(name: str, second: str, task: str, target: str, digits: int = 3) -> str:
    """The first encoder minus another."""
    return with_interval(row(f"{name}-compared", second=second, task=task, target=target), digits=digits, sign=True)


def p_value(name: str, second: str, task: str, target: str, column: str = "p_value") -> str:
    """p of that difference; `column="p_holm"` after Holm's correction."""
    return f"{float(row(f'{name}-compared', second=second, task=task, target=target)[column]):.2g}"


def command(name: str) -> str:
    """What was run, as code."""
    return " && ".join(f"`{command}`" for command in runs()[name]["commands"])


def minutes(*names: str) -> str:
    """Processor time of the shortest and the longest of some runs."""
    taken = [run["processor_seconds"] / 60 for run in map(runs().get, names)]
    return f"{math.floor(min(taken))} to {math.ceil(max(taken))} processor minutes"


def printed(name: str, pattern: str) -> list[str]:
    """What a pattern's group finds in the lines that a command printed, all of them.

    Raises:
        LookupError: nothing.
    """
    found = re.findall(pattern, (KEPT / f"{name}.txt").read_text(), re.MULTILINE)
    if not found:
        raise LookupError(f"{name}.txt has nothing like {pattern}")
    return found


def render(template: str) -> str:
    """A template of docs/templates/ with the numbers in it."""
    environment = Environment(
        loader=FileSystemLoader(DOCS / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    helpers: tuple[Callable[..., Any], ...] = (
        row, number, with_interval, score, value, compared, p_value, command, printed, minutes, runs, dates,
    )  # fmt: skip
    environment.globals |= {helper.__name__: helper for helper in helpers}
    return environment.get_template(template).render()


def pages() -> dict[Path, str]:
    """The pages and what they should say."""
    filled = PART.sub(lambda part: f"<!-- {part[1]} -->\n{render(part[1])}<!-- end -->", README.read_text("utf-8"))
    return {DOCS / "results.md": render("results.md.jinja"), README: filled}


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, "utf-8")
        print(page)
