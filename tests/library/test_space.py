"""The browser demo: uploads within limits, pictures that lie where they should, and the page in a real browser."""

import gzip
import io
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti
from voxelfm_hf.pictures.sheet import PLANES
from voxelfm_hf.space import uploads
from voxelfm_hf.space.limits import Limits
from voxelfm_hf.space.scan import PageScan
from voxelfm_hf.space.uploads import open_scan, read_upload
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import ScanError


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, shape=(48, 56, 64)).volume


def upload_folder(tmp_path) -> Path:
    """A folder of one upload, as the page makes them."""
    folder = tmp_path / "upload"
    folder.mkdir(exist_ok=True)
    return folder


def zipped(folder: Path, archive: Path, *, prefix: str = "series/") -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted(folder.rglob("*")):
            out.write(path, prefix + path.name)
    return archive


def test_dicom_zip_and_nifti_are_the_same_volume_and_both_are_deleted(phantom, tmp_path):
    write_dicom_series(phantom, tmp_path / "series")
    folder = upload_folder(tmp_path)
    archive = zipped(tmp_path / "series", folder / "Jane Doe.zip")
    by_zip = read_upload(archive)
    assert not archive.exists()
    file = folder / "scan.nii.gz"
    folder.mkdir(exist_ok=True)
    write_nifti(phantom, file)
    by_file = read_upload(file)
    assert not file.exists()
    assert np.array_equal(by_zip.hu, phantom.hu) and np.array_equal(by_file.hu, phantom.hu)


@pytest.mark.parametrize("prefix", ["../../../escaped/", "{folder}/escaped/", "C:\\escaped\\"])
def test_names_in_an_archive_lead_nowhere(phantom, tmp_path, prefix):
    write_dicom_series(phantom, tmp_path / "series")
    prefix = prefix.format(folder=tmp_path)
    archive = zipped(tmp_path / "series", upload_folder(tmp_path) / "a.zip", prefix=prefix)
    assert np.array_equal(read_upload(archive).hu, phantom.hu)
    assert not any("escaped" in str(path) for path in tmp_path.rglob("*"))


def archive_of(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in entries.items():
            out.writestr(name, content)
    return path


def refusal(path: Path, **limits) -> str:
    """The sentence an upload is refused with: one line, without its name or a path, and the upload is gone."""
    with pytest.raises(ScanError) as error:
        read_upload(path, limits=Limits(**limits))
    said = str(error.value)
    assert "\n" not in said and "Jane" not in said and str(path.parent) not in said
    assert not path.exists() and not path.parent.exists()
    return said


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "empty"),
        ({"bomb.dcm": bytes(50_000_000)}, "times its size"),
        ({"inner.zip": b"PK"}, "further archives"),
        ({f"{i}.dcm": b"x" for i in range(12)}, "12 files"),
        ({"notes.txt": b"no scan"}, "the archive"),
        ({"a.dcm": os.urandom(3_000_000)}, "unpacks to more than 0.002 GB"),
    ],
)
def test_hostile_archives_are_one_sentence_and_gone(entries, message, tmp_path):
    archive = archive_of(upload_folder(tmp_path) / "Jane Doe.zip", entries)
    assert message in refusal(archive, files=10, unpacked_bytes=2_000_000 if "a.dcm" in entries else 1_000_000_000)


def test_links_in_an_archive_are_refused(tmp_path):
    path = upload_folder(tmp_path) / "Jane Doe.zip"
    with zipfile.ZipFile(path, "w") as out:
        link = zipfile.ZipInfo("a.dcm")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        out.writestr(link, "/etc/passwd")
    assert "holds links" in refusal(path)


def test_archive_that_unpacks_to_more_than_it_claims_is_stopped(tmp_path, monkeypatch):
    archive = archive_of(tmp_path / "a.zip", {"a.dcm": os.urandom(3_000_000)})
    monkeypatch.setattr(uploads, "_check_entries", lambda entries, limits: None)  # as if the claims had lied
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(ScanError, match="unpacks to more"):
        open_scan(archive, tmp_path / "unpacked", Limits(unpacked_bytes=2_000_000))
    assert sum(path.stat().st_size for path in (tmp_path / "unpacked").iterdir()) <= 2_000_000


META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = {size}\n"
    "ElementSpacing = 1 1 1\nElementType = MET_SHORT\nElementDataFile = {where}\n"
)
NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {size}\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: raw\n{where}\n"
)


@pytest.mark.parametrize("where", ["{folder}/secret.raw", "../secret.raw"])
def test_headers_that_name_another_file_of_the_machine_are_refused(where, tmp_path):
    from voxelfm_hf.volumes import read_volume

    values = np.random.default_rng(0).integers(-900, 900, (9, 9, 9)).astype("<i2")
    (tmp_path / "secret.raw").write_bytes(values.tobytes())
    where = where.format(folder=tmp_path)
    for name, text in (
        ("Jane.mha", META.format(size="9 9 9", where=where)),
        ("Jane.nrrd", NRRD.format(size="9 9 9", where=f"data file: {where}\n")),
    ):
        path = upload_folder(tmp_path) / name
        path.write_text(text)
        assert np.array_equal(read_volume(path).hu, values)  # the header's owner may read it so
        assert "without its voxels" in refusal(path)
        path = archive_of(upload_folder(tmp_path) / "Jane.zip", {f"../../{name}": text.encode()})
        assert "without its voxels" in refusal(path)


def giant_nifti() -> bytes:
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((30000, 30000, 30000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    # Many members of one file: a few kilobytes that unpack to gigabytes.
    return gzip.compress(header.binaryblock + bytes(4)) + gzip.compress(bytes(1 << 24)) * 512


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.nii.gz", giant_nifti, "header claims 2.7e+13 voxels"),
        ("a.mha", lambda: META.format(size="90000 90000 90000", where="LOCAL").encode(), "claims 7.29e+14 voxels"),
        ("a.nrrd", lambda: NRRD.format(size="90000 90000 90000", where="").encode(), "claims 7.29e+14 voxels"),
        ("b.mha", lambda: b"ObjectType = Image\nComment = " + b"A" * 20_000_000, "header has no end"),
        ("b.nrrd", lambda: b"NRRD0004\n" + b"# a comment\n" * 2_000_000, "header has no end"),
        ("a.npy", lambda: b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 65535, "the file"),
    ],
)
def test_giant_headers_are_one_sentence(name, content, message, tmp_path):
    path = upload_folder(tmp_path) / f"Jane {name}"
    path.write_bytes(content())
    assert message in refusal(path)


def test_limits_of_size_voxels_time_and_memory(phantom, tmp_path):
    def scan() -> Path:
        path = upload_folder(tmp_path) / "Jane Doe.nii.gz"
        write_nifti(phantom, path)
        return path

    assert "larger than 0 MB" in refusal(scan(), upload_mb=0)
    assert "million voxels" in refusal(scan(), voxels=1000)
    assert "took longer than 0.001 s" in refusal(scan(), seconds=0.001)
    if sys.platform == "linux":
        assert "memory" in refusal(scan(), memory_bytes=60_000_000)


def test_broken_archive_and_broken_scan_do_not_name_the_file(tmp_path):
    folder = upload_folder(tmp_path)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as out:
        out.writestr("a.dcm", os.urandom(5000))
    spoiled = bytearray(whole.getvalue())
    spoiled[100:2000] = bytes(1900)
    for name, content in (("Jane.zip", bytes(spoiled)), ("Jane.nii.gz", b"\x1f\x8b broken"), ("Jane.txt", b"")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        refusal(folder / name)


def block_scan() -> PageScan:
    """A scan with one bright block and made-up features: the patches of the block are alike."""
    hu = np.full((40, 60, 80), -1000, np.int16)
    hu[8:16, 20:30, 50:60] = 400
    hu[24:32, 40:50, 10:20] = 400
    return PageScan(Volume.from_array(hu, spacing=(2.0, 1.0, 1.0)), (12, 25, 55))


def test_a_click_on_a_voxel_of_the_picture_is_that_voxel():
    scan = block_scan()
    for plane, view in enumerate(PLANES):
        picture = scan.picture(plane, "soft tissue", "scan")
        rows, columns = picture.shape[:2]
        mm = [n * s for n, s in zip(scan.volume.hu.shape, scan.volume.spacing, strict=True)]
        assert columns / rows == pytest.approx(mm[view.columns] / mm[view.rows], rel=0.02)
        # The block is the only bright thing: its centre in the picture leads back to its centre in the volume.
        grey = picture.astype(int)
        bright = np.argwhere((grey.min(2) > 200) & (np.ptp(grey, axis=2) < 20))
        down, across = bright.mean(0)
        scan.move_to_pixel(plane, across, down)
        assert np.abs(np.array(scan.position) - (11.5, 24.5, 54.5)).max() <= 2
        scan.position = (12, 25, 55)


def test_likeness_finds_the_other_block():
    from types import SimpleNamespace

    from voxelfm_hf.pictures.layers import FeatureLayer

    scan = block_scan()
    scan.patches = np.random.default_rng(0).normal(0, 0.1, (5, 6, 8, 16)).astype(np.float32)
    scan.patches[1, 2, 5] += 1
    scan.patches[3, 4, 1] += 1
    scan.geometry = SimpleNamespace(region_start=(0, 0, 0), region_stop=(40, 60, 80))
    scan.colours = FeatureLayer(scan.patches, scan.volume.hu, box=((0, 0, 0), (40, 60, 80)))
    vector = scan.vector_here()
    assert np.array_equal(vector, scan.patches[1, 2, 5])
    assert scan.liken(vector) == pytest.approx(1)
    assert scan.likeness.values[3, 4, 1] > 0.8 > np.median(scan.likeness.values)
    other = block_scan()
    other.patches, other.geometry = np.roll(scan.patches, 1, axis=1), scan.geometry
    other.liken(vector)
    other.move_to_likest()
    assert np.array_equal(other.vector_here(), scan.patches[1, 2, 5])
    for plane in range(3):
        for layer in ("features", "likeness"):
            assert not np.array_equal(scan.picture(plane, "lung", layer), scan.picture(plane, "lung", "scan"))


def test_two_people_do_not_share_a_scan(phantom, tmp_path):
    from voxelfm_hf.space.app import Page

    page = Page("tiny")
    seen = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_nifti(phantom, folder / "a.nii.gz")
        *_, (scan, said) = page.open(str(folder / "a.nii.gz"))
        assert "patches" in said
        seen.append(scan)
    seen[0].position = (1, 1, 1)
    assert seen[1].position != (1, 1, 1) and np.allclose(seen[0].cls, seen[1].cls)
    folder.mkdir(exist_ok=True)
    (folder / "<b>x.nii").write_bytes(b"nothing")
    ((scan, said),) = page.open(str(folder / "<b>x.nii"))
    assert scan is None and said.startswith("**") and "<b>" not in said


def test_scans_held_in_memory_are_bounded_and_leave_with_their_owners(phantom, tmp_path, monkeypatch):
    from voxelfm_hf.space import page as page_module

    page = page_module.Page("tiny")
    monkeypatch.setattr(page_module, "MAX_HELD_BYTES", phantom.hu.nbytes)

    def opened():
        write_nifti(phantom, upload_folder(tmp_path) / "a.nii.gz")
        *_, last = page.open(str(tmp_path / "upload" / "a.nii.gz"))
        return last

    people = [opened(), opened()]
    assert all("patches" in said for _, said in people)
    nobody, said = opened()
    assert nobody is None and "come back" in said and not (tmp_path / "upload" / "a.nii.gz").exists()
    people.clear()
    assert opened()[0] is not None


def head_like() -> Volume:
    """A skull of 17 x 21 cm on a neck, as far as outlines and bone tell."""
    z, y, x = np.mgrid[:60, :70, :60] * 4.0
    radius = np.hypot((y - 138) / 105, (x - 118) / 85)
    hu = np.where(radius < 1, np.where(radius > 0.9, 900, 30), -1000)
    return Volume.from_array(hu.astype(np.int16), spacing=(4.0, 4.0, 4.0))


def test_head_is_warned_of_and_a_chest_is_not(phantom, tmp_path):
    from voxelfm_hf.space.page import HEAD, Page

    page = Page("tiny")
    for volume, warned in ((head_like(), True), (make_phantom(1, shape=(64, 80, 80)).volume, False)):
        write_nifti(volume, upload_folder(tmp_path) / "a.nii.gz")
        *_, (_, said) = page.open(str(tmp_path / "upload" / "a.nii.gz"))
        assert (HEAD in said) == warned and "patches" in said


def test_report_and_probe_answer_for_the_scan(phantom, tmp_path):
    from tests.library.small_page import write_probe, write_report_model
    from voxelfm_hf.report_writer import ReportWriter
    from voxelfm_hf.space.page import Page

    page = Page("tiny", probe=str(write_probe(tmp_path)), report=str(write_report_model(tmp_path)))
    assert page.report(None) == ("", []) and page.answer(None) == {}
    scan = PageScan.of(phantom)
    text, ((finding, stated, probability, positive),) = page.report(scan)
    assert len(text) > 20 and text == ReportWriter(tmp_path / "report").write(phantom).text
    assert (finding, stated) == ("Pleural effusion", "not stated")
    answer = page.answer(scan)
    assert probability == pytest.approx(answer["values"]["pleural_effusion"], abs=1e-3)
    assert positive == ("positive, disagrees" if probability >= 0.5 else "negative")


def test_a_space_of_the_hub_is_told_by_variables(tmp_path, monkeypatch):
    from tests.library.small_page import write_probe
    from voxelfm_hf.space.app import page_of_environment

    monkeypatch.setenv("VOXELFM_PROBE", str(write_probe(tmp_path)))
    page = page_of_environment()
    assert page.reader is not None and page.index is None and page.writer is None


def test_page_is_told_of_a_report_model_that_is_none(small_model):
    from voxelfm_hf.space.page import Page
    from voxelfm_hf.volumes.errors import ModelError

    with pytest.raises(ModelError, match="no report model"):
        Page("tiny", report=str(small_model))


def test_running_page_caps_size_jobs_and_waiting(monkeypatch):
    pytest.importorskip("gradio")
    import httpx

    from voxelfm_hf.space import app as app_module
    from voxelfm_hf.space.page import Page

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # put back afterwards
    page = app_module.serve(Page("tiny", limits=Limits(upload_mb=1)))
    address = page.local_url
    try:
        for size, status in ((1000, 200), (3_000_000, 413)):
            files = {"files": ("Jane.nii", bytes(size), "application/octet-stream")}
            assert httpx.post(f"{address}gradio_api/upload", files=files).status_code == status
        # Reading and computing share one place in the queue, whoever asks.
        heavy = [job for job in page.fns.values() if job.concurrency_id == "heavy"]
        assert [(job.fn.__name__, job.concurrency_limit) for job in heavy] == [("opened", 1)] * 2
        assert page._queue.max_size == 20
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o077 == 0
    finally:
        page.close()
    page.folder.cleanup()
    assert not folder.exists()


def test_same_upload_of_two_people_is_read_by_both_and_deleted(tmp_path, monkeypatch):
    from voxelfm_hf.space import app

    monkeypatch.setattr(app, "CLAIM_SECONDS", 0.2)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    shared = upload_folder(tmp_path) / "Jane Doe.nii.gz"  # where gradio puts the same content twice
    shared.write_bytes(b"scan")
    (_, one), (_, two) = app.claim_upload(str(shared)), app.claim_upload(str(shared))
    assert one != two and Path(one).name == "scan.nii.gz"
    assert [Path(own).read_bytes() for own in (one, two)] == [b"scan", b"scan"]
    for timer in [t for t in threading.enumerate() if isinstance(t, threading.Timer)]:
        timer.join()
    for timer in [t for t in threading.enumerate() if isinstance(t, threading.Timer)]:
        timer.join()
    assert not shared.exists() and Path(one).exists()
    app._forget_upload(one)
    assert not Path(one).parent.exists() and Path(two).exists()
    assert app.claim_upload(str(shared)) == (None, str(shared))
    assert "upload it again" in refusal(shared)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REAL = ("lungdx_A0002_chest_8mm_dicom", "totalseg_abdomen_pelvis_3mm.nii.gz", "pyradiomics_lung1_part_image.nrrd")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")
def test_page_in_a_browser(tmp_path):
    """Upload, scroll, click, neighbours, probe, report, a bad file, two people at once, nothing asked elsewhere.

    With a chest as DICOM, a NIfTI and a NRRD where real scans are at hand. In a process of its own, see
    `browse_space.py`; `pytest -rP` shows the time until the first picture.
    """
    pytest.importorskip("gradio", reason="pip install 'voxelfm-hf[space]'")
    pytest.importorskip("playwright", reason="pip install playwright")
    data = os.environ.get("VOXELFM_TEST_DATA")
    folder = Path(data) / "ct" / "scans" if data else None
    scans = [folder / name for name in REAL] if folder is not None and folder.is_dir() else []
    script = Path(__file__).with_name("browse_space.py")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, script, BROWSER, tmp_path, *scans]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    print(done.stdout)


def test_real_scans_open(real_data, tmp_path):
    scans = real_data / "ct" / "scans"
    for name in ("totalseg_abdomen_pelvis_3mm.nii.gz", "pyradiomics_lung1_part_image.nrrd"):
        folder = tmp_path / name[:4]
        folder.mkdir()
        shutil.copy(scans / name, folder)
        assert np.array_equal(read_upload(folder / name).hu, read_volume(scans / name).hu)


def test_a_store_of_regions_is_no_store_of_whole_scans_and_one_of_whole_scans_sets_the_page_up(tmp_path, scan_folder):
    from voxelfm_hf.features import EmbedOptions, Task, embed_scans
    from voxelfm_hf.scan_list import Region, list_scans
    from voxelfm_hf.space.page import Page
    from voxelfm_hf.volumes.errors import VoxelFMError

    (scan,) = list_scans([scan_folder / "a.nii.gz"])
    centre = tuple((read_volume(scan.path).affine @ [5, 5, 5, 1])[:3])
    options = EmbedOptions(dtype="float32", max_patches=77)
    embed_scans([Task(scan, (Region("a#0", centre, 20.0),))], "tiny", tmp_path / "regions", options)
    embed_scans([Task(scan)], "tiny", tmp_path / "whole", options)
    with pytest.raises(VoxelFMError, match="regions or tiles.*embed them without --regions and --tile$"):
        Page("tiny", store=tmp_path / "regions")
    assert Page("tiny", store=tmp_path / "whole").processor.max_patches == 77
