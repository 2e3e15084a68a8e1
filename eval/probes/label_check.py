"""Labels read as if their scans were embedded, so that what is wrong with them is said before hours of embedding."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.features import Task

# Patches of 1 mm along each axis of a grid round the origin, in which every point of every scan lies.
EDGE = 1_000_000


def check_labels(task: str, tasks: Sequence[Task], labels: LabelTable, read: Mapping[str, Any]) -> None:
    """Reads labels as `load_task(task).read` will, with what only features tell left out.

    Args:
        task: Name of the task.
        tasks: Scans that will be embedded, whole or by regions.
        labels: The label table.
        read: Options of the `read` of the task.

    Raises:
        LabelError: labels or options that do not fit the task or the scans.
    """
    ids = [identifier for scan in tasks for identifier in scan.identifiers]
    affine = np.eye(4)
    affine[:3, 3] = -EDGE / 2
    table = {"patch_affine": [affine.ravel().tolist()] * len(ids), "grid": [[EDGE] * 3] * len(ids)}
    store = SimpleNamespace(ids=ids, run={"patches": True}, cls=np.zeros((len(ids), 1)), table=pa.table(table))
    load_task(task).read(store, labels, **read)
