"""DICOM numbers: rescale, sign, unused bits, padding, and headers that cannot be a CT."""

import errno
import os

import numpy as np
import pydicom
import pytest

from voxelfm_hf.volumes import ScanError, find_scans, list_series, read_volume


def notes_of(volume) -> str:
    return " | ".join(volume.notes)


def test_enhanced_multiframe_with_a_rescale_per_frame(tmp_path, writers, hu) -> None:
    slopes = [1.0, 2.0, 1.0, 4.0, 1.0, 1.0, 2.0, 1.0, 1.0]
    even = (hu // 4) * 4
    writers.enhanced_ct(even, slopes=slopes).save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path / "scan.dcm")
    assert np.array_equal(volume.hu, even) and "each slice's own" in notes_of(volume)


def test_signed_unsigned_and_rescale_per_slice(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path / "signed", hu, signed=True, intercept=0)
    assert np.array_equal(read_volume(tmp_path / "signed").hu, hu)
    even = (hu // 2) * 2
    folder = tmp_path / "mixed"
    for z, image in enumerate(even):
        slope, intercept = (1, -1024) if z % 2 else (2, -2000)
        stored = ((image.astype(int) - intercept) // slope).astype("<u2")
        position = (0, 0, 2.5 * z)
        folder.mkdir(exist_ok=True)
        writers.dicom_slice(stored, position, RescaleSlope=slope, RescaleIntercept=intercept).save_as(
            folder / str(z), enforce_file_format=True
        )
    volume = read_volume(folder)
    assert np.array_equal(volume.hu, even) and "each slice's own" in notes_of(volume)


def test_fractional_rescale_becomes_float32(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path, hu, RescaleSlope="0.5", RescaleIntercept="-1024.25")
    expected = (hu.astype(np.float64) + 1024) * 0.5 - 1024.25
    volume = read_volume(tmp_path)
    assert volume.hu.dtype == np.float32 and np.array_equal(volume.hu, expected.astype(np.float32))


def test_unused_high_bits_are_ignored_as_gdcm_does(tmp_path, writers, hu) -> None:
    for signed in (False, True):
        folder = tmp_path / str(signed)
        shift = 0 if signed else -1024
        for path in writers.write_series(folder, hu, signed=signed, intercept=shift, BitsStored=12, HighBit=11):
            item = pydicom.dcmread(path)
            stored = np.frombuffer(item.PixelData, "<u2") & 0x0FFF
            stored = stored | np.where(np.arange(stored.size) % 3 == 0, 0x5000, 0).astype("<u2")
            item.PixelData = stored.tobytes()
            item.save_as(path)
        assert np.array_equal(read_volume(folder).hu, hu)


def padded_series(writers, folder, hu, value: int, **tags) -> np.ndarray:
    stored = (hu.astype(int) + 1024).astype("<u2")
    mask = np.zeros(hu.shape[1:], bool)
    mask[[0, 0, -1, -1, 0, 1], [0, -1, 0, -1, 1, 0]] = True
    stored[:, mask] = value
    folder.mkdir()
    for z in range(len(hu)):
        writers.dicom_slice(
            stored[z], (0, 0, 2.5 * z), RescaleIntercept=-1024, PixelPaddingValue=value, **tags
        ).save_as(folder / str(z), enforce_file_format=True)
    return mask


def test_padding_that_would_look_like_bone_becomes_air(tmp_path, writers, hu) -> None:
    mask = padded_series(writers, tmp_path / "s", hu, 63536)
    volume = read_volume(tmp_path / "s")
    assert volume.hu.dtype == np.int16
    assert (volume.hu[:, mask] == -1024).all() and np.array_equal(volume.hu[:, ~mask], hu[:, ~mask])
    assert "padding" in notes_of(volume)


def test_padding_that_is_air_already_is_kept(tmp_path, writers, hu) -> None:
    mask = padded_series(writers, tmp_path / "s", hu, 0)
    volume = read_volume(tmp_path / "s")
    assert (volume.hu[:, mask] == -1024).all() and "padding" not in notes_of(volume)


def test_a_padding_value_used_inside_the_body_is_not_trusted(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path, hu, PixelPaddingValue=1024)  # 0 HU: water
    assert np.array_equal(read_volume(tmp_path).hu, hu)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Modality": "MR"}, "9 MR files"),
        ({"Modality": "PT"}, "9 PT files"),
        ({"Modality": "JOHNDOE"}, "another modality"),
        ({"ImagePositionPatient": None}, "without position"),
        ({"PixelSpacing": [0, 0]}, "impossible orientation or pixel spacing"),
        ({"PixelSpacing": [900, 900]}, "no CT has"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "impossible orientation"),
        ({"RescaleType": "MGML"}, "9 files with other values than HU"),
        ({"BitsAllocated": 64}, "impossible image size"),
        ({"Rows": 60000, "Columns": 60000}, "cut short"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizers"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "raw scanner numbers"),
    ],
)
def test_refusals(tmp_path, writers, hu, tags, words) -> None:
    writers.write_series(tmp_path, hu, **tags)
    with pytest.raises(ScanError, match=words) as caught:
        read_volume(tmp_path)
    assert str(tmp_path) in str(caught.value) and "JOHN" not in str(caught.value)


def test_damage_is_refused(tmp_path, writers, hu) -> None:
    paths = writers.write_series(tmp_path, hu)
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[:-40])
    with pytest.raises(ScanError, match="1 file cut short among 9"):
        read_volume(tmp_path)
    paths[2].write_bytes(whole[:160])
    with pytest.raises(ScanError, match="among 9"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("error", "words"), [(errno.EACCES, "1 file without read permission among 9; make"), (errno.EIO, "1 file damaged")]
)
def test_an_unreadable_slice_is_never_taken_for_a_missing_one(tmp_path, writers, hu, monkeypatch, error, words) -> None:
    """Opening is made to fail, because tests may run as root, who may read everything."""
    closed = str(writers.write_series(tmp_path, hu)[4])
    original = open

    def refusing(path, *args, **kwargs):
        if str(path) == closed:
            raise OSError(error, os.strerror(error), closed)
        return original(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refusing)
    with pytest.raises(ScanError, match=words):
        read_volume(tmp_path)
    with pytest.raises(ScanError, match=words):
        list_series(tmp_path)
    assert list(find_scans(tmp_path)) == [tmp_path]
