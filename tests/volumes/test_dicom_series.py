"""What lies in DICOM folders beside the scan: each oddity is left out with a note or refused with the reason."""

import shutil

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from voxelfm_hf.volumes import ScanError, dicom_series, list_series, read_volume
from voxelfm_hf.volumes.facts import scan_facts


def notes_of(volume) -> str:
    return " | ".join(volume.notes)


def localizer(writers, **tags):
    return writers.dicom_slice(
        np.full((40, 17), 900, "<u2"),
        (0, -100, 90),
        **{
            "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
            "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
            "RescaleIntercept": -1024,
            **tags,
        },
    )


def test_a_localizer_sharing_the_series_uid_is_left_out(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path, hu)
    localizer(writers).save_as(tmp_path / "zz", enforce_file_format=True)
    # as large as the slices and in their plane, which a check of the orientation alone would miss
    same_plane = localizer(writers, ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[-14, -11.5, 300])
    same_plane.Rows, same_plane.Columns = hu.shape[1:]
    same_plane.PixelData = b"\0" * hu[0].nbytes
    same_plane.save_as(tmp_path / "aa", enforce_file_format=True)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, hu) and volume.spacing == writers.SPACING
    assert "2 localizers" in notes_of(volume)


def test_slices_of_another_orientation_are_left_out(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path, hu)
    for n in range(3):
        item = writers.dicom_slice(
            np.full((30, 30), 1000, "<u2"),
            (n, 0, 0),
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
            RescaleIntercept=-1024,
        )
        item.save_as(tmp_path / f"mpr{n}", enforce_file_format=True)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, hu)
    assert "3 slices of the same series with another orientation" in notes_of(volume)
    assert [s.slices for s in list_series(tmp_path)] == [9, 3]


def test_dose_reports_screens_and_other_modalities_are_left_out(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path, hu)
    report = writers.dicom_slice(np.zeros((2, 2), "<u2"), (0, 0, 0), Modality="SR")
    screen = writers.dicom_slice(np.zeros((6, 6, 3), "u1"), (0, 0, 0), SamplesPerPixel=3, Rows=6, Columns=6)
    screen.PhotometricInterpretation = "RGB"
    capture = writers.dicom_slice(np.zeros((6, 6), "u1"), (0, 0, 0), ImagePositionPatient=None)
    for name, item in (("a", report), ("b", screen), ("c", capture)):
        item.save_as(tmp_path / name, enforce_file_format=True)
    (tmp_path / "readme.txt").write_text("not dicom")
    (tmp_path / "sub").mkdir()
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, hu)
    assert "1 SR file" in notes_of(volume) and "colour" in notes_of(volume) and "without position" in notes_of(volume)


def test_maps_of_other_quantities_are_left_out(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path, hu, RescaleType="HU")
    for n, kind in enumerate(("MGML", "Z_EFF", "EDW")):
        writers.write_series(tmp_path, hu, name=lambda z, n=n: f"{n}-{z}", SeriesInstanceUID=f"1.{n}", RescaleType=kind)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, hu) and "27 files with other values than HU" in notes_of(volume)


def test_several_series_are_listed_and_chosen_by_number(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path, hu[:4], name=lambda z: f"small{z}", SeriesInstanceUID="1.2.9")
    writers.write_series(tmp_path, hu, name=lambda z: f"big{z}")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, hu)
    assert "2 CT stacks" in notes_of(volume) and "1: 9 slices of 21 x 17, 2.5 x 0.7 x 0.8 mm" in notes_of(volume)
    assert "1.2.9" not in notes_of(volume)
    facts = list_series(tmp_path)
    assert [(s.number, s.slices, s.spacing) for s in facts] == [(1, 9, writers.SPACING), (2, 4, writers.SPACING)]
    assert np.array_equal(read_volume(tmp_path, series=2).hu, hu[:4])
    with pytest.raises(ScanError, match="no series 3"):
        read_volume(tmp_path, series=3)


def test_two_patients_in_one_folder_need_a_choice(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path, hu, name=lambda z: f"a{z}")
    writers.write_series(tmp_path, hu[:5], name=lambda z: f"b{z}", PatientID="q", SeriesInstanceUID="1.9")
    with pytest.raises(ScanError, match="several patients or studies"):
        read_volume(tmp_path)
    assert len(read_volume(tmp_path, series=2).hu) == 5


def test_copies_are_ignored(tmp_path, writers, hu) -> None:
    paths = writers.write_series(tmp_path, hu)
    shutil.copy(paths[3], tmp_path / "copy of 3")
    writers.edit(shutil.copy(paths[5], tmp_path / "resent"), SOPInstanceUID=generate_uid())
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, hu)
    assert "1 duplicate files" in notes_of(volume) and "1 duplicate slices with identical pixels" in notes_of(volume)


def test_different_images_at_one_place_are_refused(tmp_path, writers, hu) -> None:
    paths = writers.write_series(tmp_path, hu)
    item = pydicom.dcmread(paths[4])
    item.SOPInstanceUID = generate_uid()
    item.PixelData = bytes(reversed(item.PixelData))
    item.save_as(tmp_path / "other")
    with pytest.raises(ScanError, match="different images lie at the same place"):
        read_volume(tmp_path)


@pytest.mark.parametrize("tag", ["AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime", "ConvolutionKernel"])
def test_phases_in_one_series_become_separate_series(tmp_path, writers, hu, tag) -> None:
    second = hu[::-1].copy()
    values = ("B30f", "B70f") if tag == "ConvolutionKernel" else (1, 2)
    writers.write_series(tmp_path, hu, name=lambda z: f"a{z}", **{tag: values[0]})
    writers.write_series(tmp_path, second, name=lambda z: f"b{z}", **{tag: values[1]})
    found = [read_volume(tmp_path, series=n).hu for n in (1, 2)]
    assert np.array_equal(found[0], hu) and np.array_equal(found[1], second)
    assert "9 slices of the same series" in notes_of(read_volume(tmp_path))


def test_folders_without_a_scan(tmp_path, writers) -> None:
    with pytest.raises(ScanError, match="no DICOM files"):
        read_volume(tmp_path)
    (tmp_path / "inside").mkdir()
    with pytest.raises(ScanError, match="subfolders"):
        read_volume(tmp_path)


def test_other_files_of_a_folder_are_no_slices_and_are_not_told_of(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path, hu)
    (tmp_path / "notes.txt").write_text("read me")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "viewer.exe").write_bytes(b"MZ" + bytes(500))
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, hu) and volume.notes == ()


def test_headers_are_read_once_also_for_the_facts_of_a_scan(tmp_path, writers, hu, monkeypatch) -> None:
    writers.write_series(tmp_path, hu, name=lambda z: f"big{z}")
    writers.write_series(tmp_path, hu[:4], name=lambda z: f"small{z}", SeriesInstanceUID="1.2.9")
    read = []
    original = dicom_series.read_header
    monkeypatch.setattr(dicom_series, "read_header", lambda path: read.append(path) or original(path))
    assert scan_facts(tmp_path)["series"] == [str(series) for series in list_series(tmp_path)]
    assert len(read) == 2 * 13  # once by each of the two
