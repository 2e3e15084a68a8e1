"""What every reader of a data set promises; nodules and organs, made and real."""

import numpy as np
import pytest

from tests.eval.small_datasets import REAL, check, ids_of, real, volume, write_csv
from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.eval.datasets import About, dataset_names, load_dataset
from voxelfm_hf.eval.datasets.geometry import mask_centre, mask_centroids
from voxelfm_hf.eval.datasets.tables import age_years, held_out
from voxelfm_hf.eval.labels import binary_target, number_target, point_target
from voxelfm_hf.eval.splits import patient_groups, split_rows
from voxelfm_hf.eval.tasks.segmentation import read_mask
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import DatasetError, RecipeError


def test_every_data_set_says_what_it_is(tmp_path):
    names = dataset_names()
    assert {"lidc", "openkbp", "phantoms", "ct_rate", "merlin", "totalsegmentator"} <= set(names)
    for name in names:
        module = load_dataset(name)
        about = module.ABOUT
        assert isinstance(about, About) and all((about.title, about.where, about.licence, about.citation, about.layout))
        assert name == "phantoms" or "://" in about.where
        assert module.__doc__ and callable(module.read)
    with pytest.raises(RecipeError, match="there is no data set tables: choose one of"):
        load_dataset("tables")


@pytest.mark.parametrize("name", [n for n in dataset_names() if n != "phantoms"])
def test_a_missing_data_set_says_where_to_get_it(name, tmp_path):
    module = load_dataset(name)
    with pytest.raises(DatasetError) as error:
        module.read(tmp_path)
    text = str(error.value)
    assert str(tmp_path) in text and module.ABOUT.where in text and module.ABOUT.layout in text


def test_geometry_of_masks():
    hu = np.zeros((5, 6, 7), np.int16)
    hu[1, 2, 3:6], hu[4, 0, 0] = 1, 3
    mask = volume(shape=hu.shape, hu=hu)
    centroids = mask_centroids(mask)
    assert set(centroids) == {1, 3}
    assert centroids[1] == pytest.approx((-20 + 4, 30 + 2 * 1.5, 5 + 2))
    assert centroids[3] == pytest.approx((-20, 30, 5 + 4 * 2))
    assert mask_centre(mask, 1) == pytest.approx(centroids[1])
    assert mask_centroids(volume(hu=np.zeros((2, 2, 2), np.int16))) == {}


def test_ages_and_held_out_patients():
    assert [age_years(text) for text in ("058Y", "58", "7.0", "", "006M", "n/a", None)] == [58, 58, 7] + [None] * 4
    chosen = [held_out(f"train_{i}", share=0.1) for i in range(5000)]
    assert np.mean(chosen) == pytest.approx(0.1, abs=0.015)
    assert chosen[:50] == [held_out(f"train_{i}", share=0.1) for i in range(50)]


@pytest.fixture
def nodules(tmp_path):
    """Three nodules; the second has no matched readings."""
    rows = []
    for number, malignancy in enumerate((4.5, None, 3.0), start=1):
        name = f"LIDC-IDRI-0001_N{number}"
        hu = np.zeros((4, 20, 20), np.int16)
        hu[1:3, 5:9, 6:10] = 1
        write_nifti(volume(shape=hu.shape), tmp_path / "lidc" / "images" / f"{name}.nii.gz")
        write_nifti(volume(hu=hu), tmp_path / "lidc" / "masks" / f"{name}.nii.gz")
        readings = {name: malignancy for name in ("malignancy", "lobulation", "margin", "sphericity", "spiculation")}
        readings |= {"subtlety": 5, "texture": 2}
        rows.append(
            {
                "patient_id": "LIDC-IDRI-0001",
                "file": f"lidc/images/{name}.nii.gz",
                "mask_file": f"lidc/masks/{name}.nii.gz",
                "split": "train",
                "diameter_mm": 4.0 * number,
                "spacing_x": 1.0,
                "spacing_z": 2.0,
                "slice_thickness": 2.0,
                "calcification": 6 if number > 1 else 3,
                **{f"{reading}_mean": "" if value is None else value for reading, value in readings.items()},
            }
        )
    write_csv(tmp_path / "lidc" / "labels.csv", rows)
    return tmp_path


def test_nodules_are_regions_at_their_masks(nodules):
    lidc = load_dataset("lidc")
    data = lidc.read(nodules, edge_mm=10.0)
    assert ids_of(data) == data.labels.ids == [f"LIDC-IDRI-0001_N{n}" for n in (1, 2, 3)]
    region = data.tasks[0].regions[0]
    mask = read_mask(nodules / data.labels.column("mask_file")[0], num_classes=len(data.classes))
    assert region.edge_mm == 10 and region.centre_lps == pytest.approx(mask_centre(mask, 1))
    # On the cut, or not read: no label.
    assert data.labels.column("malignant") == [1, None, None]
    assert data.labels.column("round") == [1, None, 0] and data.labels.column("ill_defined") == [0, None, 1]
    assert data.labels.column("subtle") == [0, 0, 0] and data.labels.column("subsolid") == [1, 1, 1]
    assert data.labels.column("calcified") == [1, 0, 0]
    assert data.labels.column("crop_z_mm") == [8.0] * 3 and lidc.read(nodules).labels.column("crop_z_mm") == [8.0] * 3
    assert data.labels.column("diameter_band") == ["under 8 mm", "8 to 15 mm", "8 to 15 mm"]


def test_a_nodule_without_its_file(nodules):
    (nodules / "lidc" / "images" / "LIDC-IDRI-0001_N2.nii.gz").unlink()
    with pytest.raises(DatasetError, match="LIDC-IDRI-0001_N2.nii.gz does not exist"):
        load_dataset("lidc").read(nodules)


@real
def test_real_nodules():
    data = load_dataset("lidc").read(REAL)
    check(data)
    target = binary_target(data.labels, "malignant")
    assert np.isnan(target).sum() > 50 and 0.4 < np.nanmean(target) < 0.6
    diameter = number_target(data.labels, "diameter_mm")
    # Larger nodules are read as malignant: the baseline that everything has to beat.
    assert np.nanmean(diameter[target == 1]) > 1.5 * np.nanmean(diameter[target == 0])
    splits = split_rows(data.labels, patient_groups(data.labels))
    assert {name: int((splits == name).sum()) for name in ("train", "val", "test")} == {
        "train": 481,
        "val": 108,
        "test": 104,
    }


@real
def test_real_organs():
    data = load_dataset("openkbp").read(REAL)
    check(data)
    for row in range(0, len(data.tasks), 30):
        in_table = [data.labels.column(f"spacing_{axis}")[row] for axis in "zyx"]
        assert read_volume(data.tasks[row].scan.path).spacing == pytest.approx(in_table, abs=1e-3)
    for organ in data.classes[1:]:
        points = point_target(data.labels, [f"centre_{organ}_{axis}" for axis in "xyz"])[:, 0]
        contoured = np.array(data.labels.column(f"contoured_{organ}")) == 1
        assert (np.isfinite(points).all(1) == contoured).all()
    left, right = (
        point_target(data.labels, [f"centre_{side}Parotid_{axis}" for axis in "xyz"])[:, 0, 0]
        for side in ("Left", "Right")
    )
    known = np.isfinite(left) & np.isfinite(right)
    assert (left[known] > right[known]).all()  # x grows to the patient's left
