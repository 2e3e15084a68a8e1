"""Scans to Parquet shards: values, refusals, resuming, duplicates, privacy, processes."""

import csv
import fcntl
import functools
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from voxelfm_hf.data.isotropic import prepare_volume
from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.prepare import job as prepare_job
from voxelfm_hf.data.prepare import prepare
from voxelfm_hf.data.prepare.dicom_facts import Pseudonyms, dicom_patient, scanner_facts
from voxelfm_hf.data.prepare.job import Job, JobSettings, run_jobs
from voxelfm_hf.data.rows import ColumnMap, row_volume
from voxelfm_hf.data.shards import ROW_GROUP_ROWS, read_volumes, shard_files, volume_row, write_shards
from voxelfm_hf.data.skips import SkipLog
from voxelfm_hf.data.stream import SampleStream, StreamSource
from voxelfm_hf.data.stream.opening import open_source
from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.volumes import StoreError, Volume, read_volume
from voxelfm_hf.volumes.errors import LabelError


def body(seed: int, *, shape=(14, 34, 36), spacing=(2.5, 1.0, 0.9), noise: float = 20) -> Volume:
    """An ellipsoid of soft tissue with noise, in air."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(a**2 for a in axes) < 0.8
    rng = np.random.default_rng(seed)
    hu = np.where(inside, 40 + 10 * seed, -1000) + rng.normal(0, noise, shape)
    return Volume.from_array(np.rint(hu).astype(np.int16), spacing=spacing)


def rows_of(out: Path) -> dict[str, dict]:
    return {row["id"]: row for file in shard_files(out) for row in read_volumes(file)}


def table_of(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def digests(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in shard_files(out)}


@pytest.fixture
def scans(tmp_path) -> Path:
    folder = tmp_path / "scans"
    for index in range(5):
        write_nifti(body(index), folder / f"p{index}" / "ct.nii.gz")
    return folder


def quick(sources, out, **options):
    return prepare(sources, out, **({"workers": 1, "describe": False} | options))


@pytest.mark.parametrize("spacing", [(2.5, 0.8, 0.8), (1.0, 1.0, 1.0), (0.4, 0.4, 0.4), (5.0, 0.5, 0.6)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_values_are_those_the_processor_feeds_to_the_model(spacing, dtype):
    """The image processor with patches of one voxel and no budget is the reference."""
    volume = body(1, shape=(30, 40, 44), spacing=spacing)
    hu = volume.hu.astype(dtype)
    hu[10, 20, 20], hu[11, 20, 20] = 3000, -2000  # metal and padding are clipped before the resampling
    if dtype == np.float32:
        hu += np.float32(0.3)
    volume = Volume.from_array(hu, spacing=spacing)
    prepared = prepare_volume(volume)
    processor = VoxelFMImageProcessor(patch_size=1, max_patches=10**9)
    values = processor(volume, return_geometry=True)
    expected = values["pixel_values"][0, 0].numpy() * processor.image_std + processor.image_mean
    assert prepared.hu.shape == expected.shape and prepared.hu.dtype == np.int16
    assert np.abs(prepared.hu - expected).max() <= 0.501
    np.testing.assert_allclose(prepared.spacing, values["geometry"][0].spacing_mm)
    assert prepared.hu.min() >= -1000 and prepared.hu.max() <= 1900


def test_a_scan_without_body_is_kept_whole_and_thin_crops_are_no_error():
    air = prepare_volume(body(0, shape=(9, 9, 9), spacing=(1, 1, 1)))
    assert air.hu.shape == (9, 9, 9) and any("no body was found" in note for note in air.notes)
    crop = Volume.from_array(np.full((2, 43, 43), -700, np.int16), spacing=(2.5, 0.7, 0.7))
    assert prepare_volume(crop).hu.shape == (7, 40, 40)
    one = Volume.from_array(np.full((1, 30, 30), 0, np.int16), spacing=(0.75, 0.75, 0.8))
    assert min(prepare_volume(one).hu.shape) == 1


def test_rows_hold_the_prepared_scan_and_its_origin(scans, tmp_path):
    out = tmp_path / "out"
    summary = quick(scans, out, name="demo")
    assert (summary.scans, summary.new, summary.failed, summary.duplicates) == (5, 5, {}, {})
    rows = rows_of(out)
    assert sorted(rows) == [f"p{i}/ct.nii.gz" for i in range(5)]
    volume = read_volume(scans / "p3" / "ct.nii.gz")
    expected, row = prepare_volume(volume), rows["p3/ct.nii.gz"]
    np.testing.assert_array_equal(row["hu"], expected.hu)
    assert row["spacing"] == list(expected.spacing) and row["source"] == "demo"
    assert row["original_shape"] == [14, 34, 36] and row["original_spacing"] == list(volume.spacing)
    assert row["original_orientation"] == "LPS"
    assert row["box"] == [edge for side in expected.box for edge in side] and len(row["content_hash"]) == 64
    streamed = {s["id"]: s["hu"] for s in SampleStream(out, min_side=4, passes=1)}
    np.testing.assert_array_equal(streamed["p3/ct.nii.gz"], expected.hu)


def test_datasets_loads_the_folder(scans, tmp_path):
    quick(scans, tmp_path / "out", describe=True)
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    row = next(iter(data))
    hu = np.frombuffer(row["volume"], "<i2").reshape(row["shape"])
    np.testing.assert_array_equal(hu, rows_of(tmp_path / "out")[row["id"]]["hu"])


def test_datasets_never_gives_the_rows_of_another_folder_of_the_same_name(scans, tmp_path):
    quick(scans, tmp_path / "one" / "shards", describe=True)
    quick(scans / "p1", tmp_path / "two" / "shards", describe=True)
    lengths = [
        len(datasets.load_dataset(str(tmp_path / name / "shards"), split="train", cache_dir=str(tmp_path / "cache")))
        for name in ("one", "two")
    ]
    assert lengths == [len(rows_of(tmp_path / name / "shards")) for name in ("one", "two")]
    assert lengths[0] > lengths[1]


def test_failures_are_named_and_tried_again_and_nothing_else_is_read_twice(scans, tmp_path, monkeypatch):
    out = tmp_path / "out"
    broken = scans / "p1" / "ct.nii.gz"
    good = broken.read_bytes()
    broken.write_bytes(good[:500])
    mask = nibabel.Nifti1Image(np.eye(20, dtype=np.uint8)[None].repeat(9, 0), np.eye(4))
    nibabel.save(mask, scans / "p2" / "mask.nii.gz")
    summary = quick(scans, out)
    assert set(summary.failed) == {"p1/ct.nii.gz", "p2/mask.nii.gz"} and summary.scans == 4
    listed = {row["id"]: row["reason"] for row in table_of(out / "failures.csv")}
    assert "mask" in listed["p2/mask.nii.gz"] and str(tmp_path) not in str(listed)
    before = rows_of(out)

    broken.write_bytes(good)
    (scans / "p2" / "mask.nii.gz").unlink()
    write_nifti(body(9), scans / "p9" / "ct.nii.gz")
    read: list[str] = []
    original = prepare_job.row_volume
    monkeypatch.setattr(prepare_job, "row_volume", lambda *a, **k: (read.append(k["name"]), original(*a, **k))[1])
    summary = quick(scans, out)
    assert sorted(read) == ["p1/ct.nii.gz", "p9/ct.nii.gz"]
    assert (summary.scans, summary.new, summary.failed) == (6, 2, {})
    assert table_of(out / "failures.csv") == []
    rows = rows_of(out)
    assert all(rows[name]["hu"].tobytes() == row["hu"].tobytes() for name, row in before.items())
    names = [file.name for file in shard_files(out)]
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    read.clear()
    kept = digests(out)
    assert quick(scans, out).new == 0 and not read and digests(out) == kept


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_an_interrupted_run_is_continued(scans, tmp_path, stop):
    class Killed(BaseException):
        pass

    def kill(done, total):
        if done == stop:
            raise Killed

    straight, out = tmp_path / "straight", tmp_path / "out"
    quick(scans, straight)
    with pytest.raises(Killed):
        quick(scans, out, progress=kill, shard_bytes=1)  # a shard a scan
    assert all("new" in file.name for file in shard_files(out))
    done = len(rows_of(out))
    (out / "data" / ".train-half-written").write_bytes(b"left by a process that was killed")
    summary = quick(scans, out)
    assert (summary.scans, summary.new) == (5, 5 - done) and done in (stop - 1, stop)
    expected = rows_of(straight)
    for name, row in rows_of(out).items():
        np.testing.assert_array_equal(row["hu"], expected[name]["hu"])
    assert [path.name for path in out.rglob(".*")] == [".lock"]


def test_a_broken_shard_is_made_again(scans, tmp_path):
    out = tmp_path / "out"
    quick(scans, out, shard_bytes=1)
    victim = shard_files(out)[2]
    victim.write_bytes(victim.read_bytes()[:-100])
    summary = quick(scans, out, shard_bytes=1)
    assert (summary.scans, summary.new) == (5, 1) and len(rows_of(out)) == 5


def test_duplicates_are_dropped_in_any_format_and_named(scans, tmp_path):
    out = tmp_path / "out"
    volume = read_volume(scans / "p2" / "ct.nii.gz")
    write_dicom_series(volume, scans / "again")
    turned = nibabel.load(scans / "p3" / "ct.nii.gz").as_reoriented([[1, -1], [0, 1], [2, -1]])
    nibabel.save(turned, scans / "p3" / "turned.nii")
    summary = quick(scans, out)
    assert summary.duplicates == {"p2/ct.nii.gz": "again", "p3/turned.nii": "p3/ct.nii.gz"}
    assert summary.scans == 5 and "again" in rows_of(out)
    write_nifti(volume, scans / "0-first-by-name.nii")  # the scan that is there already stays
    summary = quick(scans, out)
    assert summary.duplicates["0-first-by-name.nii"] == "again" and summary.scans == 5 and summary.new == 0
    assert len(table_of(out / "duplicates.csv")) == 3
    assert quick(scans, out).duplicates == summary.duplicates


def test_scans_are_shuffled_over_shards_and_row_groups_stay_small(tmp_path):
    for index in range(30):
        write_nifti(body(index, shape=(6, 12, 12), spacing=(1, 1, 1)), tmp_path / "scans" / f"{index:02d}.nii.gz")
    orders = []
    for seed in (0, 0, 1):
        out = tmp_path / f"out{len(orders)}"
        quick(tmp_path / "scans", out, seed=seed)
        orders.append([row["id"] for file in shard_files(out) for row in read_volumes(file)])
        for file in shard_files(out):
            metadata = pq.read_metadata(file)
            assert all(metadata.row_group(g).num_rows <= ROW_GROUP_ROWS for g in range(metadata.num_row_groups))
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2]) != orders[0]


def test_shards_end_near_the_wanted_size_and_lose_nothing(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        volume_row(rng.integers(-1000, 1000, (64, 64, 64), dtype=np.int16), (1, 1, 1), id=str(i)) for i in range(40)
    ]
    paths = [tmp_path / f"{i}.parquet" for i in range(40)]
    assert write_shards(paths, iter(rows), max_bytes=3_000_000) == 40
    files = shard_files(tmp_path)
    assert 2 <= len(files) <= 20
    got = sorted((row for file in files for row in read_volumes(file)), key=lambda row: int(row["id"]))
    assert len(got) == 40
    assert all(a["hu"].tobytes() == b["volume"] for a, b in zip(got, rows, strict=True))


def test_several_processes_give_the_same_shards_as_one(process_server, scans, tmp_path):
    calls = []
    one = quick(scans, tmp_path / "one", shard_bytes=1)
    two = quick(scans, tmp_path / "two", shard_bytes=1, workers=2, progress=lambda *a: calls.append(a))
    assert one.scans == two.scans == 5 and one.shards == two.shards == 5
    assert digests(tmp_path / "one") == digests(tmp_path / "two") and calls[-1] == (5, 5)


def test_a_scan_that_kills_its_process_is_named_and_the_rest_is_done(process_server, scans, tmp_path):
    """Built of picklable pieces, since the worker is another process."""
    killer = SimpleNamespace(
        name="killer",
        columns=ColumnMap("volume"),
        assume_hu=False,
        units=1,
        unit_id="killer{}.nii".format,
        label="killer{}".format,
        read=functools.partial(os._exit),
    )
    table = open_source(StreamSource(scans), SkipLog())
    settings = JobSettings(
        data_folder=str(tmp_path / "data"), work_folder=str(tmp_path / "work"), salt_file=str(tmp_path / "salt"),
        compression="zstd", shard_bytes=1, crop_background=True, hu_range=(-1000, 1900), min_spacing_mm=0.75,
        assume_hu=False, anonymous_ids=False,
    )  # fmt: skip
    jobs = [Job("0", [(0, 0), (0, 1)]), Job("k", [(1, 7), (0, 2)])]
    result = run_jobs(jobs, [table, killer], settings, set(), workers=2, total=4)
    assert list(result.failed) == ["killer7.nii"] and "died" in result.failed["killer7.nii"]
    assert len(rows_of(tmp_path / "data")) == 3


def test_other_settings_and_foreign_folders_are_refused(scans, tmp_path):
    out = tmp_path / "out"
    quick(scans, out)
    with pytest.raises(StoreError, match="crop_background = True, now it is False"):
        quick(scans, out, crop_background=False)
    with pytest.raises(StoreError, match="prepared data set already"):
        quick(out, tmp_path / "twice")
    with pytest.raises(StoreError, match="no such file or folder"):
        quick(tmp_path / "nowhere", tmp_path / "x")
    with pytest.raises(StoreError, match="outside the data set"):
        quick(scans, tmp_path / "y", salt_file=tmp_path / "y" / "salt")
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another run"):
            quick(scans, out)
    with pytest.raises(StoreError, match="compression must be"):
        quick(scans, tmp_path / "z", compression="gzip")


SECRETS = ("DOE^JANE", "4711-XYZ", "19610203", "GENERAL HOSPITAL", "1.2.826.0.1.99", "says she smokes")


@pytest.fixture
def dicom(tmp_path) -> Path:
    """Three series of two patients, with planted identifiers."""
    import pydicom

    for index in range(3):
        folder = write_dicom_series(body(index), tmp_path / "dicom" / f"s{index}", seed=index)
        for file in folder.iterdir():
            dataset = pydicom.dcmread(file)
            dataset.PatientName, dataset.PatientID = "DOE^JANE", f"4711-XYZ-{min(index, 1)}"
            dataset.PatientBirthDate, dataset.InstitutionName = "19610203", "GENERAL HOSPITAL"
            dataset.StudyInstanceUID = "1.2.826.0.1.99"
            dataset.Manufacturer, dataset.ConvolutionKernel = "SIEMENS", ["Br36d", "3"] if index else "says she smokes"
            dataset.save_as(file)
    return tmp_path / "dicom"


def test_patients_are_coded_and_no_identifier_is_written(dicom, tmp_path):
    out = tmp_path / "data" / "out"
    quick(dicom, out, describe=True)
    rows = rows_of(out)
    codes = [rows[f"s{i}"]["patient"] for i in range(3)]
    assert codes[1] == codes[2] != codes[0] and all(len(code) == 16 for code in codes)
    assert [rows[f"s{i}"]["facts"]["kernel"] for i in range(3)] == ["other", "Br36d", "Br36d"]
    assert rows["s0"]["facts"]["manufacturer"] == "Siemens"
    for file in out.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [secret for secret in SECRETS if secret.encode() in content], file
    # Parquet compresses, so look at the decoded columns too.
    assert not [secret for secret in SECRETS if secret in str([{**row, "hu": None} for row in rows.values()])]
    salt = out.with_name("out.salt")
    assert salt.stat().st_mode & 0o077 == 0
    assert Pseudonyms(salt).code("4711-XYZ-0") == codes[0] == Pseudonyms(salt).code(dicom_patient(dicom / "s0"))
    assert Pseudonyms(tmp_path / "other.salt").code("4711-XYZ-0") != codes[0]


def test_anonymous_ids_hide_file_names(tmp_path):
    write_nifti(body(0), tmp_path / "scans" / "DOE_JANE" / "ct.nii.gz")
    (tmp_path / "scans" / "ROE_RICHARD.nii.gz").write_bytes(b"\x1f\x8bbroken")
    out = tmp_path / "data" / "out"
    summary = quick(tmp_path / "scans", out, anonymous_ids=True, describe=True)
    assert summary.scans == 1 and len(summary.failed) == 1
    for file in out.rglob("*"):
        if file.is_file():
            assert not any(name in file.read_bytes() for name in (b"DOE_JANE", b"ROE_RICHARD")), file
    ((code, row),) = rows_of(out).items()
    assert code.startswith("scan-") and "DOE" not in str({**row, "hu": None})
    names = {entry["id"]: entry["original"] for entry in table_of(out.with_name("out.ids.csv"))}
    assert names[code] == "DOE_JANE/ct.nii.gz" and set(names) == {code, *summary.failed}
    assert quick(tmp_path / "scans", out, anonymous_ids=True).new == 0


def test_columns_of_a_data_set(scans, tmp_path):
    files = sorted(scans.rglob("*.nii.gz"))
    table = tmp_path / "list.csv"
    lines = [f"{file.relative_to(tmp_path)},x{i},patient{i // 2}" for i, file in enumerate(files)]
    table.write_text("\n".join(["where,code,who", *lines]))
    quick(table, tmp_path / "out", columns={"volume": "where", "id": "code", "patient": "who"})
    rows = rows_of(tmp_path / "out")
    assert sorted(rows) == [f"x{i}" for i in range(5)]
    assert rows["x0"]["patient"] == rows["x1"]["patient"] != rows["x2"]["patient"]
    data = datasets.load_dataset("niftifolder", data_dir=str(scans), split="train")
    quick(data, tmp_path / "out2")
    np.testing.assert_array_equal(
        next(r["hu"] for i, r in rows_of(tmp_path / "out2").items() if i.endswith("p4/ct.nii.gz")), rows["x4"]["hu"]
    )


@pytest.mark.parametrize("header", ["path,patient", "path,PatientID", "path,patient_id"])
def test_a_list_of_paths_and_patients(scans, tmp_path, header):
    """Patients are told apart as they are written, and what is no DICOM has one too."""
    files = sorted(scans.rglob("*.nii.gz"))
    people = ["007", "7", "007", "", "8"]
    lines = [f"{file.relative_to(tmp_path)},{who}" for file, who in zip(files, people, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join([header, *lines]))
    quick(tmp_path / "list.csv", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    code = [rows[str(file)]["patient"] for file in files]
    assert code[0] == code[2] and code[3] is None and len({code[0], code[1], code[4], None}) == 4


def test_spacing_in_a_list_is_text_or_an_empty_cell(scans, tmp_path):
    """A cell that states a spacing counts, an empty one leaves it to the caller, a wrong one fails its row alone."""
    for name in ("stated", "empty", "wrong"):
        np.save(tmp_path / f"{name}.npy", body(1).hu)
    nifti = next(scans.rglob("*.nii.gz")).relative_to(tmp_path)
    lines = ['stated.npy,"2.5,1,0.9"', "empty.npy, ", "wrong.npy,0.75", f"{nifti},thin", ",1"]
    (tmp_path / "list.csv").write_text("\n".join(["path,spacing", *lines]))
    summary = quick(tmp_path / "list.csv", tmp_path / "out")
    rows = {Path(name).name: row for name, row in rows_of(tmp_path / "out").items()}
    assert rows.keys() == {"stated.npy", nifti.name} and rows["stated.npy"]["original_spacing"] == [2.5, 1.0, 0.9]
    reasons = {Path(name).name: reason for name, reason in summary.failed.items()}
    assert "states no voxel spacing" in reasons["empty.npy"]
    assert "spacing 0.75 (column 'spacing'), not three numbers" in reasons["wrong.npy"]
    assert "holds no scan" in reasons["row 4 row 0"]
    source = open_source(StreamSource(tmp_path / "list.csv"), SkipLog())
    for unit, expected in enumerate([(2.5, 1, 0.9), (5, 2, 2)]):
        volume = row_volume(source.read(unit)[0], source.columns, name="x", spacing=(5, 2, 2))
        assert volume.spacing == expected


def test_ids_of_a_list_are_as_they_are_written(scans, tmp_path):
    files = sorted(scans.rglob("*.nii.gz"))
    names = ["001", "1", "1e3", "1.50", "7"]
    lines = [f"{file.relative_to(tmp_path)};{name}" for file, name in zip(files, names, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path;id", *lines]))
    quick(tmp_path / "list.csv", tmp_path / "out")
    assert set(rows_of(tmp_path / "out")) == set(names)
    assert quick(tmp_path / "list.csv", tmp_path / "out").new == 0
    (tmp_path / "list.csv").write_text("path,id\n")
    with pytest.raises(LabelError, match="has no rows"):
        quick(tmp_path / "list.csv", tmp_path / "other")


def test_folders_and_lists_together(scans, tmp_path, monkeypatch):
    """Relative and absolute folders have one root, and a list is no scan."""
    monkeypatch.chdir(scans)
    (tmp_path / "list.csv").write_text("path,id,patient\nscans/p2/ct.nii.gz,two,x\nscans/p3/ct.nii.gz,three,x\n")
    summary = quick(["p0", str(scans / "p1"), str(scans / "p0"), str(tmp_path / "list.csv")], tmp_path / "out")
    assert (summary.failed, summary.duplicates) == ({}, {})
    rows = rows_of(tmp_path / "out")
    assert sorted(rows) == ["p0/ct.nii.gz", "p1/ct.nii.gz", "three", "two"]
    assert rows["two"]["patient"] == rows["three"]["patient"] is not None
    assert rows["p0/ct.nii.gz"]["source"] == "scans" and rows["two"]["source"] == "list.csv"
    again = quick(["p0", str(scans / "p1"), str(tmp_path / "list.csv"), "p4"], tmp_path / "out")
    assert (again.scans, again.new) == (5, 1)
    (tmp_path / "more.csv").write_text("where\nscans/p4/ct.nii.gz\n")
    named = quick(["p1", str(tmp_path / "more.csv")], tmp_path / "named", columns={"volume": "where"}, name="mine")
    assert named.scans == 2 and {row["source"] for row in rows_of(tmp_path / "named").values()} == {"mine"}


def test_scanner_facts_of_other_formats_are_unknown(scans, tmp_path):
    assert scanner_facts(scans / "p0" / "ct.nii.gz") == {"manufacturer": None, "kernel": None}
    assert scanner_facts(tmp_path / "nowhere") == {"manufacturer": None, "kernel": None}
    assert dicom_patient(scans / "p0" / "ct.nii.gz") is None


def test_phantom_survives_as_a_chest(tmp_path):
    phantom = make_phantom(3, shape=(24, 96, 96), spacing=(10.0, 4.0, 4.0))
    write_nifti(phantom.volume, tmp_path / "scans" / "phantom.nii.gz")
    quick(tmp_path / "scans", tmp_path / "out")
    row = rows_of(tmp_path / "out")["phantom.nii.gz"]
    assert row["facts"]["region"] == "chest" and row["facts"]["lung"] > 0.05


def test_real_scans(real_data, tmp_path):
    """DICOM, NRRD and NIfTI of four sources; the label map among them is refused."""
    summary = quick(real_data / "ct" / "scans", tmp_path / "out")
    assert set(summary.failed) == {"pyradiomics_lung1_part_label.nrrd"} and summary.scans == 4
    rows = rows_of(tmp_path / "out")
    regions = {name: row["facts"]["region"] for name, row in rows.items()}
    assert regions == {
        "lungdx_A0002_chest_8mm_dicom": "chest",
        "totalseg_abdomen_pelvis_3mm.nii.gz": "abdomen+pelvis",
        "totalseg_heart_cta_crop_1p5mm.nii.gz": "part of the chest",
        "pyradiomics_lung1_part_image.nrrd": "part of the chest",
    }
    chest = rows["lungdx_A0002_chest_8mm_dicom"]
    assert chest["hu"].shape == (320, 388, 441) and chest["facts"]["kernel"] == "B40f"
    assert rows["totalseg_heart_cta_crop_1p5mm.nii.gz"]["facts"]["contrast"] == "likely"
