"""The synthetic chest: known truth, known orientation, known scanner, and files that independent readers agree on."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from voxelfm_hf.data.phantom import LABELS, LESION_TYPES, draw_facts, make_phantom
from voxelfm_hf.data.phantom.scanner import add_scanner, slice_profile
from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti
from voxelfm_hf.volumes import ScanError, Volume, VoxelFMError

SMALL = (40, 48, 48)


@pytest.fixture(scope="module")
def chest():
    return make_phantom(3, shape=(96, 112, 112))


@pytest.fixture(scope="module")
def small():
    return make_phantom(5, shape=SMALL)


def centroid(phantom, name):
    """LPS mm (x, y, z) of an organ's middle."""
    index = np.argwhere(phantom.mask(name)).mean(0)
    return (phantom.volume.affine @ np.append(index, 1))[:3]


def lesion_index(phantom):
    position = np.append(phantom.facts.lesion.position_lps_mm, 1)
    return (np.linalg.inv(phantom.volume.affine) @ position)[:3]


def test_volume_is_int16_hu_with_the_facts_geometry(chest):
    volume, acquisition = chest.volume, chest.facts.acquisition
    assert volume.hu.dtype == np.int16 and volume.hu.shape == chest.labels.shape == (96, 112, 112)
    assert volume.hu.min() >= -1024 and volume.hu.max() <= 3071
    assert volume.spacing == pytest.approx(acquisition.spacing_mm)
    assert acquisition.field_of_view_mm == pytest.approx(np.array(volume.hu.shape) * volume.spacing)
    assert chest.labels.dtype == np.uint8 and set(np.unique(chest.labels)) <= set(LABELS.values())


def test_organs_lie_on_the_right_side(chest):
    spine, heart = centroid(chest, "spine"), centroid(chest, "heart")
    assert centroid(chest, "liver")[0] < spine[0] - 20  # LPS x grows to the left
    assert centroid(chest, "lung_right")[0] < spine[0] < centroid(chest, "lung_left")[0]
    for left in ("spleen", "stomach"):
        assert centroid(chest, left)[0] > spine[0] + 20
    assert heart[0] > spine[0] + 5  # mostly left
    assert heart[1] < spine[1] - 40  # in front of the spine (y grows to the back)
    assert centroid(chest, "table")[1] > spine[1] + 20
    assert centroid(chest, "airways")[2] > heart[2] > centroid(chest, "liver")[2]


def test_right_diaphragm_is_higher_than_left(chest):
    lowest = {}
    for side in ("right", "left"):
        lung = chest.mask(f"lung_{side}").any(1)
        lowest[side] = np.percentile(lung.argmax(0)[lung.any(0)], 75)
    assert lowest["right"] > lowest["left"]


@pytest.mark.parametrize(
    "organ, low, high",
    [
        ("background", -1005, -980),
        ("fat", -120, -70),
        ("muscle", 20, 65),
        ("lung_right", -900, -780),
        ("lung_left", -900, -780),
        ("liver", 44, 72),
        ("spleen", 40, 56),
        ("heart", 36, 50),
        ("aorta", 32, 48),
        ("spine", 60, 500),
    ],
)
def test_unenhanced_organs_have_realistic_hu(chest, organ, low, high):
    assert chest.facts.acquisition.contrast == "none"
    assert low <= np.median(chest.volume.hu[chest.mask(organ)]) <= high


def test_contrast_brightens_the_aorta():
    seeds = {draw_facts(s).acquisition.contrast: s for s in range(20)}
    median = {}
    for phase, seed in seeds.items():
        phantom = make_phantom(1, shape=SMALL, acquisition_seed=seed)
        median[phase] = np.median(phantom.volume.hu[phantom.mask("aorta")])
    assert median["none"] < 60 < 100 < median["venous"] < 200 < median["arterial"]


@pytest.mark.parametrize("spacing", [(1.0, 0.7, 0.7), (3.0, 1.4, 1.1)])
def test_noise_has_the_drawn_strength_and_the_kernels_texture(spacing):
    neighbours = {}
    for kernel in ("smooth", "sharp"):
        acquisition = replace(draw_facts(0).acquisition, kernel=kernel, noise_hu=25.0, spacing_mm=spacing)
        hu = add_scanner(np.full((8, 96, 95), 40, np.float32), acquisition=acquisition, rng=np.random.default_rng(0))
        assert hu.std() == pytest.approx(25, rel=0.05) and hu.mean() == pytest.approx(40, abs=1)
        assert abs(np.corrcoef(hu[1:].ravel(), hu[:-1].ravel())[0, 1]) < 0.03  # slices are independent
        neighbours[kernel] = np.corrcoef(hu[:, :, 1:].ravel(), hu[:, :, :-1].ravel())[0, 1]
    assert neighbours["smooth"] > neighbours["sharp"] + 0.2


@pytest.mark.parametrize("seed", [3, 5])
def test_noise_strength_in_the_liver(seed):
    phantom = make_phantom(seed, shape=(32, 96, 96))
    liver = phantom.mask("liver")
    inner = liver[1:-1, 2:-2, 2:-2].copy()
    for axis, step in ((0, 1), (1, 2), (2, 2)):
        for offset in (0, 2 * step):
            window = [slice(1, -1), slice(2, -2), slice(2, -2)]
            window[axis] = slice(offset, liver.shape[axis] - 2 * step + offset)
            inner &= liver[tuple(window)]
    values = phantom.volume.hu[1:-1, 2:-2, 2:-2][inner].astype(float)
    spread = 1.4826 * np.median(np.abs(values - np.median(values)))  # liver vessels are outliers
    assert spread == pytest.approx(phantom.facts.acquisition.noise_hu, rel=0.2)


def test_thick_slices_average_their_neighbours():
    acquisition = replace(draw_facts(0).acquisition, spacing_mm=(2.0, 1.0, 1.0), slice_thickness_mm=3.0)
    step = np.repeat(np.float32([0, 0, 90, 90]), 4).reshape(4, 2, 2)
    assert np.allclose(slice_profile(step, acquisition=acquisition)[:, 0, 0], [0, 15, 75, 90])


def test_same_seed_gives_identical_bits_and_other_seeds_differ(small):
    again = make_phantom(5, shape=SMALL)
    assert np.array_equal(small.volume.hu, again.volume.hu) and np.array_equal(small.labels, again.labels)
    assert small.facts == again.facts and np.array_equal(small.volume.affine, again.volume.affine)
    assert not np.array_equal(small.volume.hu, make_phantom(6, shape=SMALL).volume.hu)


def test_one_person_two_scans(small):
    other = make_phantom(5, shape=SMALL, acquisition_seed=77)
    assert other.facts.body == small.facts.body and other.facts.findings == small.facts.findings
    assert replace(other.facts.lesion, position_lps_mm=None) == replace(small.facts.lesion, position_lps_mm=None)
    assert other.facts.acquisition != small.facts.acquisition


def test_facts_do_not_need_the_volume(small):
    assert draw_facts(5, shape=SMALL) == small.facts
    json.dumps(small.facts.as_dict())
    row = small.facts.row()
    acquisition = small.facts.acquisition
    assert row["noise_hu"] == acquisition.noise_hu and row["slice_thickness"] == acquisition.slice_thickness_mm
    assert tuple(row[f"spacing_{axis}"] for axis in "zyx") == small.volume.spacing
    assert set(small.facts.findings.labels()) <= set(row)


@pytest.mark.parametrize("lesion", [t for t in LESION_TYPES if t != "none"])
@pytest.mark.parametrize("seed", [2, 9])
def test_lesion_lies_where_and_how_large_the_facts_say(lesion, seed):
    phantom = make_phantom(seed, shape=(48, 48, 48), spacing=(0.9, 0.9, 0.9), center_on="lesion", lesion=lesion)
    mask, facts = phantom.mask("lesion"), phantom.facts.lesion
    assert facts.type == lesion
    middle = np.argwhere(mask).mean(0)
    assert np.linalg.norm((middle - lesion_index(phantom)) * 0.9) < 0.15 * facts.diameter_mm
    assert lesion_index(phantom) == pytest.approx([23.5, 23.5, 23.5], abs=0.01)
    diameter = 2 * (3 * mask.sum() * 0.9**3 / (4 * np.pi)) ** (1 / 3)
    assert diameter == pytest.approx(facts.diameter_mm, rel=0.12)


def test_lesion_types_differ_in_hu():
    shape, spacing = (40, 40, 40), (0.8, 0.8, 0.8)
    median = {}
    for lesion in LESION_TYPES:
        phantom = make_phantom(3, shape=shape, spacing=spacing, center_on="lesion", lesion=lesion)
        median[lesion] = np.median(phantom.volume.hu[18:22, 18:22, 18:22])
        assert phantom.mask("lesion").any() == (lesion != "none")
    assert median["none"] < -750 and median["cavity"] < -750
    assert -720 < median["ground_glass"] < -430
    assert -20 < median["solid"] < 90 and -20 < median["spiculated"] < 90
    assert median["calcified"] > 200


def test_lesion_lies_in_the_drawn_lung_of_the_whole_chest():
    for seed in range(4):
        phantom = make_phantom(seed, shape=(64, 80, 80), lesion="solid")
        x = phantom.facts.lesion.position_lps_mm[0]
        assert (x < centroid(phantom, "spine")[0]) == (phantom.facts.lesion.side == "right")
        index = tuple(np.rint(lesion_index(phantom)).astype(int))
        assert phantom.labels[index] == LABELS["lesion"]


def test_every_finding_changes_what_it_should():
    organs = {
        "pleural_effusion": "effusion",
        "consolidation": "consolidation",
        "pericardial_effusion": "pericardial_effusion",
        "lymphadenopathy": "lymph_nodes",
        "hiatal_hernia": "hiatal_hernia",
        "medical_material": "device",
    }
    seen = {name: set() for name in organs}
    for seed in range(14):
        phantom = make_phantom(seed, shape=(56, 64, 64))
        for finding, present in phantom.facts.findings.labels().items():
            if finding in organs:
                assert phantom.mask(organs[finding]).any() == bool(present), (seed, finding)
                seen[finding].add(present)
    assert all(values == {0, 1} for values in seen.values()), seen


def test_heart_width_follows_the_cardiothoracic_ratio():
    for seed in (1, 2, 3):
        phantom = make_phantom(seed, shape=(64, 128, 128))
        spread = np.ptp(np.flatnonzero(phantom.mask("heart").any((0, 1)))) + 1
        width = spread * phantom.volume.spacing[2]
        body = phantom.facts.body
        assert width == pytest.approx(body.cardiothoracic_ratio * 264 * body.width_scale, rel=0.06)


def test_emphysema_fraction_is_the_share_of_low_lung():
    seed = next(s for s in range(99) if draw_facts(s).findings.emphysema_fraction > 0.15)
    facts = draw_facts(seed)
    phantom = make_phantom(seed, shape=(64, 80, 80))
    lung = phantom.mask("lung_right") | phantom.mask("lung_left")
    low = (phantom.volume.hu[lung] < -925).mean()
    assert low == pytest.approx(facts.findings.emphysema_fraction, abs=0.12)


def test_draws_are_independent_and_have_the_documented_rates():
    rows = [draw_facts(seed).row() for seed in range(600)]
    findings = np.array([[r[name] for name in draw_facts(0).findings.labels()] for r in rows], float)
    assert np.abs(findings.mean(0) - 0.25).max() < 0.07
    columns = [
        findings,
        np.array([[r["lesion_diameter_mm"], r["noise_hu"], r["fat_mm"], r["trabecular_hu"]] for r in rows]),
    ]
    types = np.array([[r["lesion_type"] == t for t in LESION_TYPES] for r in rows], float)
    assert np.abs(types.mean(0) - 1 / 6).max() < 0.06
    correlation = np.corrcoef(np.hstack([*columns, types]).T)
    correlation[-6:, -6:] = 0  # the types exclude each other
    assert np.abs(correlation - np.diag(np.diag(correlation))).max() < 0.17


def test_odd_shapes_and_bad_arguments():
    assert make_phantom(0, shape=(8, 11, 9)).volume.hu.shape == (8, 11, 9)
    assert make_phantom(0, shape=(1, 9, 7), spacing=(5, 5, 5)).volume.hu.shape == (1, 9, 7)
    assert make_phantom(0, shape=(3, 20, 20), spacing=(8, 1, 1)).volume.spacing == (8, 1, 1)
    far = make_phantom(0, shape=(8, 8, 8), spacing=(0.3, 0.3, 0.3))
    assert far.volume.hu.std() < 400
    for bad in (
        {"lesion": "wart"},
        {"shape": (4, 4)},
        {"shape": (0, 4, 4)},
        {"spacing": (1, 0, 1)},
        {"center_on": "head"},
    ):
        with pytest.raises(ValueError):
            make_phantom(0, **bad)


def oblique_volume():
    """A tilted grid with an uneven HU pattern below -1024 and above 3071."""
    angle = np.deg2rad(12)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = (turn @ np.diag([0.7, 0.9, 2.5]))[:, ::-1]
    affine[:3, 3] = (-12.345678, 33.3, -101.0625)
    hu = np.random.default_rng(0).integers(-2000, 4000, (6, 9, 11)).astype(np.int16)
    return Volume.from_array(hu, affine=affine)


@pytest.mark.parametrize("kind", ["phantom", "oblique"])
def test_dicom_series_is_what_simpleitk_reads(kind, small, tmp_path):
    volume = small.volume if kind == "phantom" else oblique_volume()
    folder = write_dicom_series(volume, tmp_path / "series", seed=5)
    reader = SimpleITK.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(folder))
    assert list(names) == sorted(names) and len(names) == len(volume.hu)
    reader.SetFileNames(names)
    image = reader.Execute()
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), volume.hu)
    for index in ((0, 0, 0), tuple(n - 1 for n in volume.hu.shape), (3, 1, 2)):
        expected = (volume.affine @ (*index, 1))[:3]
        found = image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
        assert np.allclose(found, expected, atol=1e-4)


def test_dicom_files_are_valid_anonymous_and_repeatable(small, tmp_path):
    first, second = (write_dicom_series(small.volume, tmp_path / n, seed=5) for n in ("a", "b"))
    files = sorted(p.name for p in first.iterdir())
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in files)
    heads = [pydicom.dcmread(first / n) for n in files]
    assert {h.SOPClassUID.name for h in heads} == {"CT Image Storage"}
    assert len({h.SOPInstanceUID for h in heads}) == len(files) and len({h.SeriesInstanceUID for h in heads}) == 1
    assert all(h.SOPInstanceUID.is_valid and len(h.SOPInstanceUID) <= 64 for h in heads)
    assert str(heads[0].PatientName) == heads[0].PatientID == "PHANTOM"
    assert not any(
        heads[0].get(k) for k in ("PatientBirthDate", "StudyDate", "ReferringPhysicianName", "AccessionNumber")
    )
    other = write_dicom_series(small.volume, tmp_path / "c", seed=6)
    assert pydicom.dcmread(other / files[0]).SeriesInstanceUID != heads[0].SeriesInstanceUID


def test_writers_refuse_what_they_cannot_do(small, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "note.txt").write_text("mine")
    with pytest.raises(VoxelFMError, match="used"):
        write_dicom_series(small.volume, tmp_path / "used")
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["note.txt"]
    with pytest.raises(ScanError, match=".nii"):
        write_nifti(small.volume, tmp_path / "scan.mha")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("kind", ["phantom", "oblique"])
def test_nifti_is_what_nibabel_and_simpleitk_read(kind, name, small, tmp_path):
    volume = small.volume if kind == "phantom" else oblique_volume()
    path = write_nifti(volume, tmp_path / name)
    image = nibabel.load(path)
    assert image.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), volume.hu)
    voxel = np.array([2, 3, 4])  # z, y, x
    ras = (image.affine @ np.append(voxel[::-1], 1))[:3]
    assert np.allclose(ras * (-1, -1, 1), (volume.affine @ np.append(voxel, 1))[:3], atol=1e-4)
    read = SimpleITK.ReadImage(str(path))
    assert np.allclose(
        read.TransformIndexToPhysicalPoint([4, 3, 2]), (volume.affine @ np.append(voxel, 1))[:3], atol=1e-3
    )
    assert [p.name for p in tmp_path.iterdir()] == [name]
