"""The Parquet shards of a prepared data set: columns, atomic writing, reading the small columns back.

Volumes are stored as int16 bytes in C order and compressed losslessly by Parquet. Row groups stay small, because a
stream shares out and shuffles row groups, and a broken one costs only its own scans; page checksums make damage
visible instead of turning it into wrong HU.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxelfm_hf.volumes import StoreError

ROW_GROUP_BYTES = 64 << 20
ROW_GROUP_ROWS = 8
SHARD_BYTES = 500_000_000

_SIZES = pa.list_(pa.int32())
_LENGTHS = pa.list_(pa.float64())
FACTS = pa.struct(
    [
        ("field_of_view_mm", _LENGTHS),
        ("hu_percentiles", _LENGTHS),
        ("air", pa.float64()),
        ("lung", pa.float64()),
        ("fat", pa.float64()),
        ("soft_tissue", pa.float64()),
        ("contrast_range", pa.float64()),
        ("bone", pa.float64()),
        ("noise_hu", pa.float64()),
        ("region", pa.string()),
        ("contrast", pa.string()),
        ("manufacturer", pa.string()),
        ("kernel", pa.string()),
        ("fingerprint", pa.list_(pa.int16())),
    ]
)
# Every column: its type, and what the data set card says of it. Values come from `prepare/job.py`.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "id": (pa.string(), ""),
    "patient": (pa.string(), "a code, where known"),
    "source": (pa.string(), ""),
    "volume": (pa.large_binary(), ""),
    "shape": (_SIZES, ""),
    "spacing": (_LENGTHS, "mm"),
    "original_shape": (_SIZES, ""),
    "original_spacing": (_LENGTHS, ""),
    "original_orientation": (pa.string(), ""),
    "box": (_SIZES, "what was kept of the original grid"),
    "notes": (pa.list_(pa.string()), "what was repaired or assumed"),
    "content_hash": (pa.string(), ""),
    "facts": (FACTS, "the measurements below, for each scan"),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
# What a stream reads, and the column that only data sets made by `prepare` have.
PREPARED_COLUMNS = ("id", "volume", "shape", "spacing")
PREPARED_MARK = "original_spacing"
SMALL_COLUMNS = [name for name in SCHEMA.names if name != "volume"]


def volume_row(hu: np.ndarray, spacing: Sequence[float], **columns: Any) -> dict[str, Any]:
    """One row from a prepared (D, H, W) int16 volume and its other columns (missing ones become null)."""
    unknown = set(columns) - set(SCHEMA.names)
    if unknown:
        raise TypeError(f"no such column: {sorted(unknown)}")
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {"volume": np.ascontiguousarray(hu, "<i2").tobytes(), "shape": list(hu.shape), "spacing": list(spacing)}
    return row | columns


def write_shards(
    paths: Iterable[str | os.PathLike],
    rows: Iterable[Mapping[str, Any]],
    *,
    compression: str = "zstd",
    max_bytes: int | None = None,
) -> int:
    """Write rows to one shard after the other, each complete or not at all.

    Args:
        paths: where; an older file is replaced. Only as many are used as needed.
        rows: as from `volume_row`; consumed one by one, so that only one row group is in memory.
        compression: Parquet codec, "zstd" (level 3), "lz4" or "none".
        max_bytes: go on with the next shard once a file has grown to this size; None keeps one.

    Returns:
        How many rows were written.
    """
    groups = _row_groups(rows)
    total = 0
    for path in paths:
        written = _write_shard(Path(path), groups, compression=compression, max_bytes=max_bytes)
        if not written:
            break
        total += written
    return total


def _write_shard(
    path: Path, groups: Iterator[list[Mapping[str, Any]]], *, compression: str, max_bytes: int | None
) -> int:
    """Take row groups until the file is large enough; no file if there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            with pq.ParquetWriter(
                file,
                SCHEMA,
                compression=compression,
                compression_level=3 if compression == "zstd" else None,
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            ) as writer:
                for group in groups:
                    writer.write_table(pa.Table.from_pylist(group, SCHEMA), row_group_size=len(group))
                    written += len(group)
                    if max_bytes is not None and file.tell() >= max_bytes:
                        break
            file.flush()
            os.fsync(file.fileno())
        if written:
            os.chmod(name, 0o644)
            os.replace(name, path)
        return written
    finally:
        if os.path.exists(name):
            os.unlink(name)


def _row_groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        length = len(row["volume"])
        if group and size + length > ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += length
        if size >= ROW_GROUP_BYTES or len(group) == ROW_GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group


def shard_files(folder: str | os.PathLike) -> list[Path]:
    """The shards of a prepared data set, sorted."""
    return sorted(path for path in Path(folder).rglob("*.parquet") if not path.name.startswith("."))


def is_prepared_data(folder: str | os.PathLike) -> bool:
    """Whether a folder holds shards made by `prepare`."""
    files = shard_files(folder) if os.path.isdir(folder) else []
    try:
        return bool(files) and PREPARED_MARK in pq.read_schema(files[0]).names
    except (OSError, pa.ArrowException):
        return any("train-" in file.name for file in files)


def read_small(path: str | os.PathLike, columns: Sequence[str] = SMALL_COLUMNS) -> list[dict[str, Any]]:
    """The rows of a shard without their voxels.

    Raises:
        StoreError: no shard of a prepared data set, or a damaged one.
    """
    try:
        return pq.read_table(path, columns=list(columns), partitioning=None).to_pylist()
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise StoreError(
            f"{path}: it is no intact shard of a prepared data set ({reason}); prepare it again."
        ) from None


def read_volumes(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The rows of a shard one by one, with "hu" (D, H, W) int16 in place of the bytes; one row group in memory."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            for index in range(table.num_rows):
                row = table.slice(index, 1).drop_columns(["volume"]).to_pylist()[0]
                values = np.frombuffer(table["volume"][index].as_buffer(), "<i2")
                yield row | {"hu": values.reshape(row["shape"])}
