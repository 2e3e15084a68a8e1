"""Data sets as streams of rows, opened through Hugging Face `datasets` and cut into units that readers can share out.

A unit is what one reader reads at a time: a row group of a Parquet file (`IterableDataset.reshard`), a row of a table
of paths, a shard of anything else that streams.
"""

import glob
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from voxelfm_hf.data.isotropic import prepare_volume
from voxelfm_hf.data.parquet_rows import checked_pages, read_footer, table_row
from voxelfm_hf.data.rows import ColumnMap, raw_values, row_id, row_volume
from voxelfm_hf.data.skips import SkipLog
from voxelfm_hf.volumes import RecipeError, ScanError, StoreError, find_scans

logger = logging.getLogger(__name__)

PREPARED_COLUMNS = ("id", "volume", "shape", "spacing")
PREPARED_MARK = "original_spacing"  # only data sets made by `prepare` have this column
_FOOTER_THREADS = 16
_WHOLE_UNIT = 1 << 30
_SHARD_NAME = re.compile(r"\*-of-(\d{5})")


@dataclass(frozen=True)
class StreamSource:
    """One data set of a stream.

    Attributes:
        data: a folder (prepared Parquet shards, or scans of any format), a file (Parquet, CSV or JSON lines of paths,
            WebDataset tar), a list of files or URLs, a glob (over HTTP only train-*-of-00012.parquet), a data set on
            the Hub, or a `datasets` object.
        weight: share of the samples drawn from it; by default its number of scans (all sources or none).
        columns: which column holds what (`ColumnMap`), for data sets that were not prepared here.
        name: for messages and samples; by default derived from `data`.
        config, split, revision: of a data set on the Hub.
        crop_background: for scans that were not prepared: crop to the body on the fly.
        assume_hu: for scans that were not prepared: take values as HU even if they do not look like it.
    """

    data: Any
    weight: float | None = None
    columns: ColumnMap | Mapping[str, str | None] | None = None
    name: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    crop_background: bool = True
    assume_hu: bool = False

    @classmethod
    def of(cls, value: Any) -> "StreamSource":
        """A source from whatever a recipe or a caller gives: a source, a mapping of its fields, or just the data."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping) and type(value).__module__.split(".")[0] != "datasets":
            known = [field.name for field in fields(cls)]
            unknown = sorted(set(value) - set(known))
            if unknown:
                raise RecipeError(f"a data source has an unknown field {unknown[0]!r}; it knows {', '.join(known)}.")
            if "data" not in value:
                raise RecipeError("a data source needs the field data: a folder, file, URL or data set.")
            return cls(**value)
        return cls(value)


class OpenSource(Protocol):
    """A source that was opened: it knows its units and reads them."""

    name: str
    count: int | None  # scans in it, where that is known without reading it
    units: int
    first_rows: np.ndarray | None  # (units + 1,) rows before each unit; None where rows only come one after the other
    columns: ColumnMap | None
    assume_hu: bool

    def read(self, unit: int) -> "Sequence[Mapping[str, Any]] | Iterator[Mapping[str, Any]]":
        """The rows of one unit, not decoded."""

    def label(self, unit: int) -> str:
        """The unit's name for messages."""

    def unit_id(self, unit: int) -> str | None:
        """The id of the only scan in a unit, where that is known without reading it."""

    def unit_path(self, unit: int) -> str | None:
        """The file or URL of the only scan in a unit, where it is one."""

    def sample(self, row: Mapping[str, Any], fallback: str, *, min_side: int) -> dict[str, Any]:
        """Decode a row; ScanError says why it must be skipped."""


def open_source(source: StreamSource, skips: SkipLog) -> OpenSource:
    """Open a source without reading any voxels.

    Raises:
        StoreError: it does not exist, cannot be reached or holds nothing.
        RecipeError: its column map does not fit.
    """
    name = source.name or _name_of(source.data)
    data = source.data
    if _is_hf(data, "IterableDataset"):
        return _opened_stream(data, source, name)
    if _is_hf(data, "Dataset"):
        return _Table(data, source, name)
    if isinstance(data, (list, tuple)):
        paths = [os.fspath(item) for item in data]
        if paths and all(_extension(path) == ".parquet" for path in paths):
            return _ParquetShards(paths, source, name, skips)
        return _table_of_paths(paths, source, name)
    if not isinstance(data, (str, os.PathLike)):
        kind = type(data).__name__
        raise RecipeError(f"data must be a path, URL, Hub id, or a datasets Dataset or IterableDataset, got a {kind}.")
    location = os.fspath(data)
    if "://" in location:
        return _open_files(_expanded(location), source, name, skips)
    if os.path.isdir(location):
        shards = sorted(str(path) for path in Path(location).rglob("*.parquet") if not path.name.startswith("."))
        if shards:
            return _ParquetShards(shards, source, name, skips)
        return _table_of_paths([str(path) for path in find_scans(location)], source, name)
    if os.path.isfile(location):
        return _open_files([location], source, name, skips)
    if any(mark in location for mark in "*?["):
        return _open_files(sorted(glob.glob(location, recursive=True)), source, name, skips)
    if location.startswith((".", "/", "~")) or location.count("/") > 1 or os.path.splitext(location)[1]:
        raise StoreError(f"{location}: no such file or folder; check the path of the data.")
    return _open_hub(location, source, name, skips)


class _Base:
    """What all sources share: names, columns, decoding of scans that were not prepared."""

    def __init__(self, source: StreamSource, name: str) -> None:
        self.name = name
        self.source = source
        self.assume_hu = source.assume_hu
        self.columns: ColumnMap | None = None
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
        assert self.columns is not None
        name = row_id(row, self.columns, fallback)
        volume = row_volume(row, self.columns, name=name, assume_hu=self.source.assume_hu)
        prepared = prepare_volume(volume, crop_background=self.source.crop_background)
        _check_sides(prepared.hu.shape, min_side, name)
        return {"id": name, "hu": prepared.hu, "spacing": prepared.spacing}


class _ParquetShards(_Base):
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
                skips.record(name, _short(file), f"bad shard: {rows}")
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
        return f"{_short(self.files[self._unit_file[unit]])} row group {self._unit_group[unit]}"

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


class _Table(_Base):
    """A data set with random access, one unit a row: paths, or anything else that `datasets` holds in a table."""

    def __init__(self, table: Any, source: StreamSource, name: str) -> None:
        super().__init__(source, name)
        if not len(table):
            raise StoreError(f"{name}: no scans were found in it; check the path of the data.")
        self.columns = ColumnMap.resolve(source.columns, table.column_names)
        self._table = _undecoded(table).select_columns(self.columns.names())
        self.units = self.count = len(table)
        self.first_rows = np.arange(len(table) + 1)
        # Columns of text can be read without reading scans.
        features = self._table.features
        names = [name for name in self.columns.names() if getattr(features[name], "dtype", None) == "string"]
        self._named = self._table.select_columns(names) if names else None

    def label(self, unit: int) -> str:
        return f"row {unit}"

    def unit_id(self, unit: int) -> str | None:
        assert self.columns is not None
        return row_id(self._named[unit], self.columns, self.label(unit)) if self._named else None

    def unit_path(self, unit: int) -> str | None:
        assert self.columns is not None
        value = self._named[unit].get(self.columns.volume) if self._named else None
        return value if isinstance(value, str) else None

    def read(self, unit: int) -> Sequence[Mapping[str, Any]]:
        return [self._table[unit]]


class _Streamed(_Base):
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


def _open_files(files: list[str], source: StreamSource, name: str, skips: SkipLog) -> OpenSource:
    import datasets

    if not files:
        raise StoreError(f"{source.data}: no file matches; check the path of the data.")
    kinds = {_extension(file) for file in files}
    if kinds == {".parquet"}:
        return _ParquetShards(files, source, name, skips)
    if kinds == {".tar"}:
        stream = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)
        return _opened_stream(stream, source, name)
    if kinds <= {".csv", ".tsv", ".jsonl", ".json"} and len(files) == 1:
        return _Table(_table_of_text(files[0], source), source, name)
    return _table_of_paths(files, source, name)


def _open_hub(location: str, source: StreamSource, name: str, skips: SkipLog) -> OpenSource:
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    try:
        builder = datasets.load_dataset_builder(location, source.config, revision=source.revision)
        files = (builder.config.data_files or {}).get(source.split)
        if isinstance(builder, Parquet) and files:
            return _ParquetShards([str(file) for file in files], source, name, skips)
        stream = datasets.load_dataset(
            location, source.config, split=source.split, revision=source.revision, streaming=True
        )
    except (StoreError, RecipeError):
        raise
    except Exception as error:  # the Hub client and the builders raise many unrelated types
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise StoreError(
            f"{location}: neither a local path nor a data set that can be reached on the Hub ({reason})."
        ) from None
    return _opened_stream(stream, source, name)


def _opened_stream(stream: Any, source: StreamSource, name: str) -> OpenSource:
    """A streaming data set; where its rows only point to files (one shard of paths), they become a table."""
    import datasets

    opened = _Streamed(_undecoded(stream), source, name)
    if opened.units > 1:
        return opened
    rows = opened.read(0)
    first = next(rows, None)
    if first is None:
        raise StoreError(f"{name}: it holds no rows; check the data set and its split.")
    assert opened.columns is not None
    value = first.get(opened.columns.volume)
    if isinstance(value, str) or (isinstance(value, Mapping) and value.get("bytes") is None):
        wanted = opened.columns.names()
        kept = [{key: row.get(key) for key in wanted} for row in (first, *rows)]
        return _Table(datasets.Dataset.from_list(kept), source, name)
    return opened


def _table_of_paths(paths: list[str], source: StreamSource, name: str) -> OpenSource:
    import datasets

    if not paths:
        raise StoreError(f"{source.data}: no scans were found there; check the path of the data.")
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if "://" not in paths[0] else ""
    ids = [os.path.relpath(path, root) if root else path for path in paths]
    return _Table(datasets.Dataset.from_dict({"id": ids, "volume": paths}), source, name)


def _table_of_text(file: str, source: StreamSource) -> Any:
    """A CSV, TSV or JSON lines file as a table; relative paths in it start at its folder."""
    import datasets
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json

    try:
        if _extension(file) in (".csv", ".tsv"):
            options = pyarrow.csv.ParseOptions(delimiter="\t" if _extension(file) == ".tsv" else ",")
            table = pyarrow.csv.read_csv(file, parse_options=options)
        else:
            table = pyarrow.json.read_json(file)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{file}: it cannot be read as a table ({str(error).splitlines()[0]}).") from None
    columns = ColumnMap.resolve(source.columns, table.column_names)
    if pa.types.is_string(table.schema.field(columns.volume).type):
        folder = os.path.dirname(os.path.abspath(file))
        paths = [p if not p or "://" in p else os.path.join(folder, p) for p in table[columns.volume].to_pylist()]
        table = table.set_column(table.column_names.index(columns.volume), columns.volume, pa.array(paths, pa.string()))
    return datasets.Dataset(table)


def _undecoded(data: Any) -> Any:
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


def _is_hf(data: Any, kind: str) -> bool:
    return type(data).__module__.split(".")[0] == "datasets" and type(data).__name__ == kind


def _extension(path: str) -> str:
    return os.path.splitext(path.split("?")[0])[1].lower()


def _short(path: str) -> str:
    return path.split("?")[0].rstrip("/").split("/")[-1]


def _expanded(url: str) -> list[str]:
    """The shards that a URL ending in *-of-00012.parquet stands for (a web server has no listing)."""
    match = _SHARD_NAME.search(url)
    if not match:
        return [url]
    total = int(match.group(1))
    return [url[: match.start()] + f"{index:05d}-of-{total:05d}" + url[match.end() :] for index in range(total)]


def _name_of(data: Any) -> str:
    if isinstance(data, (list, tuple)):
        return _name_of(data[0]) if data else "data"
    if isinstance(data, (str, os.PathLike)):
        return _short(os.fspath(data)) or "data"
    return "data"
