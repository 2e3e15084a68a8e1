"""Opened sources of a stream, cut into units that readers can share out.

A unit is what one reader reads at a time: a row group of a Parquet file (`IterableDataset.reshard`), a row of a table
of paths, a shard of anything else that streams.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from voxelfm_hf.data.isotropic import prepare_volume
from voxelfm_hf.data.rows import ColumnMap, raw_values, row_id, row_volume
from voxelfm_hf.data.shards import PREPARED_COLUMNS, PREPARED_MARK
from voxelfm_hf.data.skips import SkipLog
from voxelfm_hf.data.stream.parquet_rows import checked_pages, read_footer, table_row
from voxelfm_hf.data.stream.sources import StreamSource
from voxelfm_hf.volumes import ScanError, StoreError

_FOOTER_THREADS = 16
_WHOLE_UNIT = 1 << 30


class _Base:
    """What all sources share: names, columns, decoding of scans that were not prepared."""

    columns: ColumnMap
    prepared = False

    def __init__(self, source: StreamSource, name: str) -> None:
        self.name = name
        self.source = source
        self.assume_hu = source.assume_hu
        self.count: int | None = None
        self.units = 0
        self.first_rows: np.ndarray | None = None

    def label(self, unit: int) -> str:
        return f"shard {unit}"

    def unit_id(self, unit: int) -> str | None:
        return None

    def unit_path(self, unit: int) -> str | None:
        return None

    def sample(self, row: Mapping[str, Any], fallback: str, *, min_side: int) -> dict[str, Any]:
        name = row_id(row, self.columns, fallback)
        volume = row_volume(row, self.columns, name=name, assume_hu=self.source.assume_hu)
        prepared = prepare_volume(volume, crop_background=self.source.crop_background)
        _check_sides(prepared.hu.shape, min_side, name)
        return {"id": name, "hu": prepared.hu, "spacing": prepared.spacing}


class ParquetShards(_Base):
    """Parquet files, one unit a row group; broken footers are skipped here, broken row groups when they are read."""

    def __init__(self, files: list[str], source: StreamSource, name: str, skips: SkipLog) -> None:
        import datasets

        super().__init__(source, name)
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            footers = list(pool.map(read_footer, files))
        good = [
            (file, rows, names) for file, (rows, names) in zip(files, footers, strict=True) if isinstance(rows, list)
        ]
        for file, (rows, _) in zip(files, footers, strict=True):
            if isinstance(rows, str):
                skips.record(name, short_name(file), f"bad shard: {rows}")
        if not good:
            raise StoreError(f"{name}: none of its {len(files)} Parquet shards can be opened; {footers[0][0]}.")
        self.files = [file for file, _, _ in good]
        self._unit_file = np.repeat(np.arange(len(good)), [len(rows) for _, rows, _ in good])
        self._unit_group = np.concatenate([np.arange(len(rows)) for _, rows, _ in good])
        self._groups = [len(rows) for _, rows, _ in good]
        self.units = len(self._unit_file)
        self.first_rows = np.concatenate([[0], np.cumsum(np.concatenate([rows for _, rows, _ in good]))])
        self.count = int(self.first_rows[-1])
        if not self.count:
            raise StoreError(f"{name}: its Parquet shards hold no rows; prepare the data again.")
        names = good[0][2]
        self.prepared = source.columns is None and {*PREPARED_COLUMNS, PREPARED_MARK} <= set(names)
        if self.prepared:
            self.columns = ColumnMap("volume", "id", "spacing", "shape")
        else:
            self.columns = ColumnMap.resolve(source.columns, names)
        self._stream = datasets.load_dataset(
            "parquet",
            data_files={"train": self.files},
            split="train",
            streaming=True,
            columns=self.columns.names(),
            fragment_scan_options=checked_pages(),
        ).with_format("arrow")

    def label(self, unit: int) -> str:
        return f"{short_name(self.files[self._unit_file[unit]])} row group {self._unit_group[unit]}"

    def read(self, unit: int) -> Sequence[Mapping[str, Any]]:
        file, group = int(self._unit_file[unit]), int(self._unit_group[unit])
        shard = self._stream.shard(num_shards=len(self.files), index=file)
        stream = shard.reshard().shard(num_shards=self._groups[file], index=group)
        # `iter` is not split among loader workers a second time, and the whole unit at once leaves no reader thread
        # behind that would abort the process at exit.
        tables = list(stream.iter(batch_size=_WHOLE_UNIT))
        return [table_row(table, index) for table in tables for index in range(table.num_rows)]

    def sample(self, row: Mapping[str, Any], fallback: str, *, min_side: int) -> dict[str, Any]:
        if not self.prepared:
            return super().sample(row, fallback, min_side=min_side)
        name = str(row["id"])
        if row["shape"] is None or row["spacing"] is None or row["volume"] is None:
            raise ScanError(f"{name}: its row is incomplete; prepare it again.")
        _check_sides(row["shape"], min_side, name)
        hu = raw_values(row["volume"], row["shape"], name).astype(np.int16)  # a writable copy that frees the row group
        return {"id": name, "hu": hu, "spacing": tuple(float(s) for s in row["spacing"])}


class Table(_Base):
    """A data set with random access, one unit a row: paths, or anything else that `datasets` holds in a table."""

    def __init__(self, table: Any, source: StreamSource, name: str) -> None:
        super().__init__(source, name)
        if not len(table):
            raise StoreError(f"{name}: no scans were found in it; check the path of the data.")
        self.columns = ColumnMap.resolve(source.columns, table.column_names)
        self._table = undecoded(table).select_columns(self.columns.names())
        self.units = self.count = len(table)
        self.first_rows = np.arange(len(table) + 1)
        # Columns of text can be read without reading scans.
        features = self._table.features
        names = [name for name in self.columns.names() if getattr(features[name], "dtype", None) == "string"]
        self._named = self._table.select_columns(names) if names else None

    def label(self, unit: int) -> str:
        return f"row {unit}"

    def unit_id(self, unit: int) -> str | None:
        return row_id(self._named[unit], self.columns, self.label(unit)) if self._named else None

    def unit_path(self, unit: int) -> str | None:
        value = self._named[unit].get(self.columns.volume) if self._named else None
        return value if isinstance(value, str) else None

    def read(self, unit: int) -> Sequence[Mapping[str, Any]]:
        return [self._table[unit]]


class Streamed(_Base):
    """Any other streaming data set, one unit a shard, rows in the order of the shard."""

    def __init__(self, stream: Any, source: StreamSource, name: str) -> None:
        super().__init__(source, name)
        self.columns = ColumnMap.resolve(source.columns, _column_names(stream, name))
        self._stream = stream
        self.units = stream.num_shards

    def read(self, unit: int) -> Iterator[Mapping[str, Any]]:
        shard = self._stream.shard(num_shards=self.units, index=unit)
        for batch in shard.iter(batch_size=1):  # `iter` is not split among loader workers a second time
            yield {key: values[0] for key, values in batch.items()}


def undecoded(data: Any) -> Any:
    """Switch off decoding of file features, so that reading a row touches no scan."""
    for name, feature in (data.features or {}).items():
        if getattr(feature, "decode", False):
            data = data.cast_column(name, type(feature)(decode=False))
    return data


def _column_names(stream: Any, name: str) -> list[str]:
    if stream.column_names:
        return list(stream.column_names)
    first = next(iter(stream.iter(batch_size=1)), None)
    if first is None:
        raise StoreError(f"{name}: it holds no rows; check the data set and its split.")
    return list(first)


def _check_sides(shape: Sequence[int], min_side: int, name: str) -> None:
    if min(shape) < min_side:
        size = " x ".join(str(int(n)) for n in shape)
        raise ScanError(f"{name}: its {size} voxels have a side under min_side = {min_side}.")


def short_name(path: str) -> str:
    return path.split("?")[0].rstrip("/").split("/")[-1]
