"""What every task works on: the rows that have both features and labels, their splits, patients and subgroups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from voxelfm_hf.eval.labels import LabelTable, match_to_store
from voxelfm_hf.eval.splits import patient_column_of, patient_groups, split_rows
from voxelfm_hf.modeling.configuration_voxelfm_probe import PATCH_HEADS
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.data import ProbeFeatures
from voxelfm_hf.volumes.errors import StoreError

# Columns that are scored by subgroup when a table has them, and the edges of the bands of the numeric ones.
SUBGROUPS: dict[str, tuple[float, ...] | None] = {
    "sex": None,
    "age": (40, 60, 75),
    "manufacturer": None,
    "kernel": None,
    "slice_thickness": (1.5, 3.0),
}
MAX_LEVELS = 8


@dataclass(frozen=True, eq=False)
class TaskData:
    """Labelled scans of one task, n rows in the order of the label table.

    Args:
        task: Name of the task.
        ids: Store ids.
        features: Features of the rows.
        targets: (n, k) as the probe losses take them, NaN where missing; empty for label maps.
        names: Names of labels, targets or classes.
        splits: (n,) train, val or test.
        groups: (n,) patient numbers.
        subgroups: Column -> n levels.
        run: The store's run.json: model, weight hash, processor.
        affines: (n, 4, 4) patch index (d, h, w, 1) -> LPS mm (x, y, z, 1).
        grids: (n, 3) patch grids.
        maps: For segmentation, a function row -> (D, H, W) classes.
        annotated: For segmentation, a function row -> (classes,) bool: was the class looked for in the scan?
        notes: What was left out or assumed, for the card.
        options: The head that it was read for, and what only one task needs.
        patient_column: The column of the label table that tells patients apart; None where it has none and a row, or a
            study, counts as a patient.
    """

    task: str
    ids: list[str]
    features: ProbeFeatures
    targets: np.ndarray
    names: list[str]
    splits: np.ndarray
    groups: np.ndarray
    subgroups: Mapping[str, Sequence]
    run: Mapping[str, Any]
    affines: np.ndarray
    grids: np.ndarray
    maps: Callable[[int], np.ndarray] | None = None
    annotated: Callable[[int], np.ndarray] | None = None
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    patient_column: str | None = None

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split."""
        return np.flatnonzero(self.splits == split)

    def patients(self, split: str) -> int | None:
        """How many patients a split has; None where the label table does not tell them apart."""
        return None if self.patient_column is None else len(np.unique(self.groups[self.rows(split)]))

    def positives(self, rows: np.ndarray) -> dict[str, str]:
        """How many of some rows have each finding, of those where it is known, by heading."""
        targets = self.targets[rows]
        return {
            f"{name}: positive of known": f"{int(np.nansum(targets[:, i]))} of {int(np.isfinite(targets[:, i]).sum())}"
            for i, name in enumerate(self.names)
        }

    def column(self, number: int) -> np.ndarray:
        """(n, k) targets of one of the names; of exclusive classes, all of which share a column, that column."""
        width = max(1, self.targets.shape[1] // len(self.names))
        return self.targets[:, number * width : (number + 1) * width]

    def levels(self, rows: np.ndarray) -> dict[str, list]:
        """The levels of some rows by subgroup column."""
        return {column: [levels[row] for row in rows] for column, levels in self.subgroups.items()}


def open_data(
    store: FeatureStore,
    labels: LabelTable,
    *,
    task: str,
    head: str | None = None,
    allow_missing: bool = False,
    patient_column: str | None = None,
    split_column: str = "split",
    split_seed: int = 0,
    subgroup_columns: Sequence[str] | None = None,
) -> tuple[TaskData, LabelTable]:
    """Matches labels to features, and splits and groups the rows; targets are left for the task to fill in.

    Args:
        store: The feature store.
        labels: The label table.
        task: Name of the task.
        head: Of the probe: CLS vectors are loaded unless it reads patch grids.
        allow_missing: Leave labels without features out, with a note, instead of refusing.
        patient_column: As in `patient_groups`.
        split_column: As in `split_rows`.
        split_seed: Of drawn splits.
        subgroup_columns: Columns to score by; by default sex, age, manufacturer, kernel, slice_thickness if present.

    Returns:
        The data without targets, and the label table of the same rows.
    """
    needs_patches = head in PATCH_HEADS
    if needs_patches and not store.run.get("patches"):
        raise StoreError(f"{store.folder} holds no patch features, which this probe needs: embed with --patches")
    matched = match_to_store(labels, store.ids, allow_missing=allow_missing)
    kept = np.flatnonzero(matched >= 0)
    notes = []
    if len(kept) < len(labels):
        notes.append(f"{len(labels) - len(kept)} labelled scans without features were left out")
    labels, matched = labels.take(kept), matched[kept]
    patient_column = patient_column_of(labels, patient_column)
    if patient_column is None:
        notes.append(
            "the label table has no column of patients, so rows count as patients and scans of one patient may be in "
            "both training and test rows; name such a column patient_id"
        )
    groups = patient_groups(labels, patient_column=patient_column)
    splits = split_rows(labels, groups, split_column=split_column, seed=split_seed)
    ids = [store.ids[row] for row in matched]
    if needs_patches:
        features = ProbeFeatures(patches=lambda row: store.patches(ids[row]))
    else:
        features = ProbeFeatures(cls=torch.from_numpy(np.array(store.cls[matched], dtype=np.float32)))
    chosen = [c for c in SUBGROUPS if c in labels.columns] if subgroup_columns is None else subgroup_columns
    data = TaskData(
        task=task,
        ids=ids,
        features=features,
        targets=np.zeros((len(ids), 0)),
        names=[],
        splits=splits,
        groups=groups,
        subgroups={column: subgroup_levels(column, labels.column(column)) for column in chosen},
        run=store.run,
        affines=np.array(store.table["patch_affine"].to_pylist())[matched].reshape(-1, 4, 4),
        grids=np.array(store.table["grid"].to_pylist())[matched],
        notes=tuple(notes),
        options={"head": head},
        patient_column=patient_column,
    )
    return data, labels


def subgroup_levels(column: str, values: Sequence) -> list:
    """Levels of a subgroup column; many different numbers become bands, at their thirds if no edges are known."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < sum(v is not None for v in values) or len(set(numbers)) <= MAX_LEVELS and column not in SUBGROUPS:
        return list(values)
    edges = SUBGROUPS.get(column)
    if edges is None:
        edges = tuple(np.unique(np.quantile(numbers, (1 / 3, 2 / 3))).tolist()) if numbers else (0.0,)
    return bands([np.nan if v is None else float(v) for v in values], edges)


def bands(values: Sequence[float] | np.ndarray, edges: Sequence[float]) -> list[str]:
    """Numbers as labels of the bands between the edges: 64 with edges (50, 65) is "50-65"; NaN is "".

    A band includes its lower edge and not its upper one.
    """
    names = [f"<{edges[0]:g}", *(f"{a:g}-{b:g}" for a, b in zip(edges, edges[1:], strict=False)), f">={edges[-1]:g}"]
    numbers = np.asarray(values, dtype=float)
    return ["" if np.isnan(v) else names[int(np.searchsorted(edges, v, side="right"))] for v in numbers]
