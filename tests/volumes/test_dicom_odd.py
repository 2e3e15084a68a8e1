"""What real archives put into DICOM folders: each oddity is handled with a note or refused with the reason."""

import shutil

import numpy as np
import pydicom.pixels
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from voxelfm_hf.volumes import ScanError, list_series, read_volume


def notes_of(volume) -> str:
    return " | ".join(volume.notes)


def need_encoder(syntax) -> None:
    if not pydicom.pixels.get_encoder(syntax).is_available:
        pytest.skip("needs pyjpegls, pylibjpeg and pylibjpeg-openjpeg to write compressed test files")


@pytest.fixture
def hu(writers):
    return writers.ct_array()


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


def test_a_missing_slice_is_filled_and_said(tmp_path, writers, hu) -> None:
    paths = writers.write_series(tmp_path, hu)
    paths[4].unlink()
    volume = read_volume(tmp_path)
    expected = hu.copy()
    expected[4] = np.rint((hu[3].astype(float) + hu[5]) / 2)
    assert np.array_equal(volume.hu, expected) and volume.spacing == writers.SPACING
    assert "1 missing slice was filled" in notes_of(volume)
    assert volume.restore(volume.hu).shape == (17, 21, 9)


def test_many_missing_slices_are_refused(tmp_path, writers, hu) -> None:
    paths = writers.write_series(tmp_path, hu, spacing=(5, 0.7, 0.8))
    paths[3].unlink()
    paths[4].unlink()
    with pytest.raises(ScanError, match="hole of 15.0 mm"):
        read_volume(tmp_path)
    thin = writers.write_series(tmp_path / "thin", writers.ct_array((12, 6, 6)), spacing=(1, 0.7, 0.8))
    for z in (3, 4, 8):
        thin[z].unlink()
    with pytest.raises(ScanError, match="3 of 12 slices are missing"):
        read_volume(tmp_path / "thin")


def test_uneven_gaps_are_resampled_linearly(tmp_path, writers) -> None:
    heights = np.array([0, 2, 4, 6.8, 9.2, 11, 13, 15])
    ramp = np.broadcast_to(heights[:, None, None] * 10 - 800, (8, 6, 6)).round().astype(np.int16)
    ramp = ramp + np.arange(6, dtype=np.int16) * 20
    position = lambda z: [0, 0, float(heights[z])]  # noqa: E731
    writers.write_series(tmp_path, ramp, ImagePositionPatient=position)
    volume = read_volume(tmp_path)
    step = volume.spacing[0]
    assert abs(step - 15 / 7) < 1e-4 or abs(step - 15 / 8) < 1e-4
    expected = np.arange(len(volume.hu)) * step * 10 - 800
    assert np.abs(volume.hu[:, 0, 0] - expected).max() <= 1
    assert "slice distances vary" in notes_of(volume)


def test_slightly_uneven_positions_are_kept(tmp_path, writers, hu) -> None:
    jitter = [0.0, 0.1, -0.1, 0.05, 0, 0.1, -0.05, 0.1, 0]
    writers.write_series(tmp_path, hu, ImagePositionPatient=lambda z: [0, 0, 2.5 * z + jitter[z]])
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, hu) and "uneven" in notes_of(volume)


def test_slices_that_wander_sideways_are_refused(tmp_path, writers, hu) -> None:
    writers.write_series(tmp_path, hu, ImagePositionPatient=lambda z: [0, (z % 3) * 9.0, 2.5 * z])
    with pytest.raises(ScanError, match="shifted sideways"):
        read_volume(tmp_path)


@pytest.mark.parametrize("tilt", [0.7, -0.9])
def test_gantry_tilt_is_straightened_and_restored(tmp_path, writers, tilt) -> None:
    """A plane fixed in space must come out flat; resampling by ITK on the straight grid is the oracle."""
    hu = writers.ct_array((12, 40, 30))
    writers.write_series(tmp_path / "s", hu, tilt=tilt)
    volume = read_volume(tmp_path / "s")
    assert "gantry tilt" in notes_of(volume)
    columns = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert np.allclose(columns.T @ columns, np.eye(3), atol=1e-9)
    assert volume.spacing == writers.SPACING
    # Independent oracle: each slice's own position in space, linear interpolation within the slice.
    worst = 0
    for z in (0, 5, 11):
        for y in range(2, volume.hu.shape[1] - 2):
            world_y = (volume.affine @ [z, y, 3, 1])[1]
            row = (world_y - (writers.ORIGIN[1] + tilt * z)) / writers.SPACING[1]
            if 0 <= row <= 39:
                expected = np.interp(row, np.arange(40), hu[z, :, 3].astype(float))
                worst = max(worst, abs(volume.hu[z, y, 3] - expected))
            elif not -1 < row < 40:
                assert volume.hu[z, y, 3] == -1024
    assert worst <= 0.5 + 1e-6
    restored = volume.restore(volume.hu.astype(np.float32))
    assert restored.shape == (30, 40, 12)
    mask = np.zeros(volume.hu.shape, np.uint8)
    mask[4:8, 14:30, 5:20] = 3
    back = np.asarray(volume.restore(mask).dataobj)
    assert set(np.unique(back)) == {0, 3} and abs(int((back > 0).sum()) - int((mask > 0).sum())) <= 4 * 15
    index = np.array([6, 20, 7])
    world = writers.LPS_FROM_RAS @ restored.affine @ [*index, 1]
    assert np.allclose(
        world[:3], [writers.ORIGIN[i] + [0.8, 0.7, 2.5][i] * index[i] + (tilt * 7 if i == 1 else 0) for i in range(3)]
    )


def test_gantry_tilt_as_dicom_and_as_nifti_agree(tmp_path, writers) -> None:
    import nibabel as nib

    hu = writers.ct_array((12, 40, 30))
    writers.write_series(tmp_path / "s", hu, tilt=0.7)
    a = read_volume(tmp_path / "s")
    image = nib.Nifti1Image(hu.T, a.grid.affine)
    for orientation in ("LPS", "RSA", "ILP"):
        turned = image.as_reoriented(
            nib.orientations.ornt_transform(
                nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(orientation)
            )
        )
        turned.header.set_xyzt_units("mm")
        nib.save(turned, tmp_path / "t.nii")
        b = read_volume(tmp_path / "t.nii")
        assert b.spacing == a.spacing and b.hu.shape == a.hu.shape
        assert np.abs(a.hu.astype(int) - b.hu).max() <= 1  # the file's float32 affine moves a rounding tie


@pytest.mark.parametrize("frames", [list(range(9)), [3, 1, 8, 0, 2, 7, 4, 6, 5]])
def test_enhanced_multiframe(tmp_path, writers, hu, frames) -> None:
    writers.enhanced_ct(hu, order=frames).save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    for path in (tmp_path / "scan.dcm", tmp_path):
        volume = read_volume(path)
        assert np.array_equal(volume.hu, hu) and volume.spacing == writers.SPACING
        assert np.allclose(volume.affine[:3, 3], writers.ORIGIN)


def test_enhanced_multiframe_with_a_rescale_per_frame(tmp_path, writers, hu) -> None:
    slopes = [1.0, 2.0, 1.0, 4.0, 1.0, 1.0, 2.0, 1.0, 1.0]
    even = (hu // 4) * 4
    writers.enhanced_ct(even, slopes=slopes).save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path / "scan.dcm")
    assert np.array_equal(volume.hu, even) and "each slice's own" in notes_of(volume)


def test_multiframe_without_positions_is_refused(tmp_path, writers, hu) -> None:
    item = writers.enhanced_ct(hu)
    del item.PerFrameFunctionalGroupsSequence
    item.save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    with pytest.raises(ScanError, match="multi-frame without a position"):
        read_volume(tmp_path / "scan.dcm")


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_compressions(tmp_path, writers, syntax, signed) -> None:
    hu = writers.ct_array((9, 40, 48))  # JPEG 2000 needs 32 pixels
    need_encoder(syntax)
    intercept = 0 if signed else -1024
    for path in writers.write_series(tmp_path, hu, signed=signed, intercept=intercept):
        item = pydicom.dcmread(path)
        item.compress(syntax, generate_instance_uid=False)
        item.save_as(path)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, hu)


@pytest.mark.parametrize("bits", [8, 10, 12, 13, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_jpeg2000_of_every_depth(tmp_path, writers, bits, signed) -> None:
    need_encoder(JPEG2000Lossless)
    rng = np.random.default_rng(bits)
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    stored = rng.integers(low, high, (40, 48)).astype(("<i" if signed else "<u") + ("1" if bits == 8 else "2"))
    item = writers.dicom_slice(stored, (0, 0, 0), BitsStored=bits, HighBit=bits - 1)
    item.compress(JPEG2000Lossless, generate_instance_uid=False)
    item.save_as(tmp_path / "slice.dcm", enforce_file_format=True)
    assert np.array_equal(read_volume(tmp_path / "slice.dcm", assume_hu=True).hu[0], stored)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressions_written_by_gdcm(tmp_path, writers, compressor) -> None:
    stored = (writers.ct_array((1, 40, 48)) + 1024).astype(np.uint16)
    image = sitk.GetImageFromArray(stored)
    image.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.2")
    image.SetMetaData("0008|0060", "CT")
    image.SetMetaData("0018|0050", "2.5")
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(tmp_path / "slice.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(image)
    writers.edit(tmp_path / "slice.dcm", RescaleIntercept=-1024, RescaleSlope=1)
    syntax = pydicom.dcmread(tmp_path / "slice.dcm").file_meta.TransferSyntaxUID
    assert syntax == {"JPEG": JPEGLosslessSV1, "JPEG2000": JPEG2000Lossless}[compressor]
    assert np.array_equal(read_volume(tmp_path / "slice.dcm").hu, stored.astype(int) - 1024)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_multiframe(tmp_path, writers, syntax) -> None:
    hu = writers.ct_array((9, 40, 48))  # JPEG 2000 needs 32 pixels
    need_encoder(syntax)
    item = writers.enhanced_ct(hu, order=[3, 1, 8, 0, 2, 7, 4, 6, 5])
    item.compress(syntax, generate_instance_uid=False)
    item.save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    assert np.array_equal(read_volume(tmp_path / "scan.dcm").hu, hu)


@pytest.mark.parametrize(
    "name",
    ["JPEG-lossy.dcm", "JPEGLSNearLossless_16.dcm", "JPEG2000.dcm"]
    + ["MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"],
)
def test_code_streams_of_other_encoders_agree_with_gdcm(tmp_path, name) -> None:
    """pydicom's test files, dressed as CT slices; JPEG 12 bit and JPEG-LS near-lossless among them."""
    source = pydicom.data.get_testdata_file(name, download=False)
    item = pydicom.dcmread(source)
    item.Modality, item.ImageOrientationPatient, item.PixelSpacing = "CT", [1, 0, 0, 0, 1, 0], [1, 1]
    item.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    item.ImagePositionPatient, item.SliceThickness, item.ImageType = [0, 0, 0], 3, ["ORIGINAL", "PRIMARY", "AXIAL"]
    item.RescaleSlope, item.RescaleIntercept = 1, -1024
    item.save_as(tmp_path / "slice.dcm")
    volume = read_volume(tmp_path, assume_hu=True)
    oracle = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "slice.dcm")))
    assert np.array_equal(volume.hu, oracle.reshape(volume.hu.shape))


def test_lossy_compression_is_noted(tmp_path, writers) -> None:
    hu = writers.ct_array((9, 40, 48))  # JPEG 2000 needs 32 pixels
    need_encoder(JPEG2000)
    for path in writers.write_series(tmp_path, hu):
        item = pydicom.dcmread(path)
        item.compress(JPEG2000, j2k_cr=[4], generate_instance_uid=False)
        item.save_as(path)
    volume = read_volume(tmp_path)
    assert "with loss" in notes_of(volume)
    assert np.corrcoef(volume.hu.ravel(), hu.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_encodings(tmp_path, writers, hu, syntax) -> None:
    for path in writers.write_series(tmp_path, hu):
        item = pydicom.dcmread(path)
        if syntax == ExplicitVRBigEndian:
            item.PixelData = np.frombuffer(item.PixelData, "<u2").astype(">u2").tobytes()
        item.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(
            path, item, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian
        )
    assert np.array_equal(read_volume(tmp_path).hu, hu)


def test_files_without_the_preamble_are_read_by_their_name(tmp_path, writers, hu) -> None:
    for path in writers.write_series(tmp_path, hu, name=lambda z: f"{z}.dcm"):
        item = pydicom.dcmread(path)
        bare = Dataset()
        bare.update(item)
        bare.save_as(path, implicit_vr=True, little_endian=True)
    assert path.read_bytes()[:2] == b"\x08\0"
    assert np.array_equal(read_volume(tmp_path).hu, hu)


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


def test_one_slice(tmp_path, writers, hu) -> None:
    path = writers.write_series(tmp_path / "s", hu[:1])[0]
    for target in (path, path.parent):
        volume = read_volume(target)
        assert np.array_equal(volume.hu, hu[:1]) and volume.spacing == (7.77, 0.7, 0.8)
        assert "one slice" in notes_of(volume)
    writers.edit(path, SliceThickness=None)
    with pytest.raises(ScanError, match="without a thickness"):
        read_volume(path)


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


def test_deflated_and_unknown_compressions_are_refused(tmp_path, writers, hu) -> None:
    paths = writers.write_series(tmp_path, hu[:2])
    for path in paths:
        item = pydicom.dcmread(path)
        item.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
        item.save_as(path)
    with pytest.raises(ScanError, match="deflated"):
        read_volume(tmp_path)
    for path in writers.write_series(tmp_path / "v", hu[:2]):
        item = pydicom.dcmread(path)
        item.compress(RLELossless, generate_instance_uid=False)
        item.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
        item.save_as(path)
    with pytest.raises(ScanError, match="decompress"):
        read_volume(tmp_path / "v")


def test_folders_without_a_scan(tmp_path, writers) -> None:
    with pytest.raises(ScanError, match="no DICOM files"):
        read_volume(tmp_path)
    (tmp_path / "inside").mkdir()
    with pytest.raises(ScanError, match="subfolders"):
        read_volume(tmp_path)
