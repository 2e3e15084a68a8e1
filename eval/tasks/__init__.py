"""The task families, one file each with the same verbs.

    read(store, labels, **options) -> TaskData      match, check, split
    fit(data, **settings) -> VoxelFMProbe           fit on train, choose on validation (retrieval fits nothing)
    predict(probe, data, rows) -> predictions       in natural units
    evaluate(predictions, data, rows) -> reports    metrics with intervals and subgroups, by target

A new task is one new file here.
"""

import importlib
from pathlib import Path
from types import ModuleType

from voxelfm_hf.volumes.errors import RecipeError

HELPERS = ("data", "fitting", "grid", "neighbours")


def task_names() -> list[str]:
    """Names of the tasks there are."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(path.stem for path in files if not path.stem.startswith("_") and path.stem not in HELPERS)


def load_task(name: str) -> ModuleType:
    """The module of a task; RecipeError with the names there are for an unknown one."""
    if name not in task_names():
        raise RecipeError(f"there is no task {name}: choose one of {', '.join(task_names())}")
    return importlib.import_module(f"voxelfm_hf.eval.tasks.{name}")
