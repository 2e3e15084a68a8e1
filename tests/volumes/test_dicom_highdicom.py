"""Odd DICOM made by an independent writer, highdicom, and judged by its own reader and by SimpleITK.

Enhanced multi-frame CT of every geometry and transfer syntax, and derived objects (segmentations, captures, maps,
reports) that lie beside a scan or come alone.
"""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from voxelfm_hf.volumes import ScanError, list_series, read_volume

hd = pytest.importorskip("highdicom", reason="needs highdicom to write enhanced multi-frame DICOM")
legacy = pytest.importorskip("highdicom.legacy")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # what the small source series leave out

ORIENTATIONS = {
    "axial": [1, 0, 0, 0, 1, 0],
    "feet first": [-1, 0, 0, 0, 1, 0],
    "coronal": [1, 0, 0, 0, 0, -1],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "oblique": [0.96, 0.28, 0, -0.28, 0.96, 0],
}


STUDY = {
    "PatientName": "DOE^JOHN",
    "PatientBirthDate": "19330102",
    "PatientSex": "O",
    "AccessionNumber": "A1",
    "StudyID": "1",
    "StudyDate": "20200102",
    "StudyTime": "101010",
    "ReferringPhysicianName": "ROE^JANE",
    "Manufacturer": "maker",
    "FrameOfReferenceUID": "1.2.3.99",
}


def write_series(writers, folder, hu, *, orientation=ORIENTATIONS["axial"], gaps=None, **tags) -> list:
    """A series along its normal, as data sets; `gaps` mm between slices, by default the usual spacing."""
    normal = np.cross(orientation[:3], orientation[3:])
    heights = np.cumsum([0.0, *(gaps or [writers.SPACING[0]] * (len(hu) - 1))])
    paths = writers.write_series(
        folder,
        hu,
        ImagePositionPatient=lambda z: [float(v) for v in np.array(writers.ORIGIN) + normal * heights[z]],
        ImageOrientationPatient=orientation,
        InstanceNumber=lambda z: z + 1,
        **STUDY,
        **tags,
    )
    return [pydicom.dcmread(path) for path in paths]


def enhanced(series: list, path, **options):
    """The series as one legacy converted enhanced CT file."""
    image = legacy.LegacyConvertedEnhancedCTImage(series, generate_uid(), 7, generate_uid(), 1, **options)
    image.save_as(path)
    return path


@pytest.fixture
def hu(writers):
    return writers.ct_array((6, 40, 48)).clip(-1024)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_enhanced_ct_agrees_with_its_series_highdicom_and_simpleitk(tmp_path, writers, hu, orientation) -> None:
    series = write_series(writers, tmp_path / "series", hu, orientation=ORIENTATIONS[orientation])
    path = enhanced(series[::-1], tmp_path / "enhanced.dcm")
    volume, of_series = read_volume(path), read_volume(tmp_path / "series")
    assert np.array_equal(volume.hu, of_series.hu) and volume.hu.dtype == np.int16
    assert volume.spacing == of_series.spacing and np.allclose(volume.affine, of_series.affine, atol=1e-6)
    itk = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    assert np.array_equal(volume.hu, sitk.GetArrayFromImage(itk))
    assert np.allclose(volume.spacing, itk.GetSpacing()[::-1])
    assert np.allclose(volume.affine[:3, 3], itk.GetOrigin(), atol=1e-4)
    theirs = hd.imread(path).get_volume(apply_modality_transform=True)
    places = volume.affine @ np.append(np.argwhere(volume.hu == volume.hu.max())[0], 1)
    index = np.rint(np.linalg.solve(theirs.affine, places)).astype(int)[:3]
    assert theirs.array[tuple(index)] == volume.hu.max()
    assert np.array_equal(np.sort(theirs.array, axis=None), np.sort(volume.hu, axis=None))


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEG2000]
)
@pytest.mark.parametrize("extended_offsets", [False, True])
def test_enhanced_ct_in_every_transfer_syntax(tmp_path, writers, hu, syntax, extended_offsets) -> None:
    if syntax in (JPEG2000, JPEG2000Lossless):
        pytest.importorskip("pylibjpeg", reason="needs pylibjpeg to write JPEG 2000")
    series = write_series(writers, tmp_path / "series", hu)
    path = enhanced(series, tmp_path / "e.dcm", transfer_syntax_uid=syntax, use_extended_offset_table=extended_offsets)
    assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    volume = read_volume(path)
    assert volume.spacing == writers.SPACING and np.allclose(volume.affine[:3, 3], writers.ORIGIN)
    if syntax == JPEG2000:
        assert "with loss" in " ".join(volume.notes) and np.abs(volume.hu - hu.astype(int)).max() < 200
    else:
        assert np.array_equal(volume.hu, hu) and volume.notes == ()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_signed_enhanced_ct(tmp_path, writers, hu, syntax) -> None:
    series = write_series(writers, tmp_path / "series", hu, signed=True, intercept=0)
    path = enhanced(series, tmp_path / "enhanced.dcm", transfer_syntax_uid=syntax)
    assert np.array_equal(read_volume(path).hu, hu)


def test_a_rescale_per_frame(tmp_path, writers, hu) -> None:
    even = hu // 2 * 2
    halves = write_series(writers, tmp_path / "a", even[::2], slope=2, gaps=[5.0, 5.0])
    wholes = write_series(writers, tmp_path / "b", even[1::2], gaps=[5.0, 5.0])
    for item in wholes:
        item.ImagePositionPatient[2] += 2.5
    for item in halves + wholes:
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    path = enhanced(halves + wholes, tmp_path / "enhanced.dcm", include_dimension_index=False)
    volume = read_volume(path)
    assert np.array_equal(volume.hu, even) and "each slice's own" in " ".join(volume.notes)


def test_a_missing_frame_and_a_hole(tmp_path, writers, hu) -> None:
    series = write_series(writers, tmp_path / "series", hu)
    path = enhanced(series[:2] + series[3:], tmp_path / "enhanced.dcm")
    volume = read_volume(path)
    assert "1 missing slice was filled" in " ".join(volume.notes) and volume.spacing == writers.SPACING
    assert np.array_equal(np.delete(volume.hu, 2, 0), np.delete(hu, 2, 0))
    holed = write_series(writers, tmp_path / "holed", hu, gaps=[2.5, 2.5, 30, 2.5, 2.5])
    with pytest.raises(ScanError, match="hole of 30.0 mm"):
        read_volume(enhanced(holed, tmp_path / "holed.dcm"))


def test_uneven_frames_and_gantry_tilt_agree_with_their_series(tmp_path, writers) -> None:
    hu = writers.ct_array((8, 40, 48)).clip(-1024)
    uneven = write_series(writers, tmp_path / "uneven", hu, gaps=[2, 2, 2.8, 2.4, 1.8, 2, 2])
    for item in (tilted := write_series(writers, tmp_path / "tilted", hu)):
        item.ImagePositionPatient[1] += 0.28 * (item.InstanceNumber - 1)
    for item, path in zip(tilted, sorted((tmp_path / "tilted").iterdir()), strict=True):
        item.save_as(path)
    for name, series in (("uneven", uneven), ("tilted", tilted)):
        volume = read_volume(enhanced(series, tmp_path / f"{name}.dcm"))
        of_series = read_volume(tmp_path / name)
        assert np.array_equal(volume.hu, of_series.hu) and volume.notes == of_series.notes
        assert np.allclose(volume.affine, of_series.affine, atol=1e-6)
    assert "gantry tilt" in volume.notes[0]


def test_an_enhanced_copy_beside_its_series_is_a_second_stack(tmp_path, writers, hu) -> None:
    series = write_series(writers, tmp_path, hu)
    enhanced(series, tmp_path / "copy")
    assert [facts.slices for facts in list_series(tmp_path)] == [6, 6]
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, hu) and "2 CT stacks" in volume.notes[0]


def test_enhanced_mr_is_refused(tmp_path, writers, hu) -> None:
    series = write_series(writers, tmp_path / "series", hu, Modality="MR", SOPClassUID=MRImageStorage)
    for item in series:
        item.file_meta.MediaStorageSOPClassUID = MRImageStorage
    image = legacy.LegacyConvertedEnhancedMRImage(series, generate_uid(), 7, generate_uid(), 1)
    image.save_as(tmp_path / "enhanced.dcm")
    with pytest.raises(ScanError, match="1 MR file"):
        read_volume(tmp_path / "enhanced.dcm")


def segmentation(series, mask):
    code = hd.sr.CodedConcept("123037004", "SCT", "Anatomical Structure")
    algorithm = hd.AlgorithmIdentificationSequence("a", hd.sr.CodedConcept("123", "99X", "a"), "1")
    segment = hd.seg.SegmentDescription(
        1, "lung", code, code, hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm_identification=algorithm
    )
    return hd.seg.Segmentation(
        series, mask, "BINARY", [segment], generate_uid(), 8, generate_uid(), 1, "maker", "model", "1", "serial"
    )


def parametric_map(series, values):
    span = (0.0, 4000.0) if values.dtype.kind == "f" else (0, 4000)
    window = hd.pm.RealWorldValueMapping(
        "lut", "explained", hd.sr.CodedConcept("1", "UCUM", "no units"), span, slope=1, intercept=0
    )
    return hd.pm.ParametricMap(
        series, values, generate_uid(), 8, generate_uid(), 1, "maker", "model", "1", "serial",
        contains_recognizable_visual_features=False, real_world_value_mappings=[window], window_center=0,
        window_width=100, content_qualification="RESEARCH", image_flavor="VOLUME",
    )  # fmt: skip


def screen_capture(series, pixels, photometric):
    return hd.sc.SCImage(
        pixels, photometric, 8, "PATIENT", series[0].StudyInstanceUID, generate_uid(), 8, generate_uid(), 1, "maker",
        patient_id=series[0].PatientID, patient_orientation=("L", "P"), pixel_spacing=(0.7, 0.8),
    )  # fmt: skip


def test_objects_derived_from_the_scan_are_never_taken_for_it(tmp_path, writers, hu) -> None:
    series = write_series(writers, tmp_path / "study", hu)
    lung = (hu < -500).astype(np.uint8)
    grey = np.full((60, 70), 90, np.uint8)
    derived = {
        "segmentation": (segmentation(series, lung), "1 SEG file"),
        "map": (parametric_map(series, (hu + 1024).astype(np.uint16)), "1 OT file"),
        "map of floats": (parametric_map(series, hu.astype(np.float32)), "1 OT file"),
        "capture": (screen_capture(series, grey, "MONOCHROME2"), "1 OT file"),
        "colours": (screen_capture(series, np.stack([grey] * 3, -1), "RGB"), "1 OT file"),
    }
    for name, (item, words) in derived.items():
        item.save_as(tmp_path / f"{name}.dcm")
        with pytest.raises(ScanError, match=f"no CT image.*{words}"):
            read_volume(tmp_path / f"{name}.dcm")
        item.save_as(tmp_path / "study" / f"0{name}")
    volume = read_volume(tmp_path / "study")
    assert np.array_equal(volume.hu, hu) and volume.spacing == writers.SPACING
    assert "1 SEG file" in volume.notes[0] and "4 OT files" in volume.notes[0] and "DOE" not in str(volume.notes)


def test_a_capture_that_calls_itself_ct_is_left_out(tmp_path, writers, hu) -> None:
    series = write_series(writers, tmp_path / "study", hu)
    for name, pixels, photometric in (
        ("grey", np.full(hu.shape[1:], 90, np.uint8), "MONOCHROME2"),
        ("colours", np.full((*hu.shape[1:], 3), 90, np.uint8), "RGB"),
    ):
        capture = screen_capture(series, pixels, photometric)
        capture.Modality, capture.SeriesInstanceUID = "CT", series[0].SeriesInstanceUID
        capture.save_as(tmp_path / "study" / name)
    volume = read_volume(tmp_path / "study")
    assert np.array_equal(volume.hu, hu)
    assert "without position" in volume.notes[0] and "1 colour pictures" in volume.notes[0]


def test_an_enhanced_copy_of_a_real_series(tmp_path, real_data) -> None:
    folder = real_data / "ct" / "scans" / "lungdx_A0002_chest_8mm_dicom"
    series = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    path = enhanced(series, tmp_path / "enhanced.dcm")
    volume, of_series = read_volume(path), read_volume(folder)
    assert np.array_equal(volume.hu, of_series.hu)
    assert volume.spacing == of_series.spacing and np.allclose(volume.affine, of_series.affine, atol=1e-6)
    itk = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    assert np.array_equal(volume.hu, sitk.GetArrayFromImage(itk))
    assert np.allclose(volume.affine[:3, 3], itk.GetOrigin(), atol=1e-3)
