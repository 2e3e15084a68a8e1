"""Measuring volumes and data sets: tissue, noise, regions, near-duplicates, distances, the card."""

import csv
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.linalg
from huggingface_hub import DatasetCard
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from typer.testing import CliRunner

from voxelfm_hf.cli import app
from voxelfm_hf.data.describe import describe, pictures
from voxelfm_hf.data.describe.card import write_card
from voxelfm_hf.data.describe.set_distance import compare_features, frechet_distance
from voxelfm_hf.data.fingerprint import content_hash, fingerprint, fingerprint_distances, near_duplicates
from voxelfm_hf.data.measure import (
    PERCENTILES,
    TISSUES_HU,
    body_region,
    measure_volume,
    slice_profile,
    slice_regions,
)
from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.prepare import prepare
from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.failures import read_failures
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.store import StoreWriter
from voxelfm_hf.volumes import StoreError, Volume, read_volume


@pytest.fixture(scope="module")
def phantoms():
    return [make_phantom(seed, shape=(18, 224, 224), spacing=(9.0, 1.6, 1.6)) for seed in range(4)]


def test_tissue_fractions_and_percentiles_against_numpy(phantoms):
    hu = phantoms[0].volume.hu
    facts = measure_volume(hu, (9.0, 1.6, 1.6))
    for name, (low, high) in TISSUES_HU.items():
        assert facts[name] == pytest.approx(((hu >= low) & (hu < high)).mean())
    np.testing.assert_allclose(facts["hu_percentiles"], np.percentile(hu, PERCENTILES, method="inverted_cdf"), atol=1)
    assert facts["field_of_view_mm"] == pytest.approx([162.0, 358.4, 358.4])
    floats = measure_volume(hu + np.float32(0.2), (9.0, 1.6, 1.6))
    assert floats["bone"] == pytest.approx(facts["bone"], abs=1e-3)


@pytest.mark.parametrize("sigma", [6.0, 15.0, 40.0])
def test_noise_of_a_water_phantom(sigma):
    """A cylinder of water with an insert, known white noise."""
    y, x = np.mgrid[-100:100, -100:100]
    disc = np.where(y**2 + x**2 < 90**2, 20.0, -1000.0)
    disc[(y - 40) ** 2 + x**2 < 15**2] = 900
    hu = np.repeat(disc[None], 8, 0) + np.random.default_rng(0).normal(0, sigma, (8, 200, 200))
    noise = measure_volume(np.rint(hu).astype(np.int16), (2.0, 1.0, 1.0))["noise_hu"]
    assert noise == pytest.approx(sigma, rel=0.12)


def test_noise_and_contrast_of_phantoms(phantoms):
    for phantom in phantoms:
        facts = measure_volume(phantom.volume.hu, phantom.volume.spacing)
        truth = phantom.facts.acquisition
        assert facts["noise_hu"] == pytest.approx(truth.noise_hu, rel=0.2)
        assert facts["contrast"] == ("not seen" if truth.contrast == "none" else "likely")
        assert facts["region"] == "chest"
    assert {phantom.facts.acquisition.contrast for phantom in phantoms} >= {"none", "arterial"}


def test_noise_and_contrast_are_left_open_where_they_cannot_be_seen():
    coarse = np.full((8, 60, 60), 30, np.int16)
    assert measure_volume(coarse, (4.0, 4.0, 4.0))["noise_hu"] is None
    crop = np.full((8, 60, 60), 30, np.int16)
    facts = measure_volume(crop, (1.0, 0.7, 0.7))
    assert facts["noise_hu"] is None and facts["contrast"] is None
    assert facts["region"] == "part of the body"
    assert measure_volume(np.full((4, 200, 200), -1000, np.int16), (5.0, 2.0, 2.0))["region"] == "unknown"


def test_profile_of_a_simple_body():
    """An elliptic body with two lungs of known area."""
    y, x = np.mgrid[-100:100, -160:160] + 0.5
    plane = np.where((y / 80) ** 2 + (x / 140) ** 2 < 1, 30, -1000)
    plane[((y / 50) ** 2 + ((np.abs(x) - 65) / 45) ** 2) < 1] = -850
    hu = np.repeat(plane[None].astype(np.int16), 6, 0)
    profile = slice_profile(hu, (5.0, 1.0, 1.0))
    np.testing.assert_allclose(profile["area_cm2"], np.pi * 8 * 14, rtol=0.03)
    np.testing.assert_allclose(profile["air"], 2 * 5 * 4.5 / (8 * 14), rtol=0.05)
    assert (profile["bone"] == 0).all() and (profile["cut"] == 0).all()
    assert body_region(hu, (5.0, 1.0, 1.0)) == "chest"


def test_regions_of_real_scans(real_data):
    """Head-and-neck scans with organ masks, lung nodule crops: how often the rules are right (every 8th scan)."""
    folder = real_data / "ct"
    with open(folder / "openkbp" / "labels.csv", newline="") as file:
        scans = list(csv.DictReader(file))[::8]
    right = total = 0
    for scan in scans:
        volume = read_volume(folder / scan["file"])
        assert {"head", "neck"} & set(body_region(volume.hu, volume.spacing).split("+"))
        organs = read_volume(folder / scan["label_file"], assume_hu=True).hu
        names = slice_regions(slice_profile(volume.hu, volume.spacing))
        step = max(1, round(4 / volume.spacing[0]))
        brainstem = (organs[::step] == 1).any((1, 2)) & (names != "")
        right, total = right + int((names[brainstem] == "head").sum()), total + int(brainstem.sum())
    assert right / total > 0.9
    for file in sorted((folder / "lidc" / "images").glob("*.nii.gz"))[::16]:
        volume = read_volume(file)
        assert body_region(volume.hu, volume.spacing) == "part of the chest"


def test_fingerprint_is_block_means_of_the_middle_nine_tenths():
    """Tissue everywhere: the box leaves out 5 % of each side; on a grid ten times finer that is a whole number."""
    hu = np.random.default_rng(0).integers(-200, 900, (16, 16, 16)).astype(np.int16)
    fine = hu.repeat(10, 0).repeat(10, 1).repeat(10, 2)[8:152, 8:152, 8:152]
    blocks = fine.reshape(8, 18, 8, 18, 8, 18).mean((1, 3, 5))
    np.testing.assert_allclose(np.array(fingerprint(hu)).reshape(8, 8, 8), blocks, atol=0.51)


def test_near_duplicates_are_copies_and_not_other_people(phantoms):
    volumes = [phantom.volume.hu for phantom in phantoms]
    padded = np.pad(volumes[0], ((2, 1), (20, 30), (15, 25)), constant_values=-1000)
    coarse = volumes[1].reshape(18, 112, 2, 112, 2).mean((2, 4))
    noisy = volumes[2] + np.random.default_rng(0).normal(0, 30, volumes[2].shape)
    names = ["a", "b", "c", "d", "padded a", "coarse b", "noisy c"]
    prints = np.array([fingerprint(v) for v in (*volumes, padded, coarse, noisy)], np.int16)
    pairs = near_duplicates(names, prints)
    assert {(pair["id"], pair["other"]) for pair in pairs} == {
        ("a", "padded a"), ("b", "coarse b"), ("c", "noisy c")
    }  # fmt: skip
    expected = fingerprint_distances(prints[0].astype(float), prints[4][None])[0]
    assert next(p for p in pairs if p["id"] == "a")["distance"] == pytest.approx(expected, abs=1e-4)


def test_content_hash_tells_voxels_and_geometry_apart():
    hu = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    assert content_hash(hu, (1, 1, 1)) == content_hash(hu.copy(), (1.0, 1.0000001, 1.0))
    others = {
        content_hash(hu + 1, (1, 1, 1)),
        content_hash(hu, (1, 1, 2)),
        content_hash(hu.reshape(4, 3, 5), (1, 1, 1)),
    }
    assert len(others | {content_hash(hu, (1, 1, 1))}) == 4


@pytest.mark.parametrize(("n", "m", "c"), [(200, 300, 6), (40, 30, 100), (300, 5, 20)])
def test_frechet_distance_against_scipy(n, m, c):
    rng = np.random.default_rng(n)
    mixing = rng.normal(size=(c, c))
    one, other = rng.normal(size=(n, c)) @ mixing, rng.normal(size=(m, c)) * 1.7 + 0.4
    first, second = np.cov(one.T), np.cov(other.T)
    middle = np.real(np.trace(scipy.linalg.sqrtm(first @ second + 1e-10 * np.eye(c))))
    squared = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * middle
    assert frechet_distance(one, other) == pytest.approx(np.sqrt(squared), rel=2e-3)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(one, one + 3) == pytest.approx(3 * np.sqrt(c), rel=1e-6)  # the same shape, moved


def test_comparison_of_like_and_unlike_sets():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(400, 8)).astype(np.float32)
    same = compare_features(reference, rng.normal(size=(300, 8)).astype(np.float32))
    assert same["frechet_ratio"] == pytest.approx(1, abs=0.25)
    assert same["beyond_95"] == pytest.approx(0.05, abs=0.04) and 35 < same["nearest_percentile"]["median"] < 65
    moved = rng.normal(size=(50, 8)).astype(np.float32) + 4
    far = compare_features(reference, moved, ids=[f"m{i}" for i in range(50)])
    assert far["beyond_95"] == 1 and far["frechet_ratio"] > 5
    distances, _ = NearestNeighbors(n_neighbors=1).fit(reference).kneighbors(moved)
    farthest = int(distances[:, 0].argmax())
    assert far["farthest"][0]["id"] == f"m{farthest}"
    assert far["farthest"][0]["distance"] == pytest.approx(float(distances.max()), rel=1e-4)
    with pytest.raises(StoreError, match="at least 5 scans"):
        compare_features(reference, moved[:3])


@pytest.fixture(scope="module")
def scans(tmp_path_factory, phantoms):
    """Four phantoms, two of them also with noise of their own (near-duplicates), and a mask among them."""
    folder = tmp_path_factory.mktemp("scans") / "scans"
    for seed, phantom in enumerate(phantoms):
        write_nifti(phantom.volume, folder / f"p{seed}.nii.gz")
    for seed in (0, 1):
        noise = np.random.default_rng(seed).normal(0, 9, phantoms[seed].volume.hu.shape)
        hu = (phantoms[seed].volume.hu + np.rint(noise)).astype(np.int16)
        write_nifti(Volume.from_array(hu, spacing=(9.0, 1.6, 1.6)), folder / f"q{seed}.nii.gz")
    write_nifti(Volume.from_array(np.eye(9, dtype=np.int16)[None], spacing=(1, 1, 1)), folder / "mask.nii.gz")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, scans):
    out = tmp_path_factory.mktemp("prepared") / "chests"
    prepare(scans, out, workers=1, license="cc-by-4.0", describe=True)
    return out


def test_description_of_a_prepared_data_set(prepared):
    facts = json.loads((prepared / "description.json").read_text())
    assert facts["scans"] == 6 and facts["failures"] == 1 and facts["exact_duplicates"] == 0
    assert facts["original_spacing_mm"]["z"]["median"] == 9.0 and facts["spacing_mm"]["x"]["median"] == pytest.approx(
        1.6, abs=0.01
    )
    assert facts["region"] == {"chest": 6} and sum(facts["contrast"].values()) == 6
    pairs = [{pair["id"], pair["other"]} for pair in facts["near_duplicates"]]
    assert all(pair in pairs for pair in ({"p0.nii.gz", "q0.nii.gz"}, {"p1.nii.gz", "q1.nii.gz"})) and len(pairs) == 2
    shapes = [row for file in prepared.rglob("*.parquet") for row in pq.read_table(file)["shape"].to_pylist()]
    assert facts["voxels"] == sum(int(np.prod(shape)) for shape in shapes)
    table = [row["bone"] for file in prepared.rglob("*.parquet") for row in pq.read_table(file)["facts"].to_pylist()]
    assert facts["tissue_fractions"]["bone"]["median"] == pytest.approx(np.median(table), abs=1e-4)


def test_the_contact_sheet_says_how_many_scans_it_shows_and_where_right_is(prepared, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure) or path)
    for most, title in ((4, "4 of 6 scans"), (24, "6 of 6 scans")):
        pictures.save_contact_sheet(prepared, tmp_path / "scans.png", most=most)
        assert drawn[-1].get_suptitle() == title
    axial, coronal = drawn[-1].axes[0], drawn[-1].axes[6]
    for axis, letters in ((axial, "RLAP"), (coronal, "RLHF")):
        assert "".join(text.get_text() for text in axis.texts) == letters
        places = [text.get_position() for text in axis.texts]
        assert places[0][0] < 0.5 < places[1][0] and places[3][1] < 0.5 < places[2][1]


def test_card_says_what_the_numbers_say_and_loads(prepared):
    card = DatasetCard.load(prepared / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.size_categories == ["n<1K"]
    assert "6 CT scans" in card.text and "| chest | 6 |" in card.text and "2 pairs of scans look alike" in card.text
    assert "could not be used: 1" in card.text and "{{" not in card.text
    for line in card.text.splitlines():
        if line.startswith("!["):
            with Image.open(prepared / line[4:-1]) as picture:
                assert min(picture.size) > 300 and np.asarray(picture.convert("L")).std() > 10
    assert card.text.count("![](pictures/") == 2
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names: dict = {}
    exec(code.replace("THIS_FOLDER_OR_REPOSITORY", str(prepared)), names)
    assert names["hu"].shape == tuple(names["scan"]["shape"])
    # Again, without a license and after the owner wrote something: both stay.
    text = (prepared / "README.md").read_text()
    mark = "is kept -->"
    (prepared / "README.md").write_text(text.replace(mark, f"{mark}\nFrom hospital {{{{ X }}}}, cite Y.", 1))
    for _ in range(2):
        describe(prepared)
        card = DatasetCard.load(prepared / "README.md")
        assert card.data.license == "cc-by-4.0" and card.text.count("From hospital {{ X }}, cite Y.\n") == 1


def test_card_counts_one_pair_as_one(prepared, tmp_path):
    facts = json.loads((prepared / "description.json").read_text())
    card = write_card(tmp_path, {**facts, "near_duplicates_count": 1}, []).read_text()
    assert "1 pair of scans looks alike" in card


def test_description_of_scans_that_were_not_prepared(scans, tmp_path):
    calls = []
    failed: dict[str, str] = {}
    facts = describe(scans, out=tmp_path / "about", progress=lambda *a: calls.append(a), on_failure=failed.__setitem__)
    assert facts["failures"] == 1 and read_failures(tmp_path / "about") == failed and len(failed) == 1
    assert facts["scans"] == 6 and facts["region"] == {"chest": 6} and calls[-1] == (7, 7)
    assert (tmp_path / "about" / "pictures" / "distributions.png").stat().st_size > 10_000
    text = (tmp_path / "about" / "README.md").read_text()
    assert "prepared" not in text.split("## Geometry")[0].lower() and "configs" not in text
    with pytest.raises(StoreError, match="name a folder for the description"):
        describe(scans)
    with pytest.raises(StoreError, match="no such file or folder"):
        describe(tmp_path / "nowhere", out=tmp_path / "x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.nii").write_bytes(b"not a scan")
    with pytest.raises(StoreError, match=r"none of 1 scans could be read, see .*failures.csv; first: .*bad.nii"):
        describe(tmp_path / "bad", out=tmp_path / "y")


def test_scans_that_state_no_spacing_or_do_not_look_like_hu_are_described_on_request(tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(5):
        values = np.random.default_rng(number).integers(0, 200, (20, 24, 28)).astype(np.int16)
        np.save(tmp_path / "scans" / f"{number}.npy", values)
    words = ["describe", str(tmp_path / "scans"), "--out", str(tmp_path / "about"), "--spacing", "2.5,1,1"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, StoreError) and "--assume-hu" in str(result.exception)
    result = CliRunner().invoke(app, [*words, "--assume-hu"])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "about" / "description.json").read_text())
    assert facts["scans"] == 5 and facts["original_spacing_mm"]["z"]["median"] == 2.5
    result = CliRunner().invoke(app, [*words, "--against", str(tmp_path / "scans")])
    assert isinstance(result.exception, StoreError) and "--assume-hu" in str(result.exception)
    result = CliRunner().invoke(app, [*words, "--assume-hu", "--against", str(tmp_path / "scans")])
    assert result.exit_code == 0, result.output
    distance = json.loads((tmp_path / "about" / "description.json").read_text())["distance"]
    assert (distance["scans"], distance["reference_scans"]) == (5, 5) and distance["frechet_ratio"] <= 1


def make_store(folder, features: np.ndarray, weight_hash: str, slice_mm: float = 5.0):
    rows = [
        {
            "id": f"s{i}",
            "source": f"s{i}.nii",
            "cls": feature.tolist(),
            "grid": [4, 4, 4],
            "spacing_mm": [slice_mm, 0.7, 0.7],
            "effective_spacing_mm": [1.5, 1.5, 1.5],
            "field_of_view_mm": [300.0, 350.0, 350.0],
            "notes": [f"slice {i} is missing"],
        }
        for i, feature in enumerate(features)
    ]
    StoreWriter(folder, {"model": "m", "weight_hash": weight_hash}).add(rows)
    return folder


def test_feature_stores_are_described_and_compared(tmp_path):
    rng = np.random.default_rng(0)
    reference = make_store(tmp_path / "reference", rng.normal(size=(60, 6)), "w1")
    mine = make_store(tmp_path / "mine", rng.normal(size=(20, 6)) + 5, "w1")
    facts = describe(mine, out=tmp_path / "about", against=reference)
    assert facts["scans"] == 20 and facts["original_spacing_mm"]["z"]["max"] == 5.0
    assert facts["notes"] == {"slice N is missing": 20}
    assert facts["distance"]["beyond_95"] == 1 and facts["distance"]["against"] == "reference"
    assert "100 % of the scans lie farther" in (tmp_path / "about" / "README.md").read_text()
    other = make_store(tmp_path / "other", rng.normal(size=(20, 6)), "w2")
    with pytest.raises(StoreError, match="different weights"):
        describe(other, out=tmp_path / "about", against=reference)


def test_a_comparison_is_a_short_table_and_drawn_over_the_distributions(tmp_path):
    rng = np.random.default_rng(0)
    mine = make_store(tmp_path / "mine", rng.normal(size=(20, 6)), "w1")
    words = ["describe", str(mine), "--out"]
    pictures = []
    for name, offset in (("like", 0), ("unlike", 30)):
        others = make_store(tmp_path / name, rng.normal(size=(30, 6)) + offset, "w1", slice_mm=5.0 + offset)
        result = CliRunner().invoke(app, [*words, str(tmp_path / f"to {name}"), "--against", str(others)])
        assert result.exit_code == 0, result.output
        lines = result.output.splitlines()
        assert len(lines) < 12 and "{" not in result.output and f"20 scans against 30 of {name}" in result.output
        distance = json.loads((tmp_path / f"to {name}" / "description.json").read_text())["distance"]
        assert next(line for line in lines if "ratio" in line).split()[-1] == f"{distance['frechet_ratio']:.2f}"
        assert distance["farthest"][0]["id"] in result.output
        pictures.append((tmp_path / f"to {name}" / "pictures" / "distributions.png").read_bytes())
    assert CliRunner().invoke(app, [*words, str(tmp_path / "alone")]).exit_code == 0
    pictures.append((tmp_path / "alone" / "pictures" / "distributions.png").read_bytes())
    assert len(set(pictures)) == 3


def test_what_cannot_be_compared_is_refused_before_any_scan_is_read(scans, tmp_path):
    few = make_store(tmp_path / "few", np.zeros((3, 6)), "w1")
    other = make_store(tmp_path / "other", np.zeros((9, 6)), "another")
    read = []
    for against, most, reason in ((few, 500, "got 3 and 7"), (scans, 4, "got 4 and 4"), (other, 500, "weights")):
        with pytest.raises(StoreError, match=reason):
            describe(
                scans,
                out=tmp_path / "about",
                against=against,
                model="tiny",
                max_scans=most,
                progress=lambda *counts: read.append(counts),
            )
    assert not read and not (tmp_path / "about").exists()


def test_distance_between_data_sets_with_a_model(prepared, scans, tmp_path):
    """The same scans, prepared and raw, lie on top of each other in the features of any model."""
    config = VoxelFMConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, patch_size=14)
    VoxelFMModel(config).save_pretrained(tmp_path / "model")
    VoxelFMImageProcessor(max_patches=60).save_pretrained(tmp_path / "model")
    facts = describe(prepared, out=tmp_path / "about", against=scans, model=tmp_path / "model")
    distance = facts["distance"]
    assert (distance["scans"], distance["reference_scans"]) == (6, 6) and distance["beyond_95"] == 0
    assert max(entry["distance"] for entry in distance["farthest"]) < 1e-3
    with pytest.raises(StoreError, match="a model is needed"):
        describe(prepared, out=tmp_path / "about", against=scans)
