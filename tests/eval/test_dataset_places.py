"""Readers of data sets that say where something lies: points, cubes, label maps."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from tests.eval.small_datasets import check, check_no_patients, total_folder, volume, write_csv
from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti
from voxelfm_hf.eval.datasets import load_dataset
from voxelfm_hf.eval.datasets.geometry import mask_centroids
from voxelfm_hf.eval.datasets.phantoms import LESION_POSITION
from voxelfm_hf.eval.datasets.totalsegmentator import STRUCTURES
from voxelfm_hf.eval.labels import point_target
from voxelfm_hf.eval.tasks.segmentation import read_mask
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import DatasetError


@pytest.mark.parametrize("flipped", [False, True])
def test_luna16_points_lie_on_their_nodules(tmp_path, flipped):
    """World coordinates as SimpleITK computes them, for both orientations that the set has."""
    image = SimpleITK.Image(80, 70, 60, SimpleITK.sitkInt16)
    image.SetSpacing((1.5, 1.5, 2.0))
    image.SetOrigin((60.0, 50.0, -200.0) if flipped else (-60.0, -50.0, -200.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1) if flipped else (1, 0, 0, 0, 1, 0, 0, 0, 1))
    image = SimpleITK.Cast(SimpleITK.AdditiveGaussianNoise(image - 800, 20), SimpleITK.sitkInt16)
    voxels = [(12, 40, 30), (70, 40, 30), (40, 10, 50)]
    rows = []
    for voxel in voxels:
        image[voxel] = 300
        x, y, z = image.TransformIndexToPhysicalPoint(voxel)
        rows.append({"seriesuid": "1.3.6.1", "coordX": x, "coordY": y, "coordZ": z, "diameter_mm": 6.0})
    rows.append({**rows[0], "seriesuid": "1.3.6.2"})
    (tmp_path / "subset8").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "subset8" / "1.3.6.1.mhd"))
    write_csv(tmp_path / "annotations.csv", rows)
    data = load_dataset("luna16").read(tmp_path, edge_mm=60.0)
    check(data)
    check_no_patients(data, studies=1)
    assert "1 of 2 scans with nodules are not in the folder" in data.notes[0]
    scan = read_volume(data.tasks[0].scan.path)
    points = point_target(data.labels, ["nodule_x", "nodule_y", "nodule_z"])[:, 0]
    low = scan.affine[:3, 3] - np.array(scan.spacing[::-1]) / 2
    high = low + np.array(scan.hu.shape[::-1]) * scan.spacing[::-1]
    off_centre = []
    for point, region in zip(points, data.tasks[0].regions, strict=True):
        z, y, x = np.rint(np.linalg.solve(scan.affine, [*point, 1])[:3]).astype(int)
        assert scan.hu[z, y, x] == 300
        centre = np.array(region.centre_lps)
        assert (np.abs(point - centre) <= 60 / 2 - 8 - 3 + 1e-9).all()
        assert (centre - 30 >= low - 1e-6).all() and (centre + 30 <= high + 1e-6).all()
        off_centre.append(np.abs(point - centre).max())
    assert max(off_centre) > 3
    assert data.labels.column("split") == ["test"] * len(points)


def test_luna16_leaves_out_crowded_cubes(tmp_path):
    image = SimpleITK.Image(60, 60, 60, SimpleITK.sitkInt16)
    (tmp_path / "subset0").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "subset0" / "a.mhd"))
    place = {"seriesuid": "a", "coordY": 30, "coordZ": 30, "diameter_mm": 5}
    write_csv(tmp_path / "annotations.csv", [{**place, "coordX": 28}, {**place, "coordX": 32}])
    with pytest.raises(DatasetError, match="holds no scan with a nodule"):
        load_dataset("luna16").read(tmp_path, edge_mm=40.0)


def test_airrc(tmp_path):
    image = SimpleITK.Image(6, 6, 4, SimpleITK.sitkInt16)
    for subset, series in (("subset0", "1.2.3"), ("subset7", "1.2.4")):
        (tmp_path / "LUNA16" / subset).mkdir(parents=True)
        SimpleITK.WriteImage(image, str(tmp_path / "LUNA16" / subset / f"{series}.mhd"))
    labels = tmp_path / "AirRC" / "labelsTr"
    for series in ("1.2.3", "1.2.4", "1.2.5"):
        write_nifti(volume(hu=np.zeros((4, 6, 6), np.int16)), labels / f"{series}.nii.gz")
    data = load_dataset("airrc").read(tmp_path)
    check(data)
    check_no_patients(data, studies=2)
    assert data.labels.column("split") == ["train", "val"] and len(data.classes) == 5
    assert "1 of 3 label maps have no scan" in data.notes[0]
    assert (tmp_path / data.labels.column("label_file")[1]).exists()


def test_totalsegmentator_masks_become_one_label_map(tmp_path):
    total = load_dataset("totalsegmentator")
    total_folder(tmp_path)
    chosen = ("spleen", "liver", "heart", "brain")
    data = total.read(tmp_path, structures=chosen, workers=0)
    check(data)
    assert data.classes == ("background", *chosen) and data.labels.column("split") == ["train", "test"]
    assert data.labels.column("age") == [60, None]
    written = tmp_path / data.labels.column("label_file")[0]
    array = np.asarray(nib.load(written).dataobj)
    found = nib.as_closest_canonical(nib.load(written)).get_fdata()
    assert found[6, 2, 3] == 1 and found[1, 2, 3] == 2 and found[4, 4, 4] == 3 and (found > 0).sum() == 3
    assert array.dtype == np.int16
    centres = mask_centroids(read_mask(written, num_classes=len(data.classes)))
    assert centres[1] == pytest.approx((-9.0, -3.0, 4.5))  # RAS (9, 3, 4.5) in LPS
    # A second call makes nothing again; other structures have other maps.
    stamp = written.stat().st_mtime_ns
    total.read(tmp_path, structures=chosen, workers=0)
    assert written.stat().st_mtime_ns == stamp
    assert (
        total.read(tmp_path, structures=("liver",), workers=0).labels.column("label_file")[0]
        != data.labels.column("label_file")[0]
    )


def test_totalsegmentator_names_and_faults(tmp_path):
    total = load_dataset("totalsegmentator")
    assert len(STRUCTURES) == len(set(STRUCTURES)) == 117
    assert (STRUCTURES[0], STRUCTURES[26], STRUCTURES[50], STRUCTURES[116]) == (
        "spleen",
        "vertebrae_L5",
        "heart",
        "costal_cartilages",
    )
    total_folder(tmp_path)
    with pytest.raises(DatasetError, match="has no structure kidney"):
        total.read(tmp_path, structures=("kidney",))
    # A mask on another grid is never laid over the scan.
    other = nib.Nifti1Image(np.zeros((8, 7, 6), np.uint8), np.diag([3.0, 3, 3, 1]))
    nib.save(other, tmp_path / "s0000" / "segmentations" / "liver.nii.gz")
    data = total.read(tmp_path, structures=("liver", "heart"), workers=0)
    assert data.labels.ids == ["s0001"] and "the mask of liver has another grid" in data.notes[0]
    (tmp_path / "s0001" / "ct.nii.gz").write_bytes(gzip.compress(b"broken"))
    (tmp_path / data.labels.column("label_file")[0]).unlink()
    with pytest.raises(DatasetError, match="no label map can be made"):
        total.read(tmp_path, structures=("liver", "heart"), workers=0)


def dicom_seg(path, mask, affine, spacing):
    """A binary multi-frame DICOM segmentation that leaves empty planes out, as the published ones do."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.pixels.utils import pack_bits
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    planes = [z for z in range(len(mask)) if mask[z].any()]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality, dataset.SegmentationType = "SEG", "BINARY"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = *mask.shape[1:], len(planes)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
    dataset.PixelData = pack_bits(mask[planes].astype(np.uint8).reshape(-1), pad=True)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[2]], spacing[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for z in planes:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = (affine @ [z, 0, 0, 1])[:3].tolist()
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    path.parent.mkdir(parents=True)
    dataset.save_as(path, enforce_file_format=True)


def test_mediastinal_nodes(tmp_path):
    scan = volume(shape=(5, 8, 9), spacing=(3.0, 1.5, 1.0))
    mask = np.zeros(scan.hu.shape, bool)
    mask[1, 2, 3], mask[3, 5:7, 6] = True, True
    rows = []
    for patient, parts in {"case_0001": ("CT", "SEG"), "case_0002": ("CT",)}.items():
        for part in parts:
            place = f"Mediastinal-Lymph-Node-SEG/{patient}/study/{part}"
            if part == "CT":
                write_dicom_series(scan, tmp_path / place)
            else:
                dicom_seg(tmp_path / place / "1-1.dcm", mask, scan.affine, scan.spacing)
            separator = "\\" if part == "SEG" else "/"
            location = f".{separator}{place.replace('/', separator)}"
            rows.append(
                {"Series UID": f"{patient}.{part}", "Subject ID": patient, "Modality": part}
                | {"File Location": location}
            )
    write_csv(tmp_path / "metadata.csv", rows)
    data = load_dataset("mediastinal_nodes").read(tmp_path, workers=0)
    check(data)
    assert data.labels.ids == ["case_0001"]
    read = read_volume(data.tasks[0].scan.path)
    found = read_mask(tmp_path / data.labels.column("label_file")[0], num_classes=2)
    np.testing.assert_allclose(found.affine, read.affine, atol=1e-4)
    np.testing.assert_array_equal(found.hu, mask)


def test_phantom_lesions_lie_somewhere_in_their_cubes(tmp_path):
    options = {"count": 16, "scans_each": 1, "shape": (48, 56, 56), "workers": 0}
    whole = load_dataset("phantoms").read(tmp_path, **options)
    check(whole)
    data = load_dataset("phantoms").read(tmp_path, **options, lesion_cube_mm=96.0, lesion_cubes=2)
    check(data)
    with_lesion = [name for name, value in zip(whole.labels.ids, whole.labels.column("lesion"), strict=True) if value]
    assert data.labels.ids == [f"{name}-cube{number}" for name in with_lesion for number in range(2)]
    assert data.tasks[0].regions[0].centre_lps != data.tasks[0].regions[1].centre_lps
    points = point_target(data.labels, LESION_POSITION)[:, 0]
    apart = []
    regions = [region for task in data.tasks for region in task.regions]
    for region, point, size in zip(regions, points, data.labels.column("lesion_diameter_mm"), strict=True):
        assert region.edge_mm == 96.0
        apart.append(np.abs(point - region.centre_lps).max())
        assert apart[-1] <= 96 / 2 - 8 - size / 2 + 1e-6
    assert np.median(apart) > 10
    # The cube is round the lesion of the image: what differs from the same person without one lies at the point.
    scan = read_volume(data.tasks[0].scan.path)
    seed = data.labels.column("seed")[0]
    differs = np.argwhere(scan.hu != make_phantom(seed, shape=options["shape"], lesion="none").volume.hu)
    centre = scan.affine[:3, :3] @ differs.mean(0) + scan.affine[:3, 3]
    assert np.linalg.norm(centre - points[0]) < 10
    # The same cubes on every machine and in every set that holds the person.
    again = load_dataset("phantoms").read(tmp_path, **{**options, "count": 8}, lesion_cube_mm=96.0, lesion_cubes=2)
    assert [task.regions for task in again.tasks] == [task.regions for task in data.tasks[: len(again.tasks)]]
