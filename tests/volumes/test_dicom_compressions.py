"""Every transfer syntax gives the uncompressed values, as GDCM and pydicom read them, or a refusal."""

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
)

from voxelfm_hf.volumes import ScanError, read_volume

JPEG_LS_BYTES_OF_SIZE = slice(7, 11)  # rows, columns after the frame header's marker, length and precision


def notes_of(volume) -> str:
    return " | ".join(volume.notes)


def need_encoder(syntax) -> None:
    if not pydicom.pixels.get_encoder(syntax).is_available:
        pytest.skip("needs pyjpegls, pylibjpeg and pylibjpeg-openjpeg to write compressed test files")


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


def encapsulated(writers, path, frame: bytes, syntax, stored, **tags):
    """A slice whose header describes `stored` and whose pixels are a code stream made elsewhere."""
    item = writers.dicom_slice(stored, (0, 0, 0), **tags)
    item.file_meta.TransferSyntaxUID = syntax
    item.PixelData = pydicom.encaps.encapsulate([frame])
    item["PixelData"].VR, item["PixelData"].is_undefined_length = "OB", True
    item.save_as(path, enforce_file_format=True)
    return path


def jpeg2000(stored, bits: int, *, signed: bool) -> bytes:
    openjpeg = pytest.importorskip("openjpeg.utils")
    words = (stored.astype(np.int32) & ((1 << bits) - 1)).astype("<u2")
    if signed:
        words = stored.astype("<i2")
    return bytes(
        openjpeg.encode_buffer(words.tobytes(), *stored.shape[::-1], 1, bits, signed, photometric_interpretation=2)
    )


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize(("header_signed", "stream_signed"), [(True, False), (False, True), (True, True)])
def test_jpeg2000_whose_sign_contradicts_the_header(tmp_path, bits, header_signed, stream_signed, writers) -> None:
    """The header's sign counts, as for GDCM; archives hold many signed images with unsigned code streams."""
    y, x = np.mgrid[:40, :48]
    stored = (x * 30 - 900 + y).astype("<i2" if header_signed else "<u2")
    frame = jpeg2000(stored.astype("<i2"), bits, signed=stream_signed)
    tags = {"BitsStored": bits, "HighBit": bits - 1}
    path = encapsulated(writers, tmp_path / "slice.dcm", frame, JPEG2000Lossless, stored, **tags)
    oracle = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert np.array_equal(read_volume(path, assume_hu=True).hu, oracle)
    if header_signed:
        assert np.array_equal(oracle[0], stored)


@pytest.mark.parametrize("bits_stored", [12, 16])
def test_jpeg_ls_slices_of_different_precision(tmp_path, writers, bits_stored) -> None:
    """Some encoders write each slice with the bits that its own values need: air with 4, bone with 12."""
    jpeg_ls = pytest.importorskip("jpeg_ls")
    hu = writers.ct_array((6, 40, 48)).clip(-1024)
    hu[1], hu[4] = -1020, -1024
    for path, image in zip(sorted(writers.write_series(tmp_path, hu, name=lambda z: f"{z}")), hu, strict=True):
        item = pydicom.dcmread(path)
        frame = jpeg_ls.encode((image + 1024).astype(np.uint16)).tobytes()
        item.file_meta.TransferSyntaxUID, item.BitsStored, item.HighBit = JPEGLSLossless, bits_stored, bits_stored - 1
        item.PixelData = pydicom.encaps.encapsulate([frame])
        item["PixelData"].VR, item["PixelData"].is_undefined_length = "OB", True
        item.save_as(path)
    assert np.array_equal(read_volume(tmp_path).hu, hu)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_one_damaged_slice_of_many_is_found_and_nothing_is_left_behind(
    tmp_path, writers, syntax, in_memory, monkeypatch
) -> None:
    """With scratch files in memory, and on systems that have none."""
    need_encoder(syntax)
    if not in_memory:
        monkeypatch.delattr("os.memfd_create", raising=False)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    hu = writers.ct_array((12, 40, 48)).clip(-1024)
    paths = writers.write_series(tmp_path / "series", hu)
    for path in paths:
        item = pydicom.dcmread(path)
        item.compress(syntax, generate_instance_uid=False)
        item.save_as(path)
    assert np.array_equal(read_volume(tmp_path / "series").hu, hu)
    frame = next(pydicom.encaps.generate_frames(pydicom.dcmread(paths[9]).PixelData, number_of_frames=1))
    whole = paths[9].read_bytes()
    shorter = pydicom.dcmread(paths[9])
    shorter.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) * 2 // 3]])
    shorter.save_as(paths[9])
    for content in (paths[9].read_bytes(), whole[: len(whole) * 2 // 3]):
        paths[9].write_bytes(content)
        with pytest.raises(ScanError, match=f"the pixels of file {sorted(paths).index(paths[9]) + 1} of 12"):
            read_volume(tmp_path / "series")
    assert not list(scratch.iterdir())


def test_code_streams_that_claim_another_image_are_not_decoded(tmp_path, writers) -> None:
    jpeg_ls = pytest.importorskip("jpeg_ls")
    stored = (writers.ct_array((1, 40, 48))[0].clip(-1024) + 1024).astype("<u2")
    true = jpeg_ls.encode_buffer(stored.tobytes(), 40, 48, 1, 16)
    larger, colours, deeper = bytearray(true), bytearray(true), bytearray(true)
    larger[JPEG_LS_BYTES_OF_SIZE] = b"\xff\xff\xff\xff"
    colours[JPEG_LS_BYTES_OF_SIZE.stop] = 255
    deeper[JPEG_LS_BYTES_OF_SIZE.start - 1] = 200
    j2k = jpeg2000(stored, 16, signed=False)
    half = j2k[:43] + b"\x02\x02" + j2k[45:]  # claims subsampling
    wide = j2k[:8] + (1 << 31).to_bytes(4, "big") + j2k[12:]
    for frame, syntax in [(larger, JPEGLSLossless), (colours, JPEGLSLossless), (deeper, JPEGLSLossless)] + [
        (half, JPEG2000Lossless),
        (wide, JPEG2000Lossless),
        (j2k[:30], JPEG2000Lossless),
        (b"\x09\0\0\0" + bytes(80), RLELossless),
    ]:
        path = encapsulated(writers, tmp_path / "slice.dcm", bytes(frame), syntax, stored)
        with pytest.raises(ScanError, match="slice.dcm: its pixels are damaged"):
            read_volume(path)


def test_huge_images_in_tiny_code_streams_take_no_memory(tmp_path, writers) -> None:
    """Header and code stream agree on 30,000 x 30,000, twice at one place, so that the slices would be compared."""
    import resource

    jpeg_ls = pytest.importorskip("jpeg_ls")
    stored = np.zeros((40, 48), "<u2")
    jls, j2k = bytearray(jpeg_ls.encode_buffer(stored.tobytes(), 40, 48, 1, 16)), jpeg2000(stored, 16, signed=False)
    side = 30_000
    jls[JPEG_LS_BYTES_OF_SIZE] = side.to_bytes(2, "big") * 2
    j2k = j2k[:8] + side.to_bytes(4, "big") * 2 + j2k[16:24] + side.to_bytes(4, "big") * 2 + j2k[32:]
    rle = (2).to_bytes(4, "little") + b"\x40\0\0\0\x50\0\0\0" + bytes(80)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for frame, syntax in ((bytes(jls), JPEGLSLossless), (j2k, JPEG2000Lossless), (rle, RLELossless)):
        for name in ("a", "b"):
            encapsulated(writers, tmp_path / name, frame, syntax, stored, Rows=side, Columns=side)
        with pytest.raises(ScanError, match="are damaged"):
            read_volume(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
