"""An encoder's benchmark scores in the header of its card, and on the leaderboards of the Hub.

    python -m voxelfm_hf.eval.benchmark.backbone_scores OUT [OUT …] --encoder tiny --model FOLDER

OUT is the folder of a finished `voxelfm benchmark`, FOLDER that of the encoder with its README.md. Its header gets the
scores of all OUT in place of those it had. With --dataset-id and --task-ids the scores of one OUT also become
`.eval_results/` entries, which the Hub shows on the leaderboard of a data set that has one: --dataset-id user/name
--task-ids classification/malignant=nodules, where its eval.yaml says nodules.
"""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from voxelfm_hf.card_results import add_model_index, eval_entry, model_index, write_eval_results
from voxelfm_hf.command import ModuleParser, one_sentence_errors
from voxelfm_hf.eval.datasets import load_dataset
from voxelfm_hf.files import written_file
from voxelfm_hf.volumes.errors import CardError


def score_backbone(
    outs: Sequence[Path],
    encoder: str,
    model: Path,
    *,
    dataset_id: str | None = None,
    task_ids: Mapping[str, str] | None = None,
) -> list[Path]:
    """Puts an encoder's main scores at all labels into the header of its card, and into `.eval_results/`.

    Args:
        outs: Folders of finished benchmarks (results.csv, results.json).
        encoder: Its name there.
        model: Folder with the README.md of the encoder; its text is left as it is.
        dataset_id: Hub id of the data, of one benchmark.
        task_ids: "task/target" -> name of the task in the eval.yaml of that data set.

    Returns:
        The files written.

    Raises:
        CardError: no such benchmark, encoder, card or target.
    """
    if dataset_id is not None and len(outs) > 1:
        raise CardError("a Hub id names one data set: give one benchmark folder with it")
    results: list[Any] = []
    scored: dict[str, dict[str, Any]] = {}
    for out in outs:
        rows, data = _read(out)
        names = dict.fromkeys(row["encoder"] for row in rows)
        rows = [row for row in rows if row["encoder"] == encoder]
        if not rows:
            raise CardError(f"{out} has no encoder {encoder}: it has {', '.join(names)}")
        title = load_dataset(data).ABOUT.title
        results += model_index(rows, dataset_name=title, dataset_id=dataset_id, dataset_type=data)
        scored |= {f"{row['task']}/{row['target']}": row for row in rows}
    card = model / "README.md"
    if not card.is_file():
        raise CardError(f"{model} has no README.md to write the scores into: make its card first")
    unknown = sorted(set(task_ids or {}) - set(scored))
    if unknown:
        raise CardError(f"{outs[0]} has no {unknown[0]}: it has {', '.join(scored)}")
    if task_ids and dataset_id is None:
        raise CardError("entries of a leaderboard need the Hub id of the data set: give --dataset-id")
    text = card.read_text(encoding="utf-8")
    with written_file(card) as temporary:
        temporary.write_text(add_model_index(text, results, name=_heading(text, model.name)), encoding="utf-8")
    today = date.today().isoformat()
    entries = [
        eval_entry(scored[name], dataset_id=str(dataset_id), task_id=task_id, date=today)
        for name, task_id in (task_ids or {}).items()
    ]
    return [card, *write_eval_results(model, entries)]


def _read(out: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows of the main metrics at all labels, and the name of the data set."""
    try:
        data = json.loads((out / "results.json").read_text())["recipe"]["data"]
        with open(out / "results.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["main"] == "True"]
    except (OSError, ValueError, KeyError):
        raise CardError(f"{out} holds no results of a benchmark: make them with `voxelfm benchmark`") from None
    largest: dict[str, float] = {}
    for row in rows:
        largest[row["task"]] = max(largest.get(row["task"], 0.0), float(row["fraction"]))
    return [row for row in rows if float(row["fraction"]) == largest[row["task"]]], data


def _heading(card: str, otherwise: str) -> str:
    """What the first heading of a card calls the model."""
    headings: Sequence[str] = [line for line in card.splitlines() if line.startswith("# ")]
    return headings[0].removeprefix("# ") if headings else otherwise


@one_sentence_errors
def main() -> None:
    parser = ModuleParser("voxelfm_hf.eval.benchmark.backbone_scores", __doc__)
    parser.add_argument("outs", type=Path, nargs="+", metavar="OUT", help="folders of finished benchmarks")
    parser.add_argument("--encoder", required=True, help="whose scores, as the benchmark calls it")
    parser.add_argument("--model", type=Path, required=True, help="folder of that encoder, with its README.md")
    parser.add_argument("--dataset-id", help="Hub id of the data set")
    parser.add_argument("--task-ids", nargs="*", default=[], metavar="TASK/TARGET=NAME", help="names in its eval.yaml")
    options = parser.parse_args()
    ids = dict(word.split("=", 1) for word in options.task_ids if "=" in word)
    for path in score_backbone(
        options.outs, options.encoder, options.model, dataset_id=options.dataset_id, task_ids=ids
    ):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
