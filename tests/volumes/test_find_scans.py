"""Walking folders: every scan once, in a fixed order, whatever lies around it."""

import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from voxelfm_hf.volumes import ScanError, find_scans, read_volume
from voxelfm_hf.volumes.find import format_ending
from voxelfm_hf.volumes.formats import DICOM, FORMATS, READABLE


@pytest.fixture
def tree(tmp_path, writers):
    """Four formats and a pile of things that are no scans."""
    import nibabel as nib

    root = tmp_path / "archive"
    hu = writers.ct_array((4, 8, 7))
    writers.write_series(root / "b" / "ct series", hu)
    writers.write_series(root / "b" / "uids", hu, name=lambda z: f"1.2.840.113619.2.{z}")
    (root / "a").mkdir()
    image = writers.nifti_of(hu, "RAS")
    nib.save(image, root / "a" / "one.nii.gz")
    nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), image.affine, image.header), root / "a" / "pair.img")
    sitk.WriteImage(writers.lps_image(hu), str(root / "a" / "meta.mhd"))
    sitk.WriteImage(writers.lps_image(hu), str(root / "a" / "packed.mhd"), True)
    sitk.WriteImage(writers.lps_image(hu), str(root / "a" / "two files.nhdr"))
    sitk.WriteImage(writers.lps_image(hu), str(root / "c.nrrd"))
    np.save(root / "d.npy", hu)
    (root / "d.json").write_text('{"spacing": [2.5, 0.7, 0.8]}')
    store = root / "features"
    (store / "patches").mkdir(parents=True)
    for name in ("features-0.parquet", "run.json", "failures.csv", "patches/x.safetensors"):
        (store / name).write_bytes(b"x")
    for name in ("labels.csv", "notes.txt", "DICOMDIR", ".hidden.nii", "picture.png", "README", "lonely.hdr", "x.zip"):
        (root / name).write_bytes(b"not a scan")
    (root / ".git").mkdir()
    shutil.copy(root / "c.nrrd", root / ".git" / "c.nrrd")
    return root


def names(root) -> list[str]:
    return [str(p.relative_to(root)) for p in find_scans(root)]


EXPECTED = ["c.nrrd", "d.npy", "a/meta.mhd", "a/one.nii.gz", "a/packed.mhd", "a/pair.hdr", "a/two files.nhdr"]
EXPECTED += ["b/ct series", "b/uids"]


def test_every_scan_once_and_sorted(tree, writers) -> None:
    assert names(tree) == EXPECTED
    for path in find_scans(tree):
        assert np.array_equal(read_volume(path).hu, writers.ct_array((4, 8, 7)))


def test_links_do_not_hang_or_repeat(tree, tmp_path) -> None:
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "b" / "again").symlink_to(tree / "b" / "ct series")
    (tree / "again.nrrd").symlink_to(tree / "c.nrrd")
    (tree / "broken.nii").symlink_to(tree / "nowhere.nii")
    os.mkfifo(tree / "pipe.nii")
    found = names(tree)
    assert len(found) == len(EXPECTED) and "again.nrrd" not in found
    outside = tmp_path / "outside.nrrd"
    shutil.copy(tree / "c.nrrd", outside)
    (tree / "x.nrrd").symlink_to(outside)
    (tree / "y.nrrd").symlink_to(outside)
    assert "x.nrrd" in names(tree) and "y.nrrd" not in names(tree)


@pytest.mark.parametrize("known", [*FORMATS, DICOM], ids=lambda known: known.title)
def test_a_row_of_the_table_is_all_that_a_format_needs(known, tmp_path) -> None:
    """Its reader is there, its endings are told by name and found in folders, sentences name it."""
    assert callable(known.load_reader()) and known.title in READABLE
    for ending in known.endings:
        path = tmp_path / f"scan{ending.upper()}"
        path.write_bytes(bytes(128) + b"DICM" if known is DICOM else b"x")
        assert format_ending(path.name) == ending
        assert list(find_scans(tmp_path)) == [tmp_path if known is DICOM else path]
        path.unlink()
    for header in known.headers:
        parts = [tmp_path / f"scan{ending}" for ending in (header, *known.voxels[:1])]
        for path in parts:
            path.write_bytes(b"x")
        assert list(find_scans(tmp_path)) == parts[:1]
        parts[-1].unlink()
        assert list(find_scans(tmp_path)) == []
        parts[0].unlink(missing_ok=True)


def test_a_file_is_its_own_scan(tree) -> None:
    assert list(find_scans(tree / "c.nrrd")) == [tree / "c.nrrd"]


def test_folders_that_cannot_be_searched(tmp_path) -> None:
    with pytest.raises(ScanError, match="no such folder"):
        list(find_scans(tmp_path / "nothing"))
    assert list(find_scans(tmp_path)) == []


def test_thousands_of_files_open_one_per_dicom_folder(tmp_path, monkeypatch) -> None:
    from voxelfm_hf.volumes import find

    for folder in range(20):
        (tmp_path / f"{folder:02d}").mkdir()
        for n in range(100):
            (tmp_path / f"{folder:02d}" / f"IM{n:04d}").write_bytes(bytes(128) + b"DICM")
    opened = []
    original = find.has_dicom_magic
    monkeypatch.setattr(find, "has_dicom_magic", lambda path: opened.append(path) or original(path))
    assert len(list(find_scans(tmp_path))) == 20
    assert len(opened) == 20


def test_real_folder(real_data) -> None:
    found = [p.name for p in find_scans(real_data / "ct" / "scans")]
    assert "lungdx_A0002_chest_8mm_dicom" in found and len(found) == 5
