"""Time of a search for similar scans in a large store: building the index, then one query at a time."""

import os
import time

import numpy as np

from voxelfm_hf.eval.search.index import ScanIndex

# Vectors of a store lie near few directions: so many factors, with noise of a third of their size.
FACTORS, NOISE = 64, 0.3


def search_speed(*, rows: int, width: int, queries: int) -> str:
    """Seconds to build an index, milliseconds of a query, and how many of the ten nearest it finds.

    Args:
        rows: Rows of the store.
        width: Length of a CLS vector.
        queries: Queries, slightly changed rows of the store.
    """
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(rows, FACTORS)).astype(np.float32)
    cls = factors @ rng.normal(size=(FACTORS, width)).astype(np.float32) / np.float32(np.sqrt(FACTORS))
    cls += np.float32(NOISE) * rng.standard_normal(size=cls.shape, dtype=np.float32)
    start, worked = time.perf_counter(), time.process_time()
    index = ScanIndex([str(row) for row in range(rows)], cls)
    built, worked = time.perf_counter() - start, time.process_time() - worked
    chosen = rng.choice(rows, queries, replace=rows < queries)
    asked = cls[chosen] + np.float32(NOISE) * rng.standard_normal(size=(queries, width), dtype=np.float32)
    index.search(asked[0])
    seconds, answers = [], []
    for query in asked:
        before = time.perf_counter()
        answers.append(index.search(query, k=10))
        seconds.append(time.perf_counter() - before)
    cls /= np.linalg.norm(cls, axis=1, keepdims=True)
    found = [
        len({int(match.id) for match in answer} & set(np.argsort(-(cls @ query))[:10].tolist()))
        for answer, query in zip(answers, asked, strict=True)
    ]
    middle, slow = np.quantile(seconds, (0.5, 0.95)) * 1000
    return (
        f"search, {rows} rows of width {width}: built in {built:.0f} s ({worked:.0f} processor seconds), a query "
        f"{middle:.1f} ms (median), {slow:.1f} ms (95 %), {np.sum(found) / (10 * queries):.1%} of the ten nearest "
        f"found, {os.cpu_count()} cores"
    )
