"""What an encoder is, and the loop that writes a feature store with one."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import voxelfm_hf
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.failures import write_failures
from voxelfm_hf.features import BatchSummary, Task, failure_reason, row_facts
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry
from voxelfm_hf.scan_list import Region
from voxelfm_hf.store import StoreWriter, locked
from voxelfm_hf.volumes import Volume, read_volume

OnScan = Callable[[Task], None] | None


@dataclass(frozen=True)
class EncoderSetup:
    """What all encoders of a benchmark are given; each uses what concerns it.

    Attributes:
        work: Folder for what an encoder has to keep, such as untrained weights.
        model: Model folder, Hub repository or "tiny"; baselines prepare scans like this model.
        seed: Of random weights.
        region_size: Edge in voxels of a region's cube; the model's training crop by default.
        max_patches: Patch budget of a whole scan; the processor's own by default.
        dtype: Of the model's computation.
        voxel_mm: Voxel size of every prepared scan; that of its finest axis by default.
        tile: Edge in voxels of the tiles that whole scans go through a VoxelFM model in; whole by default.
    """

    work: Path
    model: str | None = None
    seed: int = 0
    region_size: int | None = None
    max_patches: int | None = None
    dtype: str = "float32"
    voxel_mm: float | None = None
    tile: int | None = None


@dataclass(frozen=True, eq=False)
class Encoded:
    """Features of one scan or region.

    Attributes:
        cls: (C,) vector for the whole of it.
        geometry: Where the patch grid lies in the volume; a single patch for encoders without patches.
        patch_size: Edge of a patch in prepared voxels.
        patches: (d, h, w, C'), or None.
    """

    cls: np.ndarray
    geometry: VoxelFMGeometry
    patch_size: int
    patches: np.ndarray | None = None


class Encoder(Protocol):
    """Anything that fills a feature store.

    Attributes:
        preprocessing: One sentence: what becomes of a scan before the features are computed.
        gives_patches: Whether it has patch grids, which localisation and segmentation need.
        seeded: Whether its features depend on the seed of its setup; a benchmark then makes them once a seed.
        is_baseline: Whether it is there to be beaten.
        fingerprint: Changes whenever the features would.
    """

    preprocessing: str
    gives_patches: bool
    seeded: bool
    is_baseline: bool

    @property
    def fingerprint(self) -> str: ...

    def fill(self, data: BenchmarkData, store: Path, *, patches: bool = False, on_scan: OnScan = None) -> BatchSummary:
        """Adds the features of all scans of a data set to a store; what is there already is left alone.

        Args:
            data: The scans and their labels.
            store: Folder of the store, created when new.
            patches: Keep the patch grids beside the vectors.
            on_scan: Called after each scan.

        Returns:
            Counts, and the reason of each failure by id.
        """
        ...


class VolumeEncoder(ABC):
    """An encoder that needs nothing but the scan."""

    preprocessing: str
    gives_patches = False
    seeded = False
    is_baseline = False

    @abstractmethod
    def encode(self, volume: Volume, region: Region | None) -> Encoded:
        """Features of a scan, or of one region of it."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that changes the features, JSON-ready."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings."""
        text = json.dumps([type(self).__module__, type(self).__qualname__, self.settings()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def fill(self, data: BenchmarkData, store: Path, *, patches: bool = False, on_scan: OnScan = None) -> BatchSummary:
        """Adds the features of all scans of a data set to a store, see `Encoder.fill`."""
        patches = patches and self.gives_patches
        summary = BatchSummary()
        with locked(store):
            name = type(self).__module__.rsplit(".", 1)[-1]
            writer = StoreWriter(store, store_run(name, self.fingerprint, self.settings(), patches=patches))
            present = set(writer.ids)
            for task in data.tasks:
                todo = [name for name in task.identifiers if name not in present]
                summary.present += len(task.identifiers) - len(todo)
                if todo:
                    rows, grids, failures = self._rows(task, todo)
                    if rows:
                        writer.add(rows, grids if patches else None)
                    summary.added += len(rows)
                    summary.failures.update(failures)
                if on_scan:
                    on_scan(task)
            write_failures(writer.folder, summary.failures)
        return summary

    def _rows(self, task: Task, todo: list[str]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], dict[str, str]]:
        """Store rows, patch grids and failures of one scan."""
        rows: list[dict[str, Any]] = []
        grids: dict[str, np.ndarray] = {}
        failures: dict[str, str] = {}
        try:
            volume = read_volume(task.scan.path)
        except Exception as error:
            return rows, grids, dict.fromkeys(todo, failure_reason(task.scan, error))
        for identifier, region in zip(task.identifiers, task.regions or (None,), strict=True):
            if identifier not in todo:
                continue
            try:
                found = self.encode(volume, region)
            except Exception as error:
                failures[identifier] = failure_reason(task.scan, error)
                continue
            if not np.isfinite(found.cls).all():
                failures[identifier] = f"{identifier}: its features are not finite"
                continue
            facts = row_facts(task.scan, identifier, volume, found.geometry, patch_size=found.patch_size)
            rows.append({**facts, "cls": np.asarray(found.cls, dtype=np.float32)})
            if found.patches is not None:
                grids[identifier] = found.patches
        return rows, grids, failures


def store_run(model: str, fingerprint: str, settings: Mapping[str, Any], *, patches: bool = False) -> dict[str, Any]:
    """run.json of a store: what would change its features."""
    return {
        "model": model,
        "weight_hash": fingerprint,
        "processor": dict(settings),
        "dtype": "float32",
        "patches": patches,
        "versions": {"voxelfm_hf": voxelfm_hf.__version__},
    }
