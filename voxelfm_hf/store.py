"""The feature store: a folder of Parquet parts that is whole at every moment.

    STORE/README.md                      lets `datasets.load_dataset(STORE)` open it
    STORE/run.json                       model, weight hash, processor settings, versions
    STORE/features-RANK-PART.parquet     one row a scan or region
    STORE/patches/ID.safetensors         optional patch grid (d, h, w, C), float16, tensor name "patches"
    STORE/failures.csv                   what could not be embedded, and why

A part is rewritten with every scan (a temporary file that replaces it) until it is full, so a killed run loses only
the scans it was working on.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxelfm_hf.failures import read_failures
from voxelfm_hf.files import only_writer, state_of, written_file
from voxelfm_hf.volumes.errors import StoreError, VoxelFMError

ROWS_A_PART = 256
README = """---
configs:
- config_name: default
  data_files: features-*.parquet
---
# Feature store

Features of CT scans made with voxelfm_hf: one row a scan or region, `cls` holds the CLS vector. `run.json` names the
model, its weight hash and the processor's settings; `failures.csv` lists what could not be embedded. Where they were
asked for, patch features lie in `patches/ID.safetensors` as (d, h, w, C).
"""
# `datasets` finds what it has read of a folder again by the folder's name and this header: the header changes with the
# parts, or it would give the rows of another store of the same name, or those from before a scan was added.
_HEADER = re.compile(r"^  data_files: features-\*\.parquet\n(  description: .*\n)?", re.MULTILINE)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("cls", pa.list_(pa.float32())),
        ("grid", pa.list_(pa.int32())),
        ("spacing_mm", pa.list_(pa.float64())),
        ("effective_spacing_mm", pa.list_(pa.float64())),
        ("field_of_view_mm", pa.list_(pa.float64())),
        ("patch_affine", pa.list_(pa.float64())),
        ("notes", pa.list_(pa.string())),
        ("input_hash", pa.string()),  # see features.identity; null where it was not taken
    ]
)


def is_feature_store(folder: str | os.PathLike) -> bool:
    """Whether a folder is a feature store."""
    return (Path(folder) / "run.json").is_file() and any(Path(folder).glob("features-*.parquet"))


class FeatureStore:
    """Features of scans on disk, opened for reading.

    Attributes:
        folder: Where it lies.
        run: The content of run.json: `model`, `weight_hash`, `processor`, `dtype`, `patches`, `versions`, ...

    Raises:
        StoreError: the folder is no store, or a part of it cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.run: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        except FileNotFoundError:
            raise StoreError(
                f"{self.folder} is not a feature store (no run.json): make one with `voxelfm embed`"
            ) from None
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.folder / 'run.json'} cannot be read ({type(error).__name__})") from None

    @cached_property
    def table(self) -> pa.Table:
        """All rows, sorted by id; columns as in `SCHEMA`."""
        tables = [_read_part(path) for path in self._parts()]
        return pa.concat_tables(tables).sort_by("id") if tables else SCHEMA.empty_table()

    @property
    def ids(self) -> list[str]:
        """Ids in the order of the rows."""
        return self.table["id"].to_pylist()

    @cached_property
    def cls(self) -> np.ndarray:
        """CLS vectors (rows, C), float32."""
        rows = self.table.num_rows
        return self.table["cls"].combine_chunks().flatten().to_numpy().reshape(rows, -1) if rows else np.empty((0, 0))

    def patches(self, identifier: str) -> np.ndarray:
        """Patch features (d, h, w, C) of one row, float16.

        Raises:
            StoreError: the store was made without `--patches`.
        """
        from safetensors.numpy import load_file

        try:
            return load_file(self.patch_file(identifier))["patches"]
        except FileNotFoundError:
            raise StoreError(
                f"{self.folder} holds no patch features of {identifier}: embed the scans with --patches"
            ) from None

    def failures(self) -> dict[str, str]:
        """Reasons by id."""
        return read_failures(self.folder)

    def patch_file(self, identifier: str) -> Path:
        return self.folder / "patches" / f"{identifier}.safetensors"

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("features-*.parquet"))


class StoreWriter(FeatureStore):
    """A store opened for adding rows; one run at a time.

    Args:
        folder: Created when new.
        run: What the rows are made with; must equal the run.json of an existing store.
        rank: This process among those of the run; every rank writes its own parts.

    Raises:
        StoreError: other weights or settings, a folder in use by something else, a place that cannot be written.
    """

    def __init__(self, folder: str | Path, run: dict[str, Any], *, rank: int = 0):
        folder = Path(folder)
        if rank == 0:
            _create(folder, run)
        super().__init__(folder)
        _refuse_other_settings(self.folder, self.run, run)
        self._write_header()
        self._rank = rank
        self._rows: list[dict[str, Any]] = []
        own = sorted(self.folder.glob(f"features-{rank:03d}-*.parquet"))
        self._part = len(own)
        if own:
            last = _read_part(own[-1])
            if last.num_rows < ROWS_A_PART:
                self._part, self._rows = len(own) - 1, last.to_pylist()

    def add(self, rows: Iterable[dict[str, Any]], patches: dict[str, np.ndarray] | None = None) -> None:
        """Writes rows (and patch grids by id) so that they survive a crash right after.

        Raises:
            StoreError: the disk is full or the folder cannot be written.
        """
        from safetensors.numpy import save_file

        try:
            for identifier, grid in (patches or {}).items():
                with written_file(self.patch_file(identifier)) as path:
                    save_file({"patches": np.ascontiguousarray(grid, np.float16)}, path)
            for row in rows:
                if len(self._rows) == ROWS_A_PART:
                    self._write_part()
                    self._part, self._rows = self._part + 1, []
                self._rows.append(row)
            self._write_part()
        except VoxelFMError as error:
            raise StoreError(str(error)) from None

    def _write_part(self) -> None:
        with written_file(self.folder / f"features-{self._rank:03d}-{self._part:05d}.parquet") as path:
            pq.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA), path, compression="zstd")
        self._write_header()

    def _write_header(self) -> None:
        readme = self.folder / "README.md"
        if not readme.is_file():
            return
        text = readme.read_text(encoding="utf-8")
        state = state_of(self.folder.glob("features-*.parquet"))
        changed = _HEADER.sub(f"  data_files: features-*.parquet\n  description: {state}\n", text, count=1)
        if changed != text:
            with written_file(readme) as path:
                path.write_text(changed, encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a store; the lock goes with the process, however it ends."""
    if folder.is_dir() and not (folder / "run.json").is_file() and set(os.listdir(folder)) - {".lock"}:
        raise StoreError(f"{folder} exists and is not a feature store: name a new or empty folder")
    with only_writer(folder):
        yield


def _create(folder: Path, run: dict[str, Any]) -> None:
    if (folder / "run.json").is_file():
        return
    with written_file(folder / "README.md") as path:
        path.write_text(README, encoding="utf-8")
    with written_file(folder / "run.json") as path:
        path.write_text(json.dumps(run, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _refuse_other_settings(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))
    if stored.get("weight_hash") != wanted.get("weight_hash"):
        raise StoreError(f"{folder} was made with another model, or other settings of it: name a new store")
    for key in sorted({*stored, *wanted} - {"versions", "model"}):
        if stored.get(key) == wanted.get(key):
            continue
        if isinstance(stored.get(key), dict) and isinstance(wanted.get(key), dict):
            names = sorted(k for k in {*stored[key], *wanted[key]} if stored[key].get(k) != wanted[key].get(k))
            difference = f"{key} {', '.join(names)}"
        else:
            difference = f"{key} {stored.get(key)} instead of {wanted.get(key)}"
        raise StoreError(f"{folder} was made with other settings ({difference}): name a new store")


def _read_part(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{path} cannot be read ({type(error).__name__}): delete it and embed its scans again"
        ) from None
