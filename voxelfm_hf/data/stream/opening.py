"""Data sets opened through Hugging Face `datasets`: folders, files, URLs, globs, the Hub, or its objects."""

import glob
import os
import re
from collections.abc import Mapping
from typing import Any

from voxelfm_hf.csv_rows import csv_rows
from voxelfm_hf.data.rows import ColumnMap
from voxelfm_hf.data.shards import shard_files
from voxelfm_hf.data.skips import SkipLog
from voxelfm_hf.data.stream.opened import ParquetShards, Streamed, Table, short_name, undecoded
from voxelfm_hf.data.stream.sources import OpenSource, StreamSource
from voxelfm_hf.volumes import RecipeError, StoreError, find_scans

_SHARD_NAME = re.compile(r"\*-of-(\d{5})")


def open_source(source: StreamSource, skips: SkipLog) -> OpenSource:
    """Open a source without reading any voxels.

    Raises:
        StoreError: it does not exist, cannot be reached or holds nothing.
        LabelError: it is a CSV that cannot be read (see `csv_rows`).
        RecipeError: its column map does not fit.
    """
    name = source.name or _name_of(source.data)
    data = source.data
    if _is_hf(data, "IterableDataset"):
        return _opened_stream(data, source, name)
    if _is_hf(data, "Dataset"):
        return Table(data, source, name)
    if isinstance(data, (list, tuple)):
        paths = [os.fspath(item) for item in data]
        if paths and all(_extension(path) == ".parquet" for path in paths):
            return ParquetShards(paths, source, name, skips)
        return _table_of_paths(paths, source, name)
    if not isinstance(data, (str, os.PathLike)):
        kind = type(data).__name__
        raise RecipeError(f"data must be a path, URL, Hub id, or a datasets Dataset or IterableDataset, got a {kind}.")
    location = os.fspath(data)
    if "://" in location:
        return _open_files(_expanded(location), source, name, skips)
    if os.path.isdir(location):
        shards = [str(path) for path in shard_files(location)]
        if shards:
            return ParquetShards(shards, source, name, skips)
        return _table_of_paths([str(path) for path in find_scans(location)], source, name)
    if os.path.isfile(location):
        return _open_files([location], source, name, skips)
    if any(mark in location for mark in "*?["):
        return _open_files(sorted(glob.glob(location, recursive=True)), source, name, skips)
    if location.startswith((".", "/", "~")) or location.count("/") > 1 or os.path.splitext(location)[1]:
        raise StoreError(f"{location}: no such file or folder; check the path of the data.")
    return _open_hub(location, source, name, skips)


def _open_files(files: list[str], source: StreamSource, name: str, skips: SkipLog) -> OpenSource:
    import datasets

    if not files:
        raise StoreError(f"{source.data}: no file matches; check the path of the data.")
    kinds = {_extension(file) for file in files}
    if kinds == {".parquet"}:
        return ParquetShards(files, source, name, skips)
    if kinds == {".tar"}:
        stream = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)
        return _opened_stream(stream, source, name)
    if kinds <= {".csv", ".tsv", ".jsonl", ".json"} and len(files) == 1:
        return Table(_table_of_text(files[0], source), source, name)
    return _table_of_paths(files, source, name)


def _open_hub(location: str, source: StreamSource, name: str, skips: SkipLog) -> OpenSource:
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    try:
        builder = datasets.load_dataset_builder(location, source.config, revision=source.revision)
        files = (builder.config.data_files or {}).get(source.split)
        if isinstance(builder, Parquet) and files:
            return ParquetShards([str(file) for file in files], source, name, skips)
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

    opened = Streamed(undecoded(stream), source, name)
    if opened.units > 1:
        return opened
    rows = opened.read(0)
    first = next(rows, None)
    if first is None:
        raise StoreError(f"{name}: it holds no rows; check the data set and its split.")
    value = first.get(opened.columns.volume)
    if isinstance(value, str) or (isinstance(value, Mapping) and value.get("bytes") is None):
        wanted = opened.columns.names()
        kept = [{key: row.get(key) for key in wanted} for row in (first, *rows)]
        return Table(datasets.Dataset.from_list(kept), source, name)
    return opened


def _table_of_paths(paths: list[str], source: StreamSource, name: str) -> OpenSource:
    import datasets

    if not paths:
        raise StoreError(f"{source.data}: no scans were found there; check the path of the data.")
    folders = [os.path.dirname(path) for path in paths]
    if len({os.path.isabs(folder) for folder in folders}) > 1:
        folders = [os.path.abspath(folder) for folder in folders]
    root = os.path.commonpath(folders) if "://" not in paths[0] else ""
    ids = [os.path.relpath(path, root) if root else path for path in paths]
    return Table(datasets.Dataset.from_dict({"id": ids, "volume": paths}), source, name)


def _table_of_text(file: str, source: StreamSource) -> Any:
    """A CSV, TSV or JSON lines file as a table; relative paths in it start at its folder."""
    import datasets
    import pyarrow as pa
    import pyarrow.json

    if _extension(file) in (".csv", ".tsv"):
        # All as text: as numbers, 007 and 7 would be one scan, or one patient.
        table = pa.Table.from_pylist([row for _, row in csv_rows(file)])
    else:
        try:
            table = pyarrow.json.read_json(file)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{file}: it cannot be read as a table ({str(error).splitlines()[0]}).") from None
    columns = ColumnMap.resolve(source.columns, table.column_names)
    if pa.types.is_string(table.schema.field(columns.volume).type):
        folder = os.path.dirname(os.path.abspath(file))
        paths = [p if not p or "://" in p else os.path.join(folder, p) for p in table[columns.volume].to_pylist()]
        table = table.set_column(table.column_names.index(columns.volume), columns.volume, pa.array(paths, pa.string()))
    return datasets.Dataset(table)


def _is_hf(data: Any, kind: str) -> bool:
    return type(data).__module__.split(".")[0] == "datasets" and type(data).__name__ == kind


def _extension(path: str) -> str:
    return os.path.splitext(path.split("?")[0])[1].lower()


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
        return short_name(os.fspath(data)) or "data"
    return "data"
