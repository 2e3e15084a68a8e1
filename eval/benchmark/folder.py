"""The folder of a benchmark: where things lie in it, and what it was made with.

OUT/state.json             what the folder was made with; another recipe or other data are refused
OUT/stores/...             one feature store an encoder (and seed, for random weights)
OUT/predictions/ENCODER/TASK/seed-N.parquet   a finished cell, never computed twice
OUT/predictions/ENCODER/TASK/maps/ID.nii.gz   label maps of the first seed
OUT/results.csv ...        made again from the predictions on every run
"""

import hashlib
import json
import re
from pathlib import Path

from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.files import written_file
from voxelfm_hf.recipes import to_values
from voxelfm_hf.volumes.errors import RecipeError

# Fields of a recipe that may differ between runs into one folder: what they change is checked cell by cell.
MAY_CHANGE = ("encoders", "quick", "title", "folder")


def slug(name: str) -> str:
    """A name as a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "encoder"


def task_folder(out: Path, encoder: str, task: str) -> Path:
    """Where the predictions of an encoder for a task lie."""
    return out / "predictions" / slug(encoder) / slug(task)


def cell_path(out: Path, encoder: str, task: str, seed: int) -> Path:
    """Where the predictions of a cell lie."""
    return task_folder(out, encoder, task) / f"seed-{seed}.parquet"


def label_map_path(out: Path, encoder: str, task: str, identifier: str) -> Path:
    """Where the predicted label map of a scan lies."""
    return task_folder(out, encoder, task) / "maps" / f"{identifier.replace('/', '_')}.nii.gz"


def data_fingerprint(data: BenchmarkData) -> str:
    """SHA-256 of the label table, and of the names and sizes of scan files."""
    digest = hashlib.sha256(json.dumps([data.labels.ids, data.labels.columns], sort_keys=True, default=str).encode())
    for task in data.tasks:
        size = task.scan.path.stat().st_size if task.scan.path.is_file() else 0
        digest.update(f"{task.scan.identifier} {task.regions} {size}\n".encode())
    return digest.hexdigest()


def claim_folder(out: Path, recipe: BenchmarkRecipe, fingerprint: str) -> None:
    """Writes state.json into a new folder, or refuses one that was made otherwise; encoders may be added or changed."""
    values = {key: value for key, value in to_values(recipe).items() if key not in MAY_CHANGE}
    state = json.loads(json.dumps({"recipe": values, "data": fingerprint}))
    path = out / "state.json"
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise RecipeError(f"{out} exists and is no benchmark folder: name a new or empty one.")
        with written_file(path) as temporary:
            temporary.write_text(json.dumps(state, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text())
        before = found["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RecipeError(f"{path} cannot be read: name a new folder.") from None
    changed = sorted(key for key in {*before, *values} if before.get(key) != state["recipe"].get(key))
    if changed:
        raise RecipeError(f"{out} was made with another recipe ({', '.join(changed)} differ): name a new folder.")
    if found.get("data") != fingerprint:
        raise RecipeError(f"{out} was made with other data (labels or scans differ): name a new folder.")
