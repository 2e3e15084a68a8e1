"""Scores as the Hub's metadata: `model-index` entries of a card's header, and files in `.eval_results/`.

`model-index` takes any data set. An entry of `.eval_results/` appears on the leaderboard of a data set of the Hub that
has one, so it needs the Hub id of the data and the name of the task there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from voxelfm_hf.cards import PIPELINE_TAGS, number
from voxelfm_hf.files import written_file
from voxelfm_hf.volumes.errors import CardError

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

# Our metric names -> those of the Hub's metrics, where it has the same one.
HUB_METRICS = {"auroc": "roc_auc", "r2": "r_squared", "spearman": "spearmanr", "brier": "brier_score"}
FOLDER = ".eval_results"


def model_index(
    rows: Iterable[Mapping[str, Any]],
    *,
    dataset_name: str,
    dataset_id: str | None = None,
    dataset_type: str = "private",
) -> list["EvalResult"]:
    """Scores on test scans as `model-index` results; undefined ones are left out.

    Args:
        rows: With family (or task), target, metric, value, and low, high, n where known.
        dataset_name: What was scored on, in words.
        dataset_id: Its Hub id.
        dataset_type: Stands for the id where there is none: a header groups scores of one task by it, not by the name.
    """
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=PIPELINE_TAGS.get(row.get("family") or row["task"], "other"),
            task_name=str(row.get("family") or row["task"]),
            dataset_type=dataset_id or dataset_type,
            dataset_name=dataset_name,
            dataset_split="test",
            metric_type=HUB_METRICS.get(row["metric"], row["metric"]),
            metric_name=score_name(row),
            metric_value=round(value, 6),
        )
        for row in rows
        if (value := _number(row.get("value"))) is not None
    ]


def score_name(row: Mapping[str, Any]) -> str:
    """A score in words: "auroc of malignant (95 % interval 0.810 to 0.930, n 104)"."""
    facts = []
    low, high = _number(row.get("low")), _number(row.get("high"))
    if low is not None and high is not None:
        facts.append(f"95 % interval {number(low)} to {number(high)}")
    if row.get("n") not in (None, ""):
        facts.append(f"n {int(float(row['n']))}")
    return f"{row['metric']} of {row['target']}" + (f" ({', '.join(facts)})" if facts else "")


def eval_entry(row: Mapping[str, Any], *, dataset_id: str, task_id: str, date: str | None = None) -> "EvalResultEntry":
    """One score as an entry of `.eval_results/`.

    Args:
        row: With target, metric, value, and low, high, n where known.
        dataset_id: Hub id of the data.
        task_id: Name of the task in the eval.yaml of that data set.
        date: ISO date of the evaluation.

    Raises:
        CardError: the score is undefined, or the id is none of the Hub.
    """
    from huggingface_hub import EvalResultEntry

    value = _number(row.get("value"))
    if value is None:
        raise CardError(f"the {row['metric']} of {row['target']} is undefined and cannot be an evaluation result")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset_id):
        raise CardError(f"{dataset_id} is no data set of the Hub: it is named user/name")
    return EvalResultEntry(
        dataset_id=dataset_id,
        task_id=task_id,
        value=round(value, 6),
        date=date,
        notes=score_name(row),
    )


def write_eval_results(folder: str | Path, entries: Sequence["EvalResultEntry"]) -> list[Path]:
    """Writes `.eval_results/NAME.yaml` below a model folder, one file a data set.

    Args:
        folder: The model folder.
        entries: From `eval_entry`; two scores of one task of one data set are an error, the Hub shows one.

    Returns:
        The paths.
    """
    from huggingface_hub import eval_result_entries_to_yaml

    by_dataset: dict[str, list[EvalResultEntry]] = {}
    for entry in entries:
        inside = by_dataset.setdefault(entry.dataset_id, [])
        if any(other.task_id == entry.task_id for other in inside):
            raise CardError(f"{entry.dataset_id} has two scores for the task {entry.task_id}: choose one")
        inside.append(entry)
    paths = []
    for dataset_id, inside in by_dataset.items():
        path = Path(folder) / FOLDER / f"{dataset_id.replace('/', '--')}.yaml"
        with written_file(path) as temporary:
            temporary.write_text(yaml.safe_dump(eval_result_entries_to_yaml(inside), sort_keys=False), encoding="utf-8")
        paths.append(path)
    return paths


def add_model_index(card: str, results: Sequence["EvalResult"], *, name: str) -> str:
    """A model card with results put in place of those its header had; the text stays as it is.

    Args:
        card: The whole README.md.
        results: From `model_index`.
        name: Name of the model.
    """
    from huggingface_hub import ModelCard

    changed = ModelCard(card)
    header: Any = changed.data
    header.model_name, header.eval_results = name, list(results)
    return str(changed)


def _number(value: Any) -> float | None:
    """A finite number, also from the text of a CSV; None for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if found - found == 0 else None
