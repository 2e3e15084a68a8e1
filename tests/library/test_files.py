"""Files that cannot be written whole: one sentence with the system's reason, and nothing left behind."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest

from voxelfm_hf.files import written_file, written_folder
from voxelfm_hf.store import FeatureStore, StoreWriter
from voxelfm_hf.volumes.errors import StoreError, VoxelFMError


@contextmanager
def files_of_at_most(size: int):
    """The system refuses larger files, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def row(identifier: str, length: int = 2) -> dict:
    triples = dict.fromkeys(("spacing_mm", "effective_spacing_mm", "field_of_view_mm"), [1.0] * 3)
    noise = np.random.default_rng(0).normal(size=length).astype(np.float32)
    return {"id": identifier, "source": "s", "cls": noise, "grid": [1, 1, 1], "notes": [], **triples} | {
        "patch_affine": [0.0] * 16
    }


def test_patch_grids_on_a_full_disk_are_one_sentence_and_the_store_stays_good(tmp_path) -> None:
    writer = StoreWriter(tmp_path / "store", {"model": "m"})
    grid = np.zeros((2, 2, 2, 8), np.float16)
    writer.add([row("first")], {"first": grid})
    with (
        files_of_at_most(20_000),
        pytest.raises(StoreError, match="second.safetensors cannot be written: File too"),
    ):
        writer.add([row("second")], {"second": np.zeros((20, 20, 20, 8), np.float16)})
    store = FeatureStore(tmp_path / "store")
    assert store.ids == ["first"] and np.array_equal(store.patches("first"), grid)
    assert [path.name for path in (tmp_path / "store" / "patches").iterdir()] == ["first.safetensors"]


def test_rows_on_a_full_disk_are_one_sentence_and_the_store_stays_good(tmp_path) -> None:
    writer = StoreWriter(tmp_path / "store", {"model": "m"})
    writer.add([row("first", 9000)])
    with files_of_at_most(40_000), pytest.raises(StoreError, match="parquet cannot be written: .*File too large"):
        writer.add([row("second", 9000)])
    assert FeatureStore(tmp_path / "store").ids == ["first"]
    assert not [path for path in (tmp_path / "store").iterdir() if path.name.startswith(".features")]


@pytest.mark.parametrize("place", [written_file, written_folder])
def test_other_errors_stay_loud_and_leave_nothing(tmp_path, place) -> None:
    with pytest.raises(ZeroDivisionError), place(tmp_path / "out"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(VoxelFMError, match="cannot be written: File exists"), place(tmp_path / "file" / "out"):
        pass
