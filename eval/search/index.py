"""Search a feature store for the scans most like a given one, by cosine similarity of CLS vectors.

Small stores are searched exactly. Larger ones are first searched in 128 principal components, in half precision, and
the best candidates are compared by their full vectors: for vectors of 864 numbers 13 times less to read for a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes.errors import StoreError, VoxelFMError

EXACT_ROWS = 10_000
COMPONENTS = 128
CANDIDATES_PER_ANSWER = 20


@dataclass(frozen=True)
class Match:
    """An answer: the id in the store and its cosine similarity."""

    id: str
    similarity: float


class ScanIndex:
    """An index over the rows of a store, built in memory in seconds.

    Args:
        ids: Ids of the rows.
        cls: (rows, C) CLS vectors.

    Raises:
        VoxelFMError: faiss is not installed.
    """

    def __init__(self, ids: Sequence[str], cls: np.ndarray):
        try:
            import faiss
        except ImportError:
            raise VoxelFMError("searching a store needs the package faiss: pip install 'voxelfm-hf[search]'") from None
        self.ids = list(ids)
        self.width = cls.shape[1] if len(cls) else 0
        vectors = _normalised(cls)
        self._threads = faiss.omp_set_num_threads
        self._index: Any
        if len(self.ids) <= EXACT_ROWS or self.width <= COMPONENTS:
            self._index = faiss.IndexFlatIP(self.width)
        else:
            kind = f"PCA{COMPONENTS},SQfp16"
            self._index = faiss.IndexRefineFlat(faiss.index_factory(self.width, kind, faiss.METRIC_INNER_PRODUCT))
            self._index.k_factor = CANDIDATES_PER_ANSWER
            self._index.train(vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), 20_000)).astype(int)])
        self._index.add(vectors)

    @classmethod
    def of_store(cls, store: FeatureStore) -> "ScanIndex":
        """An index over all rows of a store; StoreError when it has none."""
        if not store.ids:
            raise StoreError(f"{store.folder} holds no scans to search")
        return cls(store.ids, store.cls)

    def search(self, query: np.ndarray, *, k: int = 10, without: Sequence[str] = ()) -> list[Match]:
        """The rows most similar to one vector.

        Args:
            query: (C,) CLS vector of a scan or region made with the same weights.
            k: Number of answers; fewer when the store is smaller.
            without: Ids to leave out: the query itself, other scans of its patient.

        Returns:
            Answers, the most similar first.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        query = np.asarray(query, dtype=np.float32)
        if query.shape != (self.width,):
            raise ValueError(f"the query must be a vector of width {self.width}, got {query.shape}")
        left_out = set(without)
        self._threads(1)  # one query is too little work to share out
        wanted = min(k + len(left_out), len(self.ids))
        similarities, rows = self._index.search(_normalised(query[None]), wanted)
        found = [Match(self.ids[row], float(s)) for row, s in zip(rows[0], similarities[0], strict=True) if row >= 0]
        return [match for match in found if match.id not in left_out][:k]


def _normalised(vectors: np.ndarray) -> np.ndarray:
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
