"""The browser demo: uploads within limits, pictures that lie where they should, and the page in a real browser."""

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti
from voxelfm_hf.picture_sheet import PLANES
from voxelfm_hf.space import uploads
from voxelfm_hf.space.scan import PageScan
from voxelfm_hf.space.uploads import read_upload
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import ScanError


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, shape=(48, 56, 64)).volume


def upload_folder(tmp_path) -> Path:
    """A folder of one upload, as the page makes them."""
    folder = tmp_path / "upload"
    folder.mkdir()
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


def test_names_in_an_archive_lead_nowhere(phantom, tmp_path):
    write_dicom_series(phantom, tmp_path / "series")
    archive = zipped(tmp_path / "series", upload_folder(tmp_path) / "a.zip", prefix="../../../escaped/")
    assert np.array_equal(read_upload(archive).hu, phantom.hu)
    assert not any("escaped" in str(path) for path in tmp_path.rglob("*"))


def archive_of(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in entries.items():
            out.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "empty"),
        ({"bomb.dcm": bytes(50_000_000)}, "times its size"),
        ({"inner.zip": b"PK"}, "further archives"),
        ({f"{i}.dcm": b"x" for i in range(12)}, "12 files"),
        ({"notes.txt": b"no scan"}, "the archive"),
    ],
)
def test_hostile_archives_are_one_sentence_and_gone(entries, message, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_FILES", 10)
    archive = archive_of(upload_folder(tmp_path) / "Jane Doe.zip", entries)
    with pytest.raises(ScanError, match=message) as error:
        read_upload(archive)
    assert "\n" not in str(error.value) and "Jane" not in str(error.value) and str(tmp_path) not in str(error.value)
    assert not archive.exists()


def test_archive_that_unpacks_to_more_than_it_claims_is_stopped(tmp_path, monkeypatch):
    content = os.urandom(3_000_000)
    archive = archive_of(upload_folder(tmp_path) / "a.zip", {"a.dcm": content})
    monkeypatch.setattr(uploads, "_check_entries", lambda entries: None)  # as if the claims had lied
    monkeypatch.setattr(uploads, "MAX_UNPACKED_BYTES", 2_000_000)
    with pytest.raises(ScanError, match="unpacks to more"):
        read_upload(archive)


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
        with pytest.raises(ScanError) as error:
            read_upload(folder / name)
        assert "Jane" not in str(error.value) and not (folder / name).exists()


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

    from voxelfm_hf.picture_layers import FeatureLayer

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


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_page_in_a_browser(tmp_path):
    """Upload, scroll, click, a bad file, two users at once; run in a process of its own, see `browse_space.py`."""
    pytest.importorskip("gradio")
    pytest.importorskip("playwright")
    script = Path(__file__).with_name("browse_space.py")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script), BROWSER, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_real_scans_open(real_data, tmp_path):
    scans = real_data / "ct" / "scans"
    for name in ("totalseg_abdomen_pelvis_3mm.nii.gz", "pyradiomics_lung1_part_image.nrrd"):
        folder = tmp_path / name[:4]
        folder.mkdir()
        shutil.copy(scans / name, folder)
        assert np.array_equal(read_upload(folder / name).hu, read_volume(scans / name).hu)
