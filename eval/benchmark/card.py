"""The card of a finished benchmark, README.md of its folder, and its figures.

python -m voxelfm_hf.eval.benchmark.card OUT     draws OUT again, without pictures of scans
"""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelfm_hf.cards import benchmark_card, score_table
from voxelfm_hf.command import ModuleParser, one_sentence_errors
from voxelfm_hf.eval.benchmark.figures import draw_task
from voxelfm_hf.eval.benchmark.finished import FinishedBenchmark
from voxelfm_hf.eval.benchmark.pictures import draw_pictures
from voxelfm_hf.eval.datasets import BenchmarkData, load_dataset
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.files import written_file
from voxelfm_hf.markdown import cell

MAX_SUBGROUP_ROWS = 60
LIMITS = (
    "One data set and one recipe of probes; a ranking here is no ranking elsewhere. Intervals cover the choice of test "
    "patients (rows or studies where the table names none), not another draw of training patients. Rows of one table "
    "share their patients, so overlapping intervals do not decide: the paired tests do. No use in care."
)
SYNTHETIC = " The scans are synthetic: the numbers say whether the machinery works, nothing about patients."


def write_report(out: Path, data: BenchmarkData | None = None, *, command: str = "") -> Path:
    """Draws the figures of a benchmark and writes README.md, its card.

    Args:
        out: Folder of a finished benchmark (results.json, results.md, predictions/).
        data: The data set, for pictures of scans; without it there are none.
        command: What was typed.

    Returns:
        The path of the card.
    """
    benchmark = FinishedBenchmark(Path(out))
    facts = benchmark.facts
    recipe = facts["recipe"]
    about = load_dataset(recipe["data"]).ABOUT
    intro, tables = _parts(Path(out) / "results.md")
    sections = []
    for task in benchmark.families():
        heading, table = next(((h, t) for h, t in tables.items() if h.startswith(f"{task}: ")), (task, ""))
        if table:
            pictures = draw_task(benchmark, task)
            pictures |= draw_pictures(benchmark, task, data) if data is not None else {}
            sections.append({"title": heading, "table": table, "pictures": pictures})
    counts = ", ".join(f"{name} {count}" for name, count in facts["counts"].items())
    competitors = [row["encoder"] for row in facts["encoders"] if row["kind"] != "reference"]
    card = benchmark_card(
        title=facts["title"] or recipe["data"],
        summary=f"Frozen features of {len(competitors)} encoders and baselines ({', '.join(competitors)}) on "
        f"{about.title}, with the same scans, splits, probes and seeds for all.",
        command=command or f"voxelfm benchmark recipe.yaml --data {recipe['folder'] or 'FOLDER'} --out OUT",
        data=f"{about.title}, from {about.where}. Rows: {counts}.",
        notes=[cell(note) for note in facts["notes"]],
        encoders=[{name: cell(value) for name, value in row.items()} for row in facts["encoders"]],
        cost=_cost(facts["encoders"]),
        reading=intro,
        sections=sections,
        pictures={},
        comparisons=next((table for heading, table in tables.items() if heading.endswith("against the others")), ""),
        subgroups=_subgroups(facts["subgroups"]),
        failures=[cell(f"{row['encoder']} {row['what']}: {row['reason']}") for row in facts["failures"]],
        limits=LIMITS + (SYNTHETIC if recipe["data"] == "phantoms" else ""),
        data_licence=about.licence,
        data_citation=about.citation,
    )
    path = Path(out) / "README.md"
    with written_file(path) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return path


def _parts(results: Path) -> tuple[str, dict[str, str]]:
    """The text below the title of results.md without its notes, and the content of its sections by heading."""
    first, *sections = results.read_text(encoding="utf-8").split("\n## ")
    intro = [block for block in first.split("\n\n")[1:] if not block.lstrip().startswith("- ")]
    parts = {}
    for section in sections:
        heading, _, body = section.partition("\n")
        parts[heading.strip()] = body.strip()
    return "\n\n".join(intro).strip(), parts


def _cost(encoders: Sequence[Mapping[str, Any]]) -> str:
    embedding, fits = (sum(float(row[f"seconds_{what}"]) for row in encoders) for what in ("embedding", "fitting"))
    return (
        f"{embedding:.0f} s of embedding and {fits:.0f} s of fits and predictions in all runs together; the last one "
        f"was on {os.cpu_count()} cores of {platform.machine()}. Energy was not measured."
    )


def _subgroups(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first encoder's scores by level; all of them are in subgroups.csv."""
    if not rows:
        return ""
    first = rows[0]["encoder"]
    shown = [row for row in rows if row["encoder"] == first and row["target"] != MACRO]
    columns = ("task", "target", "column", "level", "metric")
    table = score_table(shown[:MAX_SUBGROUP_ROWS], columns=columns, keep_undefined=True)
    cut = f", the first {MAX_SUBGROUP_ROWS} rows" if len(shown) > MAX_SUBGROUP_ROWS else ""
    return f"Of {first}{cut}; `subgroups.csv` holds all.\n\n{table}"


@one_sentence_errors
def main() -> None:
    parser = ModuleParser("voxelfm_hf.eval.benchmark.card", __doc__)
    parser.add_argument("out", type=Path, help="folder of a finished benchmark")
    options = parser.parse_args()
    print(write_report(options.out))


if __name__ == "__main__":
    sys.exit(main())
