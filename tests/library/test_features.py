"""Embedding: rows against the model itself, reruns, failures, regions, worker crashes, killed runs."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from voxelfm_hf import load, read_volume
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.scan_list import Region, Scan, list_scans, read_regions
from voxelfm_hf.store import FeatureStore, StoreWriter, locked
from voxelfm_hf.volumes.errors import LabelError, ScanError, StoreError

FP32 = EmbedOptions(dtype="float32")


def tasks_of(*inputs):
    return [Task(scan) for scan in list_scans(inputs)]


def test_rows_hold_what_the_model_gives(small_model, scan_folder, tmp_path):
    summary = embed_scans(
        tasks_of(scan_folder), small_model, tmp_path / "store", EmbedOptions(patches=True, dtype="float32")
    )
    assert (summary.added, summary.present, list(summary.failures)) == (3, 0, ["bad.npy"])
    store = FeatureStore(tmp_path / "store")
    assert store.ids == ["a.nii.gz", "series", "sub/b.nii.gz"]
    assert store.failures().keys() == {"bad.npy"} and "3" in store.failures()["bad.npy"]

    model, processor = load(small_model)
    volume = read_volume(scan_folder / "a.nii.gz")
    prepared = processor(volume, return_geometry=True)
    with torch.no_grad():
        outputs = model(prepared["pixel_values"])
    geometry = prepared["geometry"][0]
    for index in range(3):  # the same scan in three places and two formats
        np.testing.assert_array_equal(store.cls[index], outputs.pooler_output[0].numpy())
    grid = model.patch_features(outputs, geometry.grid)[0].numpy()
    np.testing.assert_array_equal(store.patches("sub/b.nii.gz"), grid.astype(np.float16))

    row = store.table.to_pylist()[0]
    assert row["grid"] == list(geometry.grid) and row["spacing_mm"] == list(volume.spacing)
    assert row["effective_spacing_mm"] == list(geometry.spacing_mm)
    first, last = geometry.patch_centres()[0, 0, 0], geometry.patch_centres()[-1, -1, -1]
    affine = np.reshape(row["patch_affine"], (4, 4))
    np.testing.assert_allclose((affine @ [0, 0, 0, 1])[:3], (volume.affine @ [*first, 1])[:3])
    corner = [n - 1 for n in geometry.grid]
    np.testing.assert_allclose((affine @ [*corner, 1])[:3], (volume.affine @ [*last, 1])[:3])


def test_datasets_opens_a_store(small_model, scan_folder, tmp_path):
    import datasets

    embed_scans(tasks_of(scan_folder), small_model, tmp_path / "store", EmbedOptions(patches=True, dtype="float32"))
    rows = datasets.load_dataset(str(tmp_path / "store"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["id"]) == ["a.nii.gz", "series", "sub/b.nii.gz"]
    assert len(rows[0]["cls"]) == 36


def test_datasets_never_gives_the_rows_of_another_store_or_of_yesterday(small_model, scan_folder, tmp_path):
    import datasets

    def rows(place: str) -> int:
        folder = str(tmp_path / place / "features")
        return len(datasets.load_dataset(folder, split="train", cache_dir=str(tmp_path / "cache")))

    tasks = tasks_of(scan_folder)
    embed_scans(tasks, small_model, tmp_path / "one" / "features", FP32)
    embed_scans(tasks[:1], small_model, tmp_path / "two" / "features", FP32)
    assert rows("one") == 3 and rows("two") == 1
    embed_scans(tasks, small_model, tmp_path / "two" / "features", FP32)
    assert rows("two") == 3 and rows("one") == 3


def test_what_a_user_wrote_about_a_store_stays(small_model, scan_folder, tmp_path):
    tasks = tasks_of(scan_folder)
    embed_scans(tasks[:1], small_model, tmp_path / "store", FP32)
    readme = tmp_path / "store" / "README.md"
    readme.write_text(readme.read_text().replace("---\nconfigs", "---\nlicense: mit\nconfigs") + "\nOurs.\n")
    before = readme.read_text()
    embed_scans(tasks, small_model, tmp_path / "store", FP32)
    after = readme.read_text()
    assert after != before
    assert [line for line in after.splitlines() if "description:" not in line] == [
        line for line in before.splitlines() if "description:" not in line
    ]


def test_worker_processes_give_the_same_store(process_server, small_model, scan_folder, tmp_path):
    options = EmbedOptions(dtype="bfloat16")
    embed_scans(tasks_of(scan_folder), small_model, tmp_path / "one", options)
    summary = embed_scans(
        tasks_of(scan_folder), small_model, tmp_path / "two", EmbedOptions(dtype="bfloat16", workers=2)
    )
    one, two = FeatureStore(tmp_path / "one"), FeatureStore(tmp_path / "two")
    assert one.table.equals(two.table) and one.failures() == two.failures() == summary.failures


def test_rerun_adds_only_what_is_missing(small_model, scan_folder, tmp_path):
    store = tmp_path / "store"
    embed_scans(tasks_of(scan_folder)[:1], small_model, store, FP32)
    seen = []
    summary = embed_scans(
        tasks_of(scan_folder), small_model, store, FP32, on_scan=lambda task: seen.append(task.scan.identifier)
    )
    assert (summary.added, summary.present) == (2, 1)
    assert "a.nii.gz" not in seen
    # a failure that a run does not ask for stays in the list, one that is repaired leaves it
    assert embed_scans(tasks_of(scan_folder / "a.nii.gz"), small_model, store, FP32).failures == {}
    assert FeatureStore(store).failures().keys() == {"bad.npy"}
    np.save(scan_folder / "bad.npy", read_volume(scan_folder / "a.nii.gz").hu)
    (scan_folder / "bad.json").write_text('{"spacing": [5, 5, 5]}')
    summary = embed_scans(tasks_of(scan_folder), small_model, store, FP32)
    assert (summary.added, summary.present, summary.failures) == (1, 3, {})
    assert FeatureStore(store).failures() == {} and len(FeatureStore(store).ids) == 4


def test_what_an_id_stands_for_does_not_change(small_model, scan_folder, tmp_path):
    store, scan, lists = tmp_path / "store", scan_folder / "a.nii.gz", []
    other = np.roll(read_volume(scan).hu, 5, axis=1)  # of the same size
    np.save(tmp_path / "other.npy", other)
    for number, place in enumerate([(0, 0, 0), (0, 0, 0), (4, 0, 0)]):
        lists.append(tmp_path / f"regions{number}.csv")
        centre = (read_volume(scan).affine @ [*[n // 2 for n in other.shape], 1])[:3] + place
        lists[-1].write_text("scan,x,y,z,edge_mm\na.nii.gz," + ",".join(map(str, centre)) + ",30\n")

    def embed(regions, **options):
        scans = list_scans([scan])
        tasks = [Task(scan, tuple(found)) for scan, found in read_regions(regions, scans).items()]
        return embed_scans(tasks, small_model, store, EmbedOptions(dtype="float32", **options))

    assert embed(lists[0]).added == 1 and embed(lists[1]).present == 1
    moved = embed(lists[2])
    (sentence,) = moved.failures.values()
    assert (moved.added, moved.present) == (0, 0) and "another scan, place or way of reading" in sentence
    assert FeatureStore(store).failures() == moved.failures
    assert len(embed(lists[0], assume_hu=True).failures) == 1
    assert embed(lists[0]).failures == {} == FeatureStore(store).failures()

    options = EmbedOptions(dtype="float32", spacing=(5.0, 5.0, 5.0))
    embed_scans(tasks_of(tmp_path / "other.npy"), small_model, tmp_path / "second", options)
    np.save(tmp_path / "other.npy", read_volume(scan).hu)
    again = embed_scans(tasks_of(tmp_path / "other.npy"), small_model, tmp_path / "second", options)
    assert list(again.failures) == ["other.npy"]


@pytest.mark.parametrize("endings", [(".hdr", ".img"), (".hdr.gz", ".img.gz"), (".mhd", ".zraw")])
def test_voxels_beside_a_header_tell_inputs_apart(tmp_path, endings):
    from voxelfm_hf.features.identity import input_hashes

    hashes = set()
    for voxels in (b"one", b"two"):
        for ending, content in zip(endings, (b"the same header", voxels), strict=True):
            (tmp_path / f"a{ending}").write_bytes(content)
        hashes |= set(input_hashes(Task(Scan("a", tmp_path / f"a{endings[0]}"))).values())
    assert len(hashes) == 2 and None not in hashes


def test_a_scan_of_many_regions_is_looked_at_once(tmp_path, monkeypatch):
    from voxelfm_hf.features import identity

    opened = []

    def counted(path, mode):
        opened.append(path)
        return open(path, mode)

    monkeypatch.setattr(identity, "open", counted, raising=False)
    (tmp_path / "a.nii").write_bytes(b"voxels")
    scan = Scan("a", tmp_path / "a.nii")
    regions = [Region("here", (0.0, 0.0, 0.0), 30.0), Region("there", (4.0, 0.0, 0.0), 30.0)]
    hashes = identity.input_hashes(Task(scan, tuple(regions)))
    assert opened == [scan.path] and len({*hashes.values(), *identity.input_hashes(Task(scan)).values()}) == 3
    assert hashes == identity.input_hashes(Task(scan, (regions[0],))) | identity.input_hashes(Task(scan, (regions[1],)))


def test_other_weights_or_settings_are_refused(small_model, scan_folder, tmp_path):
    store, tasks = tmp_path / "store", tasks_of(scan_folder)
    embed_scans(tasks, small_model, store, FP32)
    with pytest.raises(StoreError, match="max_patches"):
        embed_scans(tasks, small_model, store, EmbedOptions(dtype="float32", max_patches=9))
    with pytest.raises(StoreError, match="dtype"):
        embed_scans(tasks, small_model, store, EmbedOptions(dtype="bfloat16"))
    model, processor = load(small_model)
    with torch.no_grad():
        model.norm.bias.add_(1)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    with pytest.raises(StoreError, match="another model"):
        embed_scans(tasks, tmp_path / "other", store, FP32)


def test_places_that_are_no_store_are_refused(small_model, scan_folder, tmp_path):
    tasks = tasks_of(scan_folder)
    with pytest.raises(StoreError, match="not a feature store"):
        embed_scans(tasks, small_model, scan_folder, FP32)
    assert not (scan_folder / ".lock").exists()
    with pytest.raises(StoreError, match="not a feature store .no run.json"):
        FeatureStore(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        embed_scans(tasks, small_model, tmp_path / "file" / "store", FP32)
    with pytest.raises(StoreError, match="--patches"):
        embed_scans(tasks, small_model, tmp_path / "store", FP32)
        FeatureStore(tmp_path / "store").patches("a.nii.gz")


def test_a_second_run_on_a_store_is_refused(small_model, scan_folder, tmp_path):
    with locked(tmp_path / "store"), pytest.raises(StoreError, match="another run"):
        embed_scans(tasks_of(scan_folder), small_model, tmp_path / "store", FP32)


def test_full_disk_is_one_sentence(small_model, scan_folder, tmp_path, monkeypatch):
    import pyarrow.parquet

    def full(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(StoreError, match="No space left"):
        embed_scans(tasks_of(scan_folder), small_model, tmp_path / "store", FP32)
    assert not list((tmp_path / "store").glob("*.parquet*"))


def test_many_bad_files_do_not_stop_the_good_ones(small_model, scan_folder, tmp_path):
    for number in range(300):
        (scan_folder / f"bad{number}.nii").write_bytes(b"\x5c\x01\x00\x00" + bytes(number))
    summary = embed_scans(tasks_of(scan_folder), small_model, tmp_path / "store", FP32)
    assert summary.added == 3 and len(summary.failures) == 301
    assert len(FeatureStore(tmp_path / "store").failures()) == 301


def test_parts_fill_up_and_stay_readable(tmp_path, monkeypatch):
    monkeypatch.setattr("voxelfm_hf.store.ROWS_A_PART", 3)
    row = {"source": "s", "cls": np.zeros(2, np.float32), "grid": [1, 1, 1], "notes": []}
    row |= dict.fromkeys(("spacing_mm", "effective_spacing_mm", "field_of_view_mm"), [1.0] * 3)
    row["patch_affine"] = [0.0] * 16
    for start in (0, 4):  # a second run goes on in the last part
        writer = StoreWriter(tmp_path / "store", {"model": "m"})
        for number in range(start, start + 4):
            writer.add([{**row, "id": f"{number}"}])
            assert len(FeatureStore(tmp_path / "store").ids) == number + 1
    assert sorted(FeatureStore(tmp_path / "store").ids) == [str(n) for n in range(8)]
    assert len(list((tmp_path / "store").glob("features-*.parquet"))) == 3
    writer = StoreWriter(tmp_path / "store", {"model": "m"})
    writer.add([{**row, "id": f"{number}"} for number in range(8, 19)])  # one scan's regions over several parts
    assert sorted(map(int, FeatureStore(tmp_path / "store").ids)) == list(range(19))


def test_damaged_part_is_named(small_model, scan_folder, tmp_path):
    embed_scans(tasks_of(scan_folder), small_model, tmp_path / "store", FP32)
    part = next((tmp_path / "store").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StoreError, match=part.name):
        _ = FeatureStore(tmp_path / "store").ids


KILLED_RUNS = """
import os, random, signal, sys
import torch
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.scan_list import list_scans
from voxelfm_hf.store import FeatureStore

torch.set_num_threads(1)
scans, model, store = sys.argv[1:]
tasks = [Task(scan) for scan in list_scans([scans])]
options = EmbedOptions(dtype="float32", patches=True)
random.seed(0)
rows = 0
for run in range(20):
    child = os.fork()
    if not child:
        # SIGPROF without a handler ends the process at once, after so much computing (whatever else the machine does)
        signal.setitimer(signal.ITIMER_PROF, random.uniform(0.05, 0.8) * (1 + run / 10))
        embed_scans(tasks, model, store, options)
        os._exit(0)
    os.waitpid(child, 0)
    if os.path.exists(os.path.join(store, "run.json")):
        opened = FeatureStore(store)
        assert len(opened.ids) >= rows and all(opened.patches(i).size for i in opened.ids)
        rows = len(opened.ids)
summary = embed_scans(tasks, model, store, options)
assert summary.present == rows, (summary, rows)
print(rows, len(FeatureStore(store).ids), len(set(FeatureStore(store).ids)))
"""


def test_runs_killed_at_random_moments_lose_nothing_finished(small_model, scan_folder, tmp_path, phantom_volume):
    from voxelfm_hf.data.write_scan import write_nifti

    for number in range(12):
        write_nifti(phantom_volume, scan_folder / f"{number}.nii.gz")
    command = [sys.executable, "-c", KILLED_RUNS, str(scan_folder), str(small_model), str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    survived, rows, distinct = map(int, done.stdout.split())
    assert survived > 0 and rows == distinct == 15


def write_csv(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_regions_give_one_row_each(small_model, scan_folder, tmp_path):
    volume = read_volume(scan_folder / "a.nii.gz")
    x, y, z = (volume.affine @ [15, 20, 20, 1])[:3]
    table = write_csv(
        tmp_path / "regions.csv",
        "scan,x,y,z,edge_mm,id",
        f"a.nii.gz,{x},{y},{z},60,centre",
        f"a.nii.gz,{x},{y},{z},5000,",
        f"series,{x + 9000},{y},{z},60,far",
    )
    regions = read_regions(table, list_scans([scan_folder]))
    tasks = [Task(scan, tuple(cubes)) for scan, cubes in regions.items()]
    summary = embed_scans(tasks, small_model, tmp_path / "store", FP32)
    assert summary.added == 1 and summary.failures.keys() == {"a.nii.gz#1", "far"}
    assert "outside the scan" in summary.failures["far"]
    store = FeatureStore(tmp_path / "store")
    model, processor = load(small_model)
    voxels, _ = processor.prepare_region(volume, (x, y, z), 60, model.config.image_size)
    with torch.no_grad():
        expected = model(voxels[None]).pooler_output[0].numpy()
    np.testing.assert_allclose(store.cls[0], expected, atol=1e-6)
    assert store.run["processor"]["region_size"] == 16
    assert embed_scans(tasks[:1], small_model, tmp_path / "store", FP32).present == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["scan,x,y,z"], "no column edge_mm"),
        (["scan,x,y,z,edge_mm"], "no rows"),
        (["scan,x,y,z,edge_mm", "other,0,0,0,9"], "not among the inputs"),
        (["scan,x,y,z,edge_mm", "a.nii.gz,left,0,0,9"], "numbers in millimetres"),
        (["scan,x,y,z,edge_mm", "a.nii.gz,0,0,0,-9"], "positive"),
        (["scan,x,y,z,edge_mm", "a.nii.gz,0,nan,0,9"], "finite"),
        (["scan,x,y,z,edge_mm,id", "a.nii.gz,0,0,0,9,p", "a.nii.gz,0,0,0,9,p"], "more than once"),
    ],
)
def test_bad_region_lists_name_the_line(scan_folder, tmp_path, lines, message):
    with pytest.raises(LabelError, match=message):
        read_regions(write_csv(tmp_path / "regions.csv", *lines), list_scans([scan_folder]))


def test_ids_are_relative_to_the_common_root(scan_folder):
    assert sorted(s.identifier for s in list_scans([scan_folder])) == ["a.nii.gz", "bad.npy", "series", "sub/b.nii.gz"]
    assert [s.identifier for s in list_scans([scan_folder / "series"])] == ["series"]
    pair = list_scans([scan_folder / "a.nii.gz", scan_folder / "sub"])
    assert [s.identifier for s in pair] == ["a.nii.gz", "sub/b.nii.gz"]
    twice = list_scans([scan_folder, scan_folder / "a.nii.gz"])
    assert len(twice) == 4


def test_list_with_ids_keeps_names_out_of_everything_written(small_model, scan_folder, tmp_path):
    (scan_folder / "a.nii.gz").rename(scan_folder / "MUSTERMANN_ERIKA.nii.gz")
    (scan_folder / "bad.npy").rename(scan_folder / "DOE_JANE.npy")
    table = write_csv(
        scan_folder / "list.csv", "path,id", "MUSTERMANN_ERIKA.nii.gz,case1", "DOE_JANE.npy,case2", "GONE_GUY.nii,case3"
    )
    summary = embed_scans(tasks_of(table), small_model, tmp_path / "store", EmbedOptions(patches=True, dtype="float32"))
    assert summary.added == 1 and summary.failures.keys() == {"case2", "case3"}
    written = b"".join(p.read_bytes() + str(p.name).encode() for p in (tmp_path / "store").rglob("*") if p.is_file())
    for name in (b"MUSTERMANN", b"ERIKA", b"DOE_JANE", b"GONE_GUY"):
        assert name not in written


def test_bad_lists_are_refused(tmp_path, scan_folder):
    with pytest.raises(LabelError, match="no column path"):
        list_scans([write_csv(tmp_path / "list.csv", "file", "x")])
    with pytest.raises(LabelError, match="more than once"):
        list_scans([write_csv(tmp_path / "list.csv", "path,id", "x,1", "y,1")])
    with pytest.raises(LabelError, match="leaves the store"):
        list_scans([write_csv(tmp_path / "list.csv", "path,id", "x,../../1")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScanError, match="no scans"):
        list_scans([tmp_path / "empty"])


def test_all_48_orientations_and_formats_give_one_embedding(small_model, tmp_path, phantom_volume):
    import itertools

    import nibabel
    import SimpleITK

    from voxelfm_hf.data.write_scan import write_dicom_series

    folder = tmp_path / "scans"
    folder.mkdir()
    image = phantom_volume.restore(phantom_volume.hu)
    start = nibabel.io_orientation(image.affine)
    for axes in itertools.permutations("RAS"):
        for flips in itertools.product((False, True), repeat=3):
            opposite = {"R": "L", "A": "P", "S": "I"}
            codes = [opposite[a] if flip else a for a, flip in zip(axes, flips, strict=True)]
            turn = nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(codes))
            nibabel.save(image.as_reoriented(turn), folder / f"{''.join(codes)}.nii.gz")
    write_dicom_series(phantom_volume, folder / "dicom")
    plain = SimpleITK.ReadImage(str(folder / "RAS.nii.gz"))
    for name in ("scan.nrrd", "scan.mha"):
        SimpleITK.WriteImage(plain, str(folder / name))
    summary = embed_scans(tasks_of(folder), small_model, tmp_path / "store", FP32)
    assert (summary.added, summary.failures) == (51, {})
    store = FeatureStore(tmp_path / "store")
    assert (store.cls == store.cls[0]).all() and len({tuple(s) for s in store.table["spacing_mm"].to_pylist()}) == 1


def test_patient_data_of_headers_reach_no_store(small_model, tmp_path, phantom_volume):
    import pydicom

    from voxelfm_hf.data.write_scan import write_dicom_series

    secrets = {
        "PatientName": "SECRETNAME^ERIKA",
        "PatientID": "SECRETID77",
        "PatientBirthDate": "19610203",
        "AccessionNumber": "SECRETACC",
        "StudyDescription": "SECRETSTUDY",
        "SeriesDescription": "SECRETSERIES",
        "InstitutionName": "SECRETHOSPITAL",
        "PatientComments": "SECRETCOMMENT",
    }
    for case in ("good", "bad"):
        folder = write_dicom_series(phantom_volume, tmp_path / "scans" / case)
        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            for keyword, value in secrets.items():
                setattr(dataset, keyword, value)
            if case == "bad":
                dataset.Modality = "MR"
            dataset.save_as(path)
            uid = dataset.SeriesInstanceUID
    summary = embed_scans(
        tasks_of(tmp_path / "scans"), small_model, tmp_path / "store", EmbedOptions(patches=True, dtype="float32")
    )
    assert summary.added == 1 and summary.failures.keys() == {"bad"}
    written = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    written += repr(summary).encode()
    for value in [*secrets.values(), uid, "SECRET", "ERIKA", "19610203"]:
        assert value.encode() not in written
