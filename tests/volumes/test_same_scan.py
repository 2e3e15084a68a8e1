"""One scan in every format and orientation is one array, and results go back onto each file's own grid."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from voxelfm_hf.volumes import ScanError, Volume, read_volume

ORIENTATIONS = [
    "".join(pair[s] for pair, s in zip(axes, signs, strict=True))
    for axes in permutations(("LR", "PA", "SI"))
    for signs in product((0, 1), repeat=3)
]


def check_same(volume: Volume, hu: np.ndarray, writers) -> None:
    assert volume.hu.dtype == np.int16 and volume.hu.flags.c_contiguous
    assert np.array_equal(volume.hu, hu)
    assert volume.spacing == writers.SPACING
    corner = volume.affine @ [0, 0, 0, 1]
    assert np.allclose(corner[:3], writers.ORIGIN, atol=1e-5)
    z, y, x = writers.SPACING
    assert np.allclose(volume.affine[:3, :3], [[0, 0, x], [0, y, 0], [z, 0, 0]], atol=1e-5)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_nifti_in_every_orientation(tmp_path, writers, orientation) -> None:
    hu = writers.ct_array()
    image = writers.nifti_of(hu, orientation)
    path = tmp_path / "scan.nii"
    nib.save(image, path)
    volume = read_volume(path)
    check_same(volume, hu, writers)
    assert volume.notes == ()
    assert volume.grid.orientation == orientation == "".join(nib.aff2axcodes(image.affine))
    assert volume.grid.shape == image.shape
    restored = volume.restore(volume.hu)
    assert np.array_equal(restored.affine, nib.load(path).affine)
    assert np.array_equal(np.asarray(restored.dataobj), np.asarray(image.dataobj))


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd", ".nii.gz"])
@pytest.mark.parametrize("compressed", [False, True])
def test_itk_formats(tmp_path, writers, suffix, compressed) -> None:
    hu = writers.ct_array()
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(writers.lps_image(hu), str(path), compressed)
    volume = read_volume(path)
    check_same(volume, hu, writers)
    assert volume.grid.orientation == "LPS"


def test_dicom_series_with_shuffled_names(tmp_path, writers) -> None:
    hu = writers.ct_array()
    writers.write_series(tmp_path / "series", hu)
    volume = read_volume(tmp_path / "series")
    check_same(volume, hu, writers)
    restored = volume.restore(volume.hu)
    oracle = sitk.ReadImage(_sorted_series(tmp_path / "series"))
    nib.save(restored, tmp_path / "back.nii")
    back = sitk.ReadImage(str(tmp_path / "back.nii"))
    assert back.GetSize() == oracle.GetSize()
    assert np.allclose(back.GetDirection(), oracle.GetDirection(), atol=1e-6)
    assert np.allclose(back.GetOrigin(), oracle.GetOrigin(), atol=1e-5)
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(oracle))


def _sorted_series(folder) -> tuple[str, ...]:
    return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))


@pytest.mark.parametrize(
    ("rows_along", "columns_along"),
    [([1, 0, 0], [0, 1, 0]), ([0, 1, 0], [0, 0, -1]), ([1, 0, 0], [0, 0, -1]), ([-1, 0, 0], [0, -1, 0])],
)
def test_dicom_planes_agree_with_simpleitk(tmp_path, writers, rows_along, columns_along) -> None:
    normal = np.cross(rows_along, columns_along)
    for n in range(6):
        image = writers.ct_array((1, 11, 8), seed=n)[0] + 1024
        item = writers.dicom_slice(
            image.astype("<u2"),
            np.array([3.0, -7.0, 11.0]) + normal * 1.25 * n,
            RescaleIntercept=-1024,
            ImageOrientationPatient=[*rows_along, *columns_along],
            InstanceNumber=99 - n,
        )
        item.save_as(tmp_path / f"{n}.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path)
    oracle = sitk.DICOMOrient(sitk.ReadImage(_sorted_series(tmp_path)), "LPS")
    assert np.array_equal(volume.hu, sitk.GetArrayFromImage(oracle))
    assert np.allclose(volume.spacing, oracle.GetSpacing()[::-1])
    assert np.allclose(volume.affine[:3, 3], oracle.GetOrigin())


@pytest.mark.parametrize("dtype", ["int16", ">i2", "int32", "int64", "float32", "float64", ">f8"])
def test_whole_numbers_of_any_type_become_the_same_int16(tmp_path, writers, dtype) -> None:
    hu = writers.ct_array()
    image = writers.nifti_of(hu, "RAS")
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(np.dtype(dtype))
    typed = nib.Nifti1Image(np.asarray(image.dataobj).astype(dtype), image.affine, header)
    typed.header.set_xyzt_units("mm")
    nib.save(typed, tmp_path / "scan.nii.gz")
    check_same(read_volume(tmp_path / "scan.nii.gz"), hu, writers)


def test_fractions_stay_float32(tmp_path, writers) -> None:
    hu = writers.ct_array().astype(np.float64) + 0.25
    nib.save(writers.nifti_of(hu, "LAS"), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.hu.dtype == np.float32
    assert np.array_equal(volume.hu, hu.astype(np.float32))


def test_a_late_fraction_keeps_the_earlier_integers(tmp_path, writers) -> None:
    hu = writers.ct_array((40, 160, 200)).astype(np.float32)  # more than one block of conversion
    hu[-1, -1, -1] = -999.5
    sitk.WriteImage(writers.lps_image(hu), str(tmp_path / "scan.mha"))
    volume = read_volume(tmp_path / "scan.mha")
    assert volume.hu.dtype == np.float32 and np.array_equal(volume.hu, hu)


@pytest.mark.parametrize("spacing", [0.9765625, 0.7, 0.703125, 0.646484375, 0.48828125, 0.8007812, 1 / 3, 3.3, 0.782])
def test_spacing_is_the_same_number_from_every_format(tmp_path, writers, spacing) -> None:
    hu = writers.ct_array((4, 8, 8))
    triple = (1.25, spacing, spacing)
    nib.save(writers.nifti_of(hu, "RAS", spacing=triple), tmp_path / "a.nii")
    nib.save(writers.nifti_of(hu, "PIR", spacing=triple), tmp_path / "b.nii")
    sitk.WriteImage(writers.lps_image(hu, spacing=triple), str(tmp_path / "c.nrrd"))
    sitk.WriteImage(writers.lps_image(hu, spacing=triple), str(tmp_path / "d.mha"))
    writers.write_series(tmp_path / "e", hu, spacing=(1.25, round(spacing, 10), round(spacing, 10)))
    found = {read_volume(tmp_path / name).spacing for name in ("a.nii", "b.nii", "c.nrrd", "d.mha", "e")}
    # Multiples of 1/1024 mm are kept exactly, also where the file rounds them; other numbers have five decimals.
    exact = {0.8007812: 0.80078125, 1 / 3: 0.33333}.get(spacing, spacing)
    assert found == {(1.25, exact, exact)}
    assert np.allclose(found.pop(), triple, rtol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_oblique_grids_follow_nibabel(tmp_path, writers, seed) -> None:
    rng = np.random.default_rng(seed)
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_rotvec(rng.normal(0, 0.3, 3)).as_matrix()
    signs = rng.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = (turn @ np.eye(3)[:, rng.permutation(3)]) * signs * [0.8, 1.1, 2.0]
    affine[:3, 3] = rng.normal(0, 50, 3)
    hu = writers.ct_array((5, 7, 6))
    image = nib.Nifti1Image(hu, affine)
    nib.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    target = nib.orientations.axcodes2ornt("LPS")
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), target))
    assert np.array_equal(volume.hu, np.asarray(turned.dataobj).T)
    index = rng.integers(0, 5, 3)  # (x, y, z) on the reoriented grid
    assert np.allclose(
        (volume.affine @ [*index[::-1], 1])[:3], (writers.LPS_FROM_RAS @ turned.affine @ [*index, 1])[:3], atol=1e-4
    )
    assert any("oblique" in note for note in volume.notes)
    assert np.array_equal(np.asarray(volume.restore(volume.hu).dataobj), hu)


def test_header_and_voxels_in_two_files(tmp_path, writers) -> None:
    hu = writers.ct_array()
    image = writers.nifti_of(hu, "RPI")
    nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), image.affine, image.header), tmp_path / "scan.img")
    for name in ("scan.img", "scan.hdr"):
        check_same(read_volume(tmp_path / name), hu, writers)
    (tmp_path / "scan.img").unlink()
    with pytest.raises(ScanError, match="not beside it"):
        read_volume(tmp_path / "scan.hdr")


def test_nifti2(tmp_path, writers) -> None:
    image = writers.nifti_of(writers.ct_array(), "ARS")
    nib.save(nib.Nifti2Image(np.asarray(image.dataobj), image.affine, image.header), tmp_path / "scan.nii.gz")
    check_same(read_volume(tmp_path / "scan.nii.gz"), writers.ct_array(), writers)


def test_npy(tmp_path, writers) -> None:
    hu = writers.ct_array()
    for name, array in (("c", hu), ("f", np.asfortranarray(hu)), ("d", hu.astype(np.float64))):
        np.save(tmp_path / f"{name}.npy", array)
        volume = read_volume(tmp_path / f"{name}.npy", spacing=writers.SPACING)
        assert np.array_equal(volume.hu, hu) and volume.hu.dtype == np.int16 and volume.spacing == writers.SPACING
    (tmp_path / "c.json").write_text('{"spacing": [2.5, 0.7, 0.8]}')
    assert read_volume(tmp_path / "c.npy").spacing == writers.SPACING
    with pytest.raises(ScanError, match="--spacing z,y,x"):
        read_volume(tmp_path / "d.npy")
    (tmp_path / "c.json").write_text('{"spaced": 3}')
    with pytest.raises(ScanError, match="must hold"):
        read_volume(tmp_path / "c.npy")


def test_restore_types(writers) -> None:
    volume = Volume.from_array(writers.ct_array((3, 4, 5)), spacing=(1, 1, 1))
    for dtype, stored in ((bool, np.uint8), (np.int64, np.int32), (np.float16, np.float32), (np.float32, np.float32)):
        assert volume.restore(np.ones((3, 4, 5), dtype)).get_data_dtype() == stored
    with pytest.raises(ScanError, match="shape"):
        volume.restore(np.ones((5, 4, 3)))
    with pytest.raises(ScanError, match="32-bit"):
        volume.restore(np.full((3, 4, 5), 2**40))


def test_from_array_checks_geometry(writers) -> None:
    hu = writers.ct_array((3, 4, 5))
    volume = Volume.from_array(hu, spacing=(3, 2, 1))
    assert np.array_equal(volume.affine @ [1, 1, 1, 1], [1, 2, 3, 1])
    again = Volume.from_array(hu, affine=volume.affine)
    assert again.spacing == (3, 2, 1) and again.grid.orientation == "LPS"
    for wrong in (
        {"spacing": (1, 1)},
        {"spacing": (1, 0, 1)},
        {"spacing": None},
        {"affine": np.eye(4)},
        {"affine": volume.affine, "spacing": (1, 2, 3)},
        {"spacing": (1, np.nan, 1)},
    ):
        with pytest.raises(ScanError):
            Volume.from_array(hu, **wrong)
    with pytest.raises(ScanError, match="3-d"):
        Volume.from_array(hu[0], spacing=(1, 1, 1))
    with pytest.raises(ScanError, match="NaN"):
        Volume.from_array(np.full((2, 2, 2), np.nan), spacing=(1, 1, 1))


def test_real_scans_agree_with_simpleitk(real_data) -> None:
    scans = real_data / "ct" / "scans"
    for name in (
        "lungdx_A0002_chest_8mm_dicom",
        "pyradiomics_lung1_part_image.nrrd",
        "totalseg_abdomen_pelvis_3mm.nii.gz",
        "totalseg_heart_cta_crop_1p5mm.nii.gz",
    ):
        path = scans / name
        oracle = sitk.ReadImage(_sorted_series(path) if path.is_dir() else str(path))
        oracle = sitk.DICOMOrient(oracle, "LPS")
        volume = read_volume(path)
        assert np.array_equal(volume.hu, sitk.GetArrayFromImage(oracle)), name
        assert volume.hu.dtype == np.int16
        assert np.allclose(volume.spacing, oracle.GetSpacing()[::-1], atol=1e-5)
        assert np.allclose(volume.affine[:3, 3], oracle.GetOrigin(), atol=1e-3)


def test_a_real_series_converted_to_every_format_stays_the_same(real_data, tmp_path) -> None:
    folder = real_data / "ct" / "scans" / "lungdx_A0002_chest_8mm_dicom"
    image = sitk.ReadImage(_sorted_series(folder))
    expected = read_volume(folder)
    for code in ("LPS", "RAS", "SPR", "AIL"):
        turned = sitk.DICOMOrient(image, code)
        for suffix in (".nii", ".nrrd", ".mha"):
            path = tmp_path / f"{code}{suffix}"
            sitk.WriteImage(turned, str(path))
            volume = read_volume(path)
            assert volume.hu.dtype == expected.hu.dtype and np.array_equal(volume.hu, expected.hu)
            assert volume.spacing == expected.spacing
            assert np.allclose(volume.affine, expected.affine, atol=1e-3)
            path.unlink()


def test_real_crops_and_head_scans_need_no_override(real_data) -> None:
    crops = sorted((real_data / "ct" / "lidc" / "images").glob("*.nii.gz"))[::25]
    heads = sorted((real_data / "ct" / "openkbp" / "images").glob("*.nii.gz"))[::24]
    assert crops and heads
    for path in crops + heads:
        volume = read_volume(path)
        expected = nib.load(path).get_fdata()
        restored = volume.restore(volume.hu)
        assert np.array_equal(np.asarray(restored.dataobj), expected)
        assert np.array_equal(restored.affine, nib.load(path).affine)
