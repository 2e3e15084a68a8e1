"""The sample stream: shares, order, resume, mixes, damage, every kind of source, HTTP."""

import functools
import http.server
import json
import logging
import pickle
import tarfile
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.utils.data

from voxelfm_hf.data import shards
from voxelfm_hf.data.isotropic import prepare_volume
from voxelfm_hf.data.rows import ColumnMap
from voxelfm_hf.data.stream import SampleStream, StreamLoader, StreamSource
from voxelfm_hf.volumes import RecipeError, StoreError, read_volume


def row(index: int, *, name: str = "s", shape=(6, 7, 8)) -> dict:
    """A volume whose every voxel is its index."""
    hu = np.full(shape, index, np.int16)
    return shards.volume_row(hu, (1.5, 1.0, 1.0), id=f"{name}{index:03d}", original_spacing=[1.5, 1.0, 1.0])


def make_shards(folder: Path, counts=(20, 20, 20), *, name: str = "s") -> Path:
    """Shards with so many scans each (8 in a row group), numbered through."""
    first = 0
    for index, count in enumerate(counts):
        path = folder / "data" / f"train-{index:05d}-of-{len(counts):05d}.parquet"
        shards.write_shards([path], [row(i, name=name) for i in range(first, first + count)])
        first += count
    return folder


def ids(samples) -> list[str]:
    return [sample["id"] for sample in samples]


def take(stream, count: int) -> list:
    iterator = iter(stream)
    return [next(iterator) for _ in range(count)]


def play_worker(monkeypatch, worker: int, workers: int) -> None:
    """Pretend to be a loader worker."""
    info = SimpleNamespace(id=worker, num_workers=workers)
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: info)


def keys(batch: list[dict]) -> list[tuple[str, int]]:
    return [(sample["id"], sample["epoch"]) for sample in batch]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("prepared"))


def test_samples_are_what_was_written(folder):
    for sample in SampleStream(folder, min_side=4, passes=1):
        assert sample["hu"].dtype == np.int16 and sample["hu"].shape == (6, 7, 8)
        assert (sample["hu"] == int(sample["id"][1:])).all()
        assert sample["hu"].flags.writeable and sample["spacing"] == (1.5, 1.0, 1.0) and sample["epoch"] == 0


@pytest.mark.parametrize(
    ("world_size", "workers"), [(1, 1), (2, 1), (3, 2), (7, 1), (4, 3), (5, 4), (13, 4), (1, 60), (20, 3)]
)
def test_every_scan_goes_to_exactly_one_reader(folder, monkeypatch, world_size, workers):
    """Also where readers exceed the 9 row groups (of 60 scans), and where shares are unequal."""
    seen: list[str] = []
    sizes = []
    for rank in range(world_size):
        for worker in range(workers):
            play_worker(monkeypatch, worker, workers)
            share = ids(SampleStream(folder, rank=rank, world_size=world_size, min_side=4, passes=1))
            seen += share
            sizes.append(len(share))
    assert sorted(seen) == [f"s{i:03d}" for i in range(60)]
    if world_size * workers > 9:
        assert max(sizes) - min(sizes) <= 1


def test_real_workers_share_without_overlap(folder):
    loader = StreamLoader(SampleStream(folder, min_side=4, passes=1), batch_size=1, num_workers=2)
    assert sorted(ids(sample for batch in loader for sample in batch)) == [f"s{i:03d}" for i in range(60)]


def test_passes_are_complete_and_differ_in_order(folder):
    stream = SampleStream(folder, min_side=4, seed=3)
    samples = take(stream, 180)
    passes = [samples[:60], samples[60:120], samples[120:]]
    assert [{s["epoch"] for s in one} for one in passes] == [{0}, {1}, {2}]
    assert all(len(set(ids(one))) == 60 for one in passes)
    assert len({tuple(ids(one)) for one in passes}) == 3
    assert ids(take(SampleStream(folder, min_side=4, seed=4), 60)) != ids(passes[0])


def test_unequal_shares_even_out_over_the_passes(folder):
    """Of 9 row groups one of two ranks gets one more; which one it is changes."""
    counts = [
        Counter(s["epoch"] for s in take(SampleStream(folder, rank=rank, world_size=2, min_side=4), 300))
        for rank in range(2)
    ]
    for epoch in range(5):
        assert counts[0][epoch] + counts[1][epoch] == 60
    assert len({counts[0][epoch] for epoch in range(5)}) > 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 7, 16])
def test_resume_goes_on_at_the_next_sample(folder, tmp_path, workers, stop):
    make_shards(tmp_path, (5,), name="t")

    def loader() -> StreamLoader:
        sources = [StreamSource(folder, weight=0.7), StreamSource(tmp_path, weight=0.3)]
        return StreamLoader(SampleStream(sources, min_side=4, seed=5), batch_size=3, num_workers=workers, collate=keys)

    straight = take(loader(), 30)
    first = loader()
    got = take(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    second = loader()
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert got + take(second, 30 - stop) == straight


def test_stream_state_without_a_loader(folder):
    straight = ids(take(SampleStream(folder, min_side=4), 100))
    stream = SampleStream(folder, min_side=4)
    got = ids(take(stream, 61))
    resumed = SampleStream(folder, min_side=4)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert got + ids(take(resumed, 39)) == straight


def test_loader_continues_where_its_last_iteration_stopped(folder):
    straight = take(StreamLoader(SampleStream(folder, min_side=4), batch_size=2, collate=keys), 8)
    loader = StreamLoader(SampleStream(folder, min_side=4), batch_size=2, collate=keys)
    assert take(loader, 3) + take(loader, 5) == straight


@pytest.mark.parametrize(
    ("other", "said"),
    [({"seed": 1}, "seed"), ({"world_size": 2}, "world_size"), ({"sources": "other"}, "units")],
)
def test_state_of_another_run_is_refused(folder, tmp_path, other, said):
    state = SampleStream(folder, min_side=4).state_dict()
    sources = make_shards(tmp_path, (3,)) if other.pop("sources", None) else folder
    with pytest.raises(StoreError, match=said):
        SampleStream(sources, min_side=4, **other).load_state_dict(state)


def test_state_with_another_number_of_workers_is_refused(folder):
    state = StreamLoader(SampleStream(folder, min_side=4), batch_size=2, num_workers=2).state_dict()
    with pytest.raises(StoreError, match="same number of workers"):
        StreamLoader(SampleStream(folder, min_side=4), batch_size=2, num_workers=1).load_state_dict(state)


def test_mix_follows_the_weights_and_small_sources_repeat_in_new_orders(folder, tmp_path):
    make_shards(tmp_path, (10,), name="t")
    mix = [StreamSource(folder, weight=1, name="big"), StreamSource(tmp_path, weight=3, name="small")]
    samples = take(SampleStream(mix, min_side=4), 800)
    small = [s for s in samples if s["source"] == "small"]
    assert abs(len(small) - 600) < 4 * np.sqrt(800 * 0.75 * 0.25)
    orders = [[s["id"] for s in small if s["epoch"] == epoch] for epoch in range(5)]
    assert all(len(set(order)) == 10 for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_default_mix_is_by_number_of_scans_and_a_pass_gives_all(folder, tmp_path):
    make_shards(tmp_path, (6,), name="t")
    stream = SampleStream([folder, tmp_path], min_side=4, passes=1)
    assert stream.weights.tolist() == [60, 6]
    assert sorted(ids(stream)) == [f"s{i:03d}" for i in range(60)] + [f"t{i:03d}" for i in range(6)]


def damaged(folder: Path) -> set[str]:
    """Four kinds of damage; ids that are lost."""
    files = shards.shard_files(folder)
    files[0].write_bytes(files[0].read_bytes()[:-200])  # cut off: no footer any more
    metadata = pq.ParquetFile(files[1]).metadata
    column = metadata.row_group(1).column(metadata.schema.names.index("volume"))
    content = bytearray(files[1].read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF  # one flipped byte in scans 28 .. 35
    files[1].write_bytes(content)
    table = pq.read_table(files[2])
    volumes = table["volume"].to_pylist()
    volumes[3] = volumes[3][:-10]  # a truncated row: scan 43
    rows = table.set_column(table.column_names.index("volume"), "volume", pa.array(volumes, pa.large_binary()))
    pq.write_table(pa.concat_tables([rows, pa.Table.from_pylist([row(60, shape=(3, 7, 8))], rows.schema)]), files[2])
    return {f"s{i:03d}" for i in [*range(20), *range(28, 36), 43, 60]}


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_skipped_counted_and_named(tmp_path, caplog, workers):
    make_shards(tmp_path)
    lost = damaged(tmp_path)
    stream = SampleStream(tmp_path, min_side=4, passes=2)
    with caplog.at_level(logging.WARNING):
        got = ids(s for batch in StreamLoader(stream, batch_size=1, num_workers=workers) for s in batch)
    assert Counter(got) == dict.fromkeys({f"s{i:03d}" for i in range(61)} - lost, 2)
    named = {entry["id"]: entry["reason"] for entry in stream.skips.entries()}
    assert set(named) == {
        "train-00000-of-00003.parquet", "train-00001-of-00003.parquet row group 1", "s043", "s060"
    }  # fmt: skip
    assert "truncated" in named["s043"] and "min_side = 4" in named["s060"]
    summary = stream.summary()
    assert summary.startswith("4 skipped") and all(name in summary for name in named)
    if workers == 0:  # messages of worker processes do not pass through this process's logging
        assert all(sum(name in r.message for r in caplog.records) == 1 for name in named)


def test_resume_across_damage_is_exact(tmp_path):
    make_shards(tmp_path)
    damaged(tmp_path)
    straight = ids(take(SampleStream(tmp_path, min_side=4), 80))
    for stop in (1, 15, 31, 47):
        stream = SampleStream(tmp_path, min_side=4)
        take(stream, stop)
        resumed = SampleStream(tmp_path, min_side=4)
        resumed.load_state_dict(stream.state_dict())
        assert ids(take(resumed, 80 - stop)) == straight[stop:]


def test_a_rank_with_nothing_says_so_and_extra_workers_rest(tmp_path):
    make_shards(tmp_path, (3,))
    for rank in range(3):
        assert len(ids(SampleStream(tmp_path, rank=rank, world_size=4, min_side=4, passes=1))) == 1
    with pytest.raises(StoreError, match="rank 3 of 4 finds no usable scan"):
        next(iter(SampleStream(tmp_path, rank=3, world_size=4, min_side=4)))
    with pytest.raises(StoreError, match="min_side"):  # nothing usable: no endless search
        next(iter(StreamLoader(SampleStream(tmp_path, min_side=50), batch_size=1, num_workers=1)))
    loader = StreamLoader(SampleStream(tmp_path, min_side=4), batch_size=1, num_workers=4, collate=keys)
    assert [epoch for ((_, epoch),) in take(loader, 9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_parquet_data_set_on_the_hub_is_cut_by_row_groups(folder, monkeypatch):
    """The Hub is played by a folder; what `datasets` makes of it is real."""
    original = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, config, revision: original(str(folder), config))
    stream = SampleStream("someone/chests", min_side=4, passes=1)
    assert stream.sources[0].units == 9 and stream.sources[0].name == "chests"
    assert sorted(ids(stream)) == [f"s{i:03d}" for i in range(60)]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_streams_from_an_http_server(folder, serve):
    url = serve(folder)
    stream = SampleStream(f"{url}/data/train-*-of-00003.parquet", min_side=4, passes=1)
    assert sorted(ids(stream)) == [f"s{i:03d}" for i in range(60)]
    one_missing = SampleStream(
        [f"{url}/data/train-00000-of-00003.parquet", f"{url}/data/gone.parquet"], min_side=4, passes=1
    )
    assert len(ids(one_missing)) == 20 and "gone.parquet" in one_missing.summary()


def save_nifti(path: Path, seed: int) -> Path:
    """A small body in air, with voxels that are not cubic."""
    rng = np.random.default_rng(seed)
    hu = np.full((30, 28, 12), -1000, np.int16)
    hu[3:27, 3:25, 1:11] = rng.integers(-100, 200, (24, 22, 10))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([1.0, 1.0, 2.5, 1.0])), path)
    return path


@pytest.fixture
def scans(tmp_path) -> Path:
    for index in range(4):
        save_nifti(tmp_path / "scans" / f"p{index}" / f"ct{index}.nii.gz", index)
    return tmp_path / "scans"


def check_raw(samples: list[dict], files: list[Path]) -> None:
    """Samples equal the files, read and prepared."""
    by_name = {Path(sample["id"]).name: sample for sample in samples}
    assert set(by_name) == {file.name for file in files}
    for file in files:
        expected = prepare_volume(read_volume(file))
        np.testing.assert_array_equal(by_name[file.name]["hu"], expected.hu)
        assert by_name[file.name]["spacing"] == expected.spacing


def test_unprepared_sources(scans, tmp_path):
    files = sorted(scans.rglob("*.nii.gz"))
    check_raw(list(SampleStream(scans, min_side=4, passes=1)), files)
    assert sorted(ids(SampleStream(scans, min_side=4, passes=1)))[0] == "p0/ct0.nii.gz"

    table = tmp_path / "list.csv"
    lines = [f"{file.relative_to(tmp_path)},x{i}" for i, file in enumerate(files)]
    table.write_text("\n".join(["where,code", *lines]))
    source = StreamSource(table, columns={"volume": "where", "id": "code"})
    assert sorted(ids(SampleStream(source, min_side=4, passes=1))) == ["x0", "x1", "x2", "x3"]

    folder = datasets.load_dataset("niftifolder", data_dir=str(scans), split="train", streaming=True)
    check_raw(list(SampleStream(folder, min_side=4, passes=1)), files)

    blobs = datasets.Dataset.from_dict({"id": [f.name for f in files], "nifti": [f.read_bytes() for f in files]})
    check_raw(list(SampleStream(blobs, min_side=4, passes=1)), files)
    blobs.to_parquet(tmp_path / "foreign.parquet")
    check_raw(list(SampleStream(tmp_path / "foreign.parquet", min_side=4, passes=1)), files)

    with tarfile.open(tmp_path / "web.tar", "w") as tar:
        for file in files:
            tar.add(file, arcname=file.name)
    # WebDataset unpacks .gz, so the same files are plain NIfTI bytes there.
    source = StreamSource(tmp_path / "web.tar", columns={"volume": "nii.gz", "id": "__key__"})
    samples = [{**sample, "id": sample["id"] + ".nii.gz"} for sample in SampleStream(source, min_side=4, passes=1)]
    check_raw(samples, files)


def test_arrays_need_spacing_and_must_look_like_hu(scans):
    volumes = [read_volume(file) for file in sorted(scans.rglob("*.nii.gz"))]
    arrays = [volume.hu.tolist() for volume in volumes] + [np.zeros((8, 8, 8)).tolist()]
    spacings = [list(volume.spacing) for volume in volumes] + [[1.0, 1.0, 1.0]]
    data = datasets.Dataset.from_dict({"id": list("abcde"), "image": arrays, "mm": spacings})
    source = StreamSource(data, columns={"volume": "image", "spacing": "mm"})
    stream = SampleStream(source, min_side=4, passes=1)
    samples = {sample["id"]: sample for sample in stream}
    assert sorted(samples) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(samples["b"]["hu"], prepare_volume(volumes[1]).hu)
    assert "all values are 0" in stream.summary()
    without = SampleStream(StreamSource(data, columns={"volume": "image"}), min_side=4, passes=1)
    with pytest.raises(StoreError, match="voxel spacing"):
        list(without)


def test_one_unsplittable_shard_is_striped(scans, tmp_path):
    """A single tar has no parts to share out: readers take turns over its rows."""
    with tarfile.open(tmp_path / "web.tar", "w") as tar:
        for file in sorted(scans.rglob("*.nii.gz")):
            tar.add(file, arcname=file.name)
    source = StreamSource(tmp_path / "web.tar", columns={"volume": "nii.gz", "id": "__key__"})
    shares = [ids(SampleStream(source, rank=rank, world_size=3, min_side=4, passes=1)) for rank in range(3)]
    assert sorted(sum(shares, [])) == ["ct0", "ct1", "ct2", "ct3"] and [len(s) for s in shares] == [2, 1, 1]
    straight = ids(take(SampleStream(source, min_side=4), 9))
    stream = SampleStream(source, min_side=4)
    take(stream, 3)
    resumed = SampleStream(source, min_side=4)
    resumed.load_state_dict(stream.state_dict())
    assert ids(take(resumed, 6)) == straight[3:]


def test_unreadable_scans_among_others_are_named(scans):
    (scans / "p1" / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    stream = SampleStream(scans, min_side=4, passes=1)
    assert len(ids(stream)) == 4
    assert [entry["id"] for entry in stream.skips.entries()] == ["p1/broken.nii.gz"]


def test_mistakes_are_sentences(folder, tmp_path, scans):
    with pytest.raises(StoreError, match="no such file or folder"):
        SampleStream(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="no scans were found"):
        SampleStream(tmp_path / "empty")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(StoreError, match="none of its 1 Parquet shards can be opened"):
        SampleStream(tmp_path / "bad")
    with pytest.raises(StoreError, match="neither a local path nor a data set that can be reached"):
        SampleStream("someone/no-such-data")
    with pytest.raises(RecipeError, match="got a DatasetDict"):
        SampleStream(datasets.DatasetDict())
    with pytest.raises(RecipeError, match="unknown field 'weigth'"):
        SampleStream({"data": folder, "weigth": 1})
    with pytest.raises(RecipeError, match="either every data source has a weight, or none"):
        SampleStream([StreamSource(folder, weight=1), StreamSource(scans)])
    with pytest.raises(RecipeError, match="no column 'scn'"):
        SampleStream(StreamSource(folder, columns={"volume": "scn"}))
    with pytest.raises(RecipeError, match="no column of the data set looks like scans"):
        ColumnMap.resolve(None, ["a", "b"])
    with pytest.raises(RecipeError, match="rank must lie in"):
        SampleStream(folder, rank=2, world_size=2)
    with pytest.raises(RecipeError, match="no data source is given"):
        SampleStream([])


def test_a_stream_survives_pickling(folder, scans):
    """As loader workers need it where processes are spawned (macOS, Windows)."""
    stream = SampleStream([folder, scans], min_side=4)
    straight = ids(take(stream, 40))
    copy = pickle.loads(pickle.dumps(SampleStream([folder, scans], min_side=4)))
    assert ids(take(copy, 40)) == straight and copy.skips.path != stream.skips.path
