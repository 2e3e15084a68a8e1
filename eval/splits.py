"""Train, validation and test rows by patient and study, and growing subsets of the training patients."""

from collections.abc import Sequence

import numpy as np

from voxelfm_hf.column_names import PATIENT_COLUMNS, split_name
from voxelfm_hf.eval.labels import STUDY_COLUMNS, LabelTable
from voxelfm_hf.volumes.errors import LabelError

SPLITS = ("train", "val", "test")
# Of the groups, where splits are drawn.
SHARES = (0.7, 0.1, 0.2)


def patient_column_of(labels: LabelTable, patient_column: str | None = None) -> str | None:
    """The column that tells patients apart: the one named, else the first of `PATIENT_COLUMNS` that exists, or None."""
    return patient_column or labels.first_of(PATIENT_COLUMNS)


def patient_groups(labels: LabelTable, *, patient_column: str | None = None) -> np.ndarray:
    """A group number for each row: rows of one patient, or of one study, have the same.

    The study is the first of `STUDY_COLUMNS` that exists.

    Args:
        labels: The labels.
        patient_column: As in `patient_column_of`.

    Returns:
        (n,) integers from 0; every row its own group when there is neither column.

    Raises:
        LabelError: rows without a patient, whose scans could be of one in another split.
    """
    parent = np.arange(len(labels))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    patient = patient_column_of(labels, patient_column)
    named = [] if patient is None else [str("" if value is None else value).strip() for value in labels.column(patient)]
    unknown = [identifier for identifier, name in zip(labels.ids, named, strict=False) if not name]
    if unknown:
        raise LabelError(
            f"{labels.source}: {len(unknown)} rows have no {patient} ({', '.join(unknown[:3])}), and nobody knows "
            "whether their patients are among the others: fill them in, also for patients of one scan, or remove the "
            "rows"
        )
    for column in (patient, labels.first_of(STUDY_COLUMNS)):
        if column is None:
            continue
        first: dict[str, int] = {}
        for row, value in enumerate(labels.column(column)):
            if value is not None:
                parent[root(row)] = root(first.setdefault(str(value), row))
    _, groups = np.unique([root(row) for row in range(len(labels))], return_inverse=True)
    return groups


def split_rows(
    labels: LabelTable,
    groups: np.ndarray,
    *,
    split_column: str = "split",
    seed: int = 0,
) -> np.ndarray:
    """The split of each row: the table's own, or drawn by group.

    Args:
        labels: The labels.
        groups: (n,) group numbers from `patient_groups`.
        split_column: Column with train, val (validation, valid, dev) or test, used when it exists.
        seed: Of the draw.

    Returns:
        (n,) "train", "val" or "test".

    Raises:
        LabelError: rows without a split, a group in two splits, an unknown split name, no training or test rows, too
            few groups to draw.
    """
    if split_column in labels.columns:
        splits = named_splits(labels.columns[split_column], labels.ids, source=labels.source, column=split_column)
        shared = [g for g in np.unique(groups) if len(set(splits[groups == g])) > 1]
        if shared:
            rows = np.flatnonzero(groups == shared[0])[:2]
            examples = ", ".join(labels.ids[row] for row in rows)
            raise LabelError(
                f"{labels.source}: {len(shared)} patients or studies are in two splits (for example {examples}): put "
                "all their scans in one"
            )
    else:
        splits = _drawn(labels, groups, seed)
    for needed in ("train", "test"):
        if not (splits == needed).any():
            raise LabelError(f"{labels.source}: no row is in the {needed} split")
    return splits.astype(str)


def named_splits(values: Sequence, ids: Sequence[str], *, source: str, column: str = "split") -> np.ndarray:
    """The splits that the cells of a column name.

    Args:
        values: (n,) cells with train, val (validation, valid, dev) or test.
        ids: (n,) of the rows, for the error.
        source: The table, for the error.
        column: Its name, for the error.

    Returns:
        (n,) "train", "val" or "test".

    Raises:
        LabelError: rows without a split, an unknown name.
    """
    splits = [split_name(value) for value in values]
    empty = [identifier for identifier, name in zip(ids, splits, strict=True) if not name]
    if empty:
        raise LabelError(
            f"{source}: {len(empty)} rows have no {column} ({', '.join(empty[:3])}), and would be neither learned from "
            "nor scored: fill in train, val or test, or remove the rows"
        )
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise LabelError(f"{source}: column {column} holds {', '.join(unknown[:3])}: use train, val and test")
    return np.array(splits, dtype=object)


def training_subset(rows: np.ndarray, groups: np.ndarray, *, fraction: float, seed: int) -> np.ndarray:
    """Training rows of a share of the patients; the subsets of one seed grow into each other.

    Args:
        rows: Row numbers of the training split.
        groups: (n,) group numbers of all rows.
        fraction: Share of the training groups in (0, 1]; at least one group is kept.
        seed: Of the order in which groups enter.

    Returns:
        Row numbers, sorted.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    names = np.unique(groups[rows])
    order = np.random.default_rng(seed).permutation(names)
    kept = order[: max(1, round(fraction * len(names)))]
    return np.sort(rows[np.isin(groups[rows], kept)])


def _drawn(labels: LabelTable, groups: np.ndarray, seed: int) -> np.ndarray:
    """Splits by group in the shares of `SHARES`."""
    names = np.unique(groups)
    counts = [round(SHARES[1] * len(names)), round(SHARES[2] * len(names))]
    if min(len(names) - sum(counts), *counts) < 1:
        raise LabelError(
            f"{labels.source}: {len(names)} patients are too few for train, val and test: label more, or give a split "
            "column"
        )
    order = np.random.default_rng(seed).permutation(names)
    val, test = order[: counts[0]], order[counts[0] : counts[0] + counts[1]]
    splits = np.full(len(groups), "train", dtype=object)
    splits[np.isin(groups, val)] = "val"
    splits[np.isin(groups, test)] = "test"
    return splits
