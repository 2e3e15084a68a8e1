"""Where DICOM slices lie: gaps, uneven and sideways positions, gantry tilt, multi-frame, one slice."""

import numpy as np
import pytest

from voxelfm_hf.volumes import ScanError, read_volume


def notes_of(volume) -> str:
    return " | ".join(volume.notes)


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


@pytest.mark.parametrize("tilt", [0.7, -0.9, 0.25])
def test_maps_and_masks_go_back_to_where_each_tilted_slice_lies(tmp_path, writers, tilt) -> None:
    """Every voxel of the straight grid says its own row: a tilted slice must read the row at its place in space."""
    writers.write_series(tmp_path / "s", writers.ct_array((12, 40, 30)), tilt=tilt)
    volume = read_volume(tmp_path / "s")
    rows = np.broadcast_to(np.arange(volume.hu.shape[1])[None, :, None], volume.hu.shape)
    world_y = writers.ORIGIN[1] + writers.SPACING[1] * np.arange(40)[:, None] + tilt * np.arange(12)
    expected = (world_y - (volume.affine @ [0, 0, 0, 1])[1]) / writers.SPACING[1]  # (j, k) of the file
    places = np.asarray(volume.restore(rows.astype(np.float32)).dataobj)
    np.testing.assert_allclose(places, np.broadcast_to(expected, places.shape), atol=1e-4)
    nearest = np.asarray(volume.restore(rows.astype(np.uint8)).dataobj)
    assert np.abs(nearest - expected).max() <= 0.5 + 1e-4


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


def test_multiframe_without_positions_is_refused(tmp_path, writers, hu) -> None:
    item = writers.enhanced_ct(hu)
    del item.PerFrameFunctionalGroupsSequence
    item.save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    with pytest.raises(ScanError, match="multi-frame without a position"):
        read_volume(tmp_path / "scan.dcm")


def test_one_slice(tmp_path, writers, hu) -> None:
    path = writers.write_series(tmp_path / "s", hu[:1])[0]
    for target in (path, path.parent):
        volume = read_volume(target)
        assert np.array_equal(volume.hu, hu[:1]) and volume.spacing == (7.77, 0.7, 0.8)
        assert "one slice" in notes_of(volume)
    writers.edit(path, SliceThickness=None)
    with pytest.raises(ScanError, match="without a thickness"):
        read_volume(path)
