"""A few small random volumes as prepared Parquet shards."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write_shards(folder: Path, number: int = 8, side: int = 12) -> dict[str, np.ndarray]:
    """Write volumes to two shards of one volume a row group; returns them by name."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    volumes = {
        f"scan{index}": generator.integers(-1000, 1000, (side + index % 3, side, side + 2)).astype(np.int16)
        for index in range(number)
    }
    names = list(volumes)
    for shard in range(2):
        rows = [
            {
                "id": name,
                "volume": volumes[name].tobytes(),
                "shape": list(volumes[name].shape),
                "spacing": [1.0, 1.0, 1.0],
                "original_spacing": [1.0, 1.0, 1.0],
            }
            for name in names[shard::2]
        ]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / f"shard-{shard:05d}-of-00002.parquet", row_group_size=1, use_dictionary=False)
    return volumes
