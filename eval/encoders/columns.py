"""Label columns as features: a diameter, the extent of a crop, an age; what any encoder has to beat."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.encoders.base import EncoderSetup, OnScan, store_run
from voxelfm_hf.eval.labels import number_target
from voxelfm_hf.features import BatchSummary
from voxelfm_hf.store import StoreWriter, locked


class ColumnsEncoder:
    """Numeric columns of the label table; a missing value is 0 and flagged in a column of its own."""

    gives_patches = False
    seeded = False
    is_baseline = True

    def __init__(self, columns: Sequence[str]):
        self.columns = tuple(columns)
        self.preprocessing = f"no voxel is looked at: {', '.join(self.columns)} of the label table, with its logarithm"

    @property
    def fingerprint(self) -> str:
        """The names of the columns; their values are in the fingerprint of the data."""
        return hashlib.sha256("\n".join(self.columns).encode()).hexdigest()

    def fill(self, data: BenchmarkData, store: Path, *, patches: bool = False, on_scan: OnScan = None) -> BatchSummary:
        """See `Encoder.fill`."""
        values = np.stack([number_target(data.labels, column) for column in self.columns], axis=1)
        known = np.isfinite(values)
        values = np.where(known, values, 0.0)
        logarithms = np.log(np.where(values > 0, values, 1.0))
        features = np.concatenate([values, logarithms, known.astype(float)], axis=1)
        summary = BatchSummary()
        with locked(store):
            writer = StoreWriter(store, store_run("columns", self.fingerprint, {"columns": list(self.columns)}))
            present, rows = set(writer.ids), []
            for identifier, vector in zip(data.labels.ids, features, strict=True):
                if identifier in present:
                    summary.present += 1
                else:
                    rows.append(_row(identifier, vector))
            if rows:
                writer.add(rows)
        summary.added = len(rows)
        if on_scan:
            for task in data.tasks:
                on_scan(task)
        return summary


def make(setup: EncoderSetup, columns: Sequence[str] = ()) -> ColumnsEncoder:
    """The named columns."""
    return ColumnsEncoder(columns)


def _row(identifier: str, vector: np.ndarray) -> dict:
    ones = [1.0, 1.0, 1.0]
    return {
        "id": identifier,
        "source": identifier,
        "cls": vector.astype(np.float32),
        "grid": [1, 1, 1],
        "spacing_mm": ones,
        "effective_spacing_mm": ones,
        "field_of_view_mm": ones,
        "patch_affine": np.eye(4)[[2, 1, 0, 3]].ravel().tolist(),
        "notes": [],
    }
