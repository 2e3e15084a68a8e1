import numpy as np
import pytest

from voxelfm_hf.eval.search import index as scan_index
from voxelfm_hf.eval.search.index import ScanIndex

pytest.importorskip("faiss", reason="faiss-cpu is not installed")


def test_small_stores_are_searched_exactly():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 40)).astype(np.float32)
    ids = [f"s{i}" for i in range(500)]
    index = ScanIndex(ids, vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[7]))
    found = index.search(vectors[7] * 3, k=5)
    assert [match.id for match in found] == [ids[row] for row in order[:5]]
    assert found[0].similarity == pytest.approx(1)
    others = index.search(vectors[7], k=5, without=["s7", ids[order[1]]])
    assert [match.id for match in others] == [ids[row] for row in order[2:7]]
    assert len(index.search(vectors[7], k=900)) == 500


def test_large_stores_find_nearly_what_an_exact_search_finds(monkeypatch):
    monkeypatch.setattr(scan_index, "EXACT_ROWS", 1000)
    rng = np.random.default_rng(1)
    basis = rng.normal(size=(40, 200))
    vectors = (rng.normal(size=(4000, 40)) @ basis + 0.5 * rng.normal(size=(4000, 200))).astype(np.float32)
    index = ScanIndex([str(i) for i in range(4000)], vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shared = []
    for row in range(50):
        exact = np.argsort(-(unit @ unit[row]))[:10]
        found = index.search(vectors[row], k=10)
        shared.append(len({int(match.id) for match in found} & set(exact.tolist())) / 10)
        assert found[0].similarity == pytest.approx(1, abs=1e-5)
    assert np.mean(shared) > 0.95


def test_wrong_queries():
    index = ScanIndex(["a"], np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"width 4, got \(5,\)"):
        index.search(np.ones(5))
    with pytest.raises(ValueError, match="at least 1"):
        index.search(np.ones(4), k=0)
