"""Reading Parquet for a stream: footers of local and remote files, checked pages, rows without copies."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.dataset import ParquetFragmentScanOptions

_REMOTE_TRIES = 3  # all ranks must see the same shards, so one lost connection must not drop one


def read_footer(file: str) -> tuple[list[int] | str, list[str]]:
    """(rows of each row group or what is wrong, column names) of a Parquet file."""
    from datasets.utils.file_utils import xopen

    problem = ""
    for _ in range(_REMOTE_TRIES if "://" in file else 1):
        try:
            with xopen(file, "rb") as handle:
                metadata = pq.ParquetFile(handle).metadata
                rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
                return rows, metadata.schema.to_arrow_schema().names
        except Exception as error:  # local, HTTP and Hub file systems raise unrelated types
            problem = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return problem, []


def checked_pages() -> Any:
    return ParquetFragmentScanOptions(page_checksum_verification=True)


def table_row(table: Any, index: int) -> dict[str, Any]:
    """One row of an Arrow table; binaries stay views of the table's memory."""
    row = {}
    for name in table.column_names:
        column = table[name]
        is_binary = pa.types.is_large_binary(column.type) or pa.types.is_binary(column.type)
        row[name] = _binary_view(column, index) if is_binary else column[index].as_py()
    return row


def _binary_view(column: Any, index: int) -> memoryview | None:
    """A binary of a chunked column; indexing the column would copy it."""
    for chunk in column.chunks:
        if index < len(chunk):
            break
        index -= len(chunk)
    if not chunk.is_valid()[index].as_py():
        return None
    _, offsets, values = chunk.buffers()
    kind = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    start, stop = np.frombuffer(offsets, kind)[chunk.offset + index : chunk.offset + index + 2]
    return memoryview(values)[start:stop] if values is not None else memoryview(b"")
