import sys
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.encoders import EncoderSetup, encoder_names, make_encoder
from voxelfm_hf.eval.encoders.cubes import fixed_cube
from voxelfm_hf.eval.encoders.intensity import patch_statistics
from voxelfm_hf.eval.encoders.peer import loaded
from voxelfm_hf.eval.encoders.texture import central_component, cooccurrence, haralick, shape
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.features import Task
from voxelfm_hf.scan_list import Region, Scan
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import ModelError, RecipeError, StoreError

PEERS = ("ct_clip", "merlin", "m3d", "radfm", "spectre", "colipri")
# The bright spot of every scan, LPS mm; written scans are 64 x 64 x 32 voxels of 1 x 1 x 2 mm from (0, 0, 0).
SPOT_LPS = (44.0, 20.0, 46.0)


def write_scan(path, seed):
    """A soft-tissue block with noise and a spot of 300 HU, as NIfTI in RAS order."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(40, 10, size=(32, 64, 64)).astype(np.int16)  # z, y, x
    z, y, x = round(SPOT_LPS[2] / 2), round(SPOT_LPS[1]), round(SPOT_LPS[0])
    hu[z - 2 : z + 2, y - 3 : y + 4, x - 3 : x + 4] = 300 + 10 * seed
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), affine), path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    tasks = []
    for seed in range(3):
        write_scan(folder / f"{seed}.nii.gz", seed)
        regions = (Region(f"spot{seed}", SPOT_LPS, 24.0),) if seed == 2 else ()
        tasks.append(Task(Scan(f"scan{seed}", folder / f"{seed}.nii.gz", named=True), regions))
    ids = ["scan0", "scan1", "spot2"]
    labels = LabelTable("labels.csv", ids, {"patient_id": [0, 1, 2], "size": [4.0, None, 9.0]})
    return BenchmarkData(tasks, labels, folder, baselines={"size": ("size",)})


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return EncoderSetup(tmp_path_factory.mktemp("work"), model="tiny", region_size=24, max_patches=200)


@pytest.mark.parametrize("kind", ["intensity", "radiomics", "spacing", "voxelfm", "untrained"])
def test_an_encoder_fills_an_ordinary_store_once(kind, data, setup, tmp_path):
    encoder = make_encoder(kind, setup)
    assert encoder.preprocessing and encoder.fingerprint and encoder.is_baseline == (kind != "voxelfm")
    done = []
    summary = encoder.fill(data, tmp_path / "store", patches=True, on_scan=done.append)
    assert (summary.added, summary.failures) == (3, {})
    store = FeatureStore(tmp_path / "store")
    assert sorted(store.ids) == ["scan0", "scan1", "spot2"]
    assert np.isfinite(store.cls).all() and store.run["patches"] == encoder.gives_patches
    again = make_encoder(kind, setup).fill(data, tmp_path / "store", patches=True)
    assert (again.added, again.present) == (0, 3)
    if encoder.gives_patches:
        row = store.ids.index("spot2")
        assert list(store.patches("spot2").shape[:3]) == store.table["grid"].to_pylist()[row] == [3, 3, 3]
        assert store.patches("spot2").shape[3] % 4 == 0  # what heads with attention need


def test_patches_lie_where_the_affine_says(data, setup, tmp_path):
    make_encoder("intensity", setup).fill(data, tmp_path / "store", patches=True)
    store = FeatureStore(tmp_path / "store")
    for identifier in ("scan0", "spot2"):
        row = store.ids.index(identifier)
        brightest = np.argwhere(store.patches(identifier)[..., 3] == store.patches(identifier)[..., 3].max())
        affine = np.reshape(store.table["patch_affine"].to_pylist()[row], (4, 4))
        centres = brightest @ affine[:3, :3].T + affine[:3, 3]
        patch_mm = np.abs(affine[:3, :3]).max()
        assert np.abs(centres - SPOT_LPS).max(axis=1).min() <= patch_mm / 2 + 2.0


def test_other_settings_are_refused_by_a_store(data, setup, tmp_path):
    make_encoder("intensity", setup).fill(data, tmp_path / "store")
    other = EncoderSetup(setup.work, model="tiny", region_size=32, max_patches=200)
    with pytest.raises(StoreError, match="other settings"):
        make_encoder("intensity", other).fill(data, tmp_path / "store")


def test_a_damaged_scan_is_one_failure(data, setup, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    tasks = [*data.tasks, Task(Scan("broken", broken, named=True))]
    more = BenchmarkData(tasks, data.labels, data.folder)
    summary = make_encoder("spacing", setup).fill(more, tmp_path / "store")
    assert summary.added == 3 and list(summary.failures) == ["broken"]
    assert "broken" in summary.failures["broken"]
    assert FeatureStore(tmp_path / "store").failures() == summary.failures


def test_columns_flag_what_is_missing(data, setup, tmp_path):
    encoder = make_encoder("columns", setup, {"columns": ["size"]})
    assert encoder.fill(data, tmp_path / "store").added == 3
    store = FeatureStore(tmp_path / "store")
    found = {name: vector.tolist() for name, vector in zip(store.ids, store.cls, strict=True)}
    assert found["scan0"] == pytest.approx([4.0, np.log(4.0), 1.0])
    assert found["scan1"] == [0.0, 0.0, 0.0]


def test_untrained_weights_follow_the_seed(setup):
    one, two = (make_encoder("untrained", EncoderSetup(setup.work, model="tiny", seed=seed)) for seed in (0, 1))
    again = make_encoder("untrained", EncoderSetup(setup.work, model="tiny", seed=0))
    assert one.fingerprint != two.fingerprint and one.fingerprint == again.fingerprint and one.seeded


def test_unknown_names_and_options_are_sentences(setup):
    with pytest.raises(RecipeError, match="choose one of"):
        make_encoder("resnet", setup)
    with pytest.raises(RecipeError, match="no option slices"):
        make_encoder("spacing", setup, {"slices": 3})


def test_intensity_of_patches_matches_a_loop():
    hu = np.random.default_rng(0).normal(0, 300, size=(8, 8, 16)).astype(np.float32)
    found = patch_statistics(hu, 4)
    assert found.shape == (2, 2, 4, 16)
    block = hu[4:8, 0:4, 8:12] / 1000
    expected = [block.mean(), block.std(), block.min(), block.max(), *np.percentile(block, (25, 50, 75))]
    assert found[1, 0, 2, :7] == pytest.approx(expected, abs=1e-5)
    assert found[..., 10:].sum(-1) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("offset", [(0, 0, 1), (1, -1, 0), (-1, 1, 1)])
def test_cooccurrence_matches_a_loop(offset):
    levels = np.random.default_rng(1).integers(0, 4, size=(4, 5, 6))
    expected = np.zeros((4, 4))
    for place in np.ndindex(levels.shape):
        other = tuple(np.add(place, offset))
        if all(0 <= o < n for o, n in zip(other, levels.shape, strict=True)):
            expected[levels[place], levels[other]] += 1
            expected[levels[other], levels[place]] += 1
    assert cooccurrence(levels, offset, count=4) == pytest.approx(expected / expected.sum())


def test_haralick_in_closed_form():
    stripes = np.array([[0.0, 0.5], [0.5, 0.0]])  # neighbours always differ by one level
    assert haralick(stripes) == pytest.approx([1, 1, 0.5, 0.5, 1, -1])
    assert haralick(np.array([[1.0, 0.0], [0.0, 0.0]])) == pytest.approx([0, 0, 1, 1, 0, 0])


def test_shape_of_a_box_and_a_ball():
    box = np.zeros((20, 20, 20), dtype=bool)
    box[2:6, 2:12, 2:12] = True
    found = shape(box, (2.0, 1.0, 1.0))  # 8 x 10 x 10 mm
    assert found[0] == pytest.approx((6 * 800 / np.pi) ** (1 / 3))
    assert found[1] == pytest.approx(2 * (80 + 80 + 100))
    places = np.stack(np.meshgrid(*[np.arange(31) - 15.0] * 3, indexing="ij"))
    ball = (places**2).sum(0) <= 12**2
    found = shape(ball, (1.0, 1.0, 1.0))
    assert found[0] == pytest.approx(24, rel=0.02)
    assert found[3:6] == pytest.approx([12 / np.sqrt(5)] * 3, rel=0.02)  # spread of a solid ball
    assert (shape(np.zeros((3, 3, 3), dtype=bool), (1, 1, 1)) == 0).all()


def test_the_central_component_is_the_nearest_one():
    mask = np.zeros((9, 9, 9), dtype=bool)
    mask[0:2, 0:2, 0:2] = True
    mask[4, 4, 6:8] = True
    found = central_component(mask)
    assert found.sum() == 2 and found[4, 4, 6]


def test_a_fixed_grid_samples_like_scipy():
    hu = ndimage.gaussian_filter(np.random.default_rng(2).normal(0, 800, size=(12, 20, 16)), 1).astype(np.float32)
    volume = Volume.from_array(hu, spacing=(3.0, 1.0, 2.0))
    cube = fixed_cube(volume, None, shape=(4, 6, 5), spacing_mm=(4.0, 2.0, 3.0))
    steps = [np.arange(n) - (n - 1) / 2 for n in (4, 6, 5)]
    places = np.meshgrid(*(s * mm for s, mm in zip(steps, (4.0, 2.0, 3.0), strict=True)), indexing="ij")
    middle = [(n - 1) / 2 for n in hu.shape]
    index = [m + p / mm for m, p, mm in zip(middle, places, volume.spacing, strict=True)]
    assert cube.hu == pytest.approx(ndimage.map_coordinates(hu, index, order=1), abs=0.1)
    far = fixed_cube(volume, None, shape=(4, 60, 5), spacing_mm=(4.0, 2.0, 3.0))
    assert far.hu[:, 0] == pytest.approx(-1000)


def test_a_region_fills_the_fixed_grid(data):
    volume = read_volume(data.tasks[2].scan.path)
    cube = fixed_cube(volume, Region("spot", SPOT_LPS, 12.0), shape=(8, 8, 8), spacing_mm=(9.0, 9.0, 9.0))
    assert cube.geometry.spacing_mm == pytest.approx((1.5, 1.5, 1.5))
    assert cube.hu[3:5, 3:5, 3:5] == pytest.approx(320, abs=15)


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_a_2d_encoder_slice_by_slice(family, data, setup, tmp_path):
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTImageProcessor, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    if family == "vit":
        model = ViTModel(ViTConfig(intermediate_size=32, **sizes))
        ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path / "model")
    else:
        model = Dinov2Model(Dinov2Config(**sizes))
    model.save_pretrained(tmp_path / "model")
    own = EncoderSetup(setup.work, model=str(tmp_path / "model"), region_size=24, max_patches=200)
    encoder = make_encoder("hub2d", own, {"slices": 6})
    volume, region = read_volume(data.tasks[2].scan.path), data.tasks[2].regions[0]
    seen = []
    encoder.network.register_forward_pre_hook(lambda _, __, given: seen.append(given["pixel_values"]), with_kwargs=True)
    found = encoder.encode(volume, region)
    assert found.cls.shape == (16,) and found.patches.shape == (6, 4, 4, 16)
    assert encoder.mean == ((0.5,) * 3 if family == "vit" else (0.485, 0.456, 0.406))
    pictures = torch.cat(seen)
    assert pictures.shape == (6, 3, 32, 32)
    with torch.inference_mode():
        each = [model.eval()(pixel_values=picture[None]) for picture in pictures]
    assert found.cls == pytest.approx(torch.cat([e.pooler_output for e in each]).mean(0).numpy(), abs=1e-5)
    assert found.patches[4].reshape(16, 16) == pytest.approx(each[4].last_hidden_state[0, 1:].numpy(), abs=1e-5)
    affine = volume.affine @ found.geometry.patch_to_voxel()
    assert affine[:3, :3] @ [2.5, 1.5, 1.5] + affine[:3, 3] == pytest.approx(SPOT_LPS, abs=1e-6)
    with pytest.raises(ModelError, match="vision model"):
        make_encoder("hub2d", EncoderSetup(setup.work, model=str(tmp_path)))


@pytest.mark.parametrize("kind", PEERS)
def test_adapters_are_short(kind):
    import voxelfm_hf.eval.encoders as package

    assert len((Path(package.__file__).parent / f"{kind}.py").read_text().splitlines()) < 40
    assert kind in encoder_names()


@pytest.mark.parametrize("kind", ["ct_clip", "merlin", "radfm", "spectre", "colipri"])
def test_a_missing_package_is_one_sentence(kind, setup, monkeypatch):
    for module in ("transformer_maskgit", "merlin", "Model", "Model.RadFM.vit_3d", "spectre", "colipri"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=f"the encoder {kind} needs the package"):
        make_encoder(kind, setup)


def test_remote_code_has_to_be_allowed(setup):
    with pytest.raises(ModelError, match="trust_remote_code"):
        make_encoder("m3d", setup)


class StandIn(torch.nn.Module):
    """Answers every call that the adapters make, and keeps what it was given."""

    def __init__(self, **sizes):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.given = None

    def forward(self, pixels, return_encoded_tokens=False):
        self.given = pixels
        if return_encoded_tokens:  # CT-ViT: (1, t, h, w, C)
            return torch.arange(24.0).reshape(1, 2, 2, 2, 3)
        if pixels.ndim == 5 and pixels.shape[1] == 3:  # RadFM: tokens and positions
            return torch.arange(8.0).reshape(1, 4, 2), None
        if pixels.ndim == 4:  # SPECTRE: a raw scan
            return torch.arange(6.0).reshape(2, 3)
        return [torch.arange(4.0)[None]]  # Merlin

    def encode_image(self, pixels, pool=False, project=False):
        self.given = pixels
        return torch.arange(5.0)[None] if pool else torch.arange(6.0).reshape(1, 2, 3)


def test_adapters_speak_to_their_networks(setup, data, monkeypatch, tmp_path):
    """Stand-ins with the call signatures of the packages, which are too large to run here."""
    network = StandIn()
    torch.save({f"visual_transformer.{k}": v for k, v in network.state_dict().items()}, tmp_path / "ct_clip.pt")
    vit = {f"embedding_layer.vision_encoder.{k}": v for k, v in network.state_dict().items()}
    torch.save(vit, tmp_path / "radfm.bin")
    fake = types.SimpleNamespace
    spectre = fake(from_pretrained=lambda preset, pretrained: network)
    modules = {
        "transformer_maskgit": fake(CTViT=lambda **sizes: network),
        "merlin": fake(Merlin=lambda ImageEmbedding: network),
        "Model.RadFM.vit_3d": fake(ViT=lambda **sizes: network),
        "spectre": fake(SpectreImageFeatureExtractor=spectre),
        "colipri": fake(get_model=lambda pretrained, image_only: network),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", lambda *args, **kwargs: network)
    asked = []

    def eighth(volume, region, *, shape, spacing_mm):
        asked.append((tuple(shape), tuple(spacing_mm)))
        return fixed_cube(volume, region, shape=[n // 8 for n in shape], spacing_mm=spacing_mm)

    monkeypatch.setattr("voxelfm_hf.eval.encoders.peer.fixed_cube", eighth)
    wanted = {
        "ct_clip": ({"weights": str(tmp_path / "ct_clip.pt")}, (1, 1, 30, 60, 60), 3),
        "merlin": ({}, (1, 1, 28, 28, 20), 4),
        "m3d": ({"trust_remote_code": True}, (1, 1, 4, 32, 32), 3),
        "radfm": ({"weights": str(tmp_path / "radfm.bin")}, (1, 3, 32, 32, 8), 2),
        "spectre": ({}, (1, 8, 8, 4), 3),
        "colipri": ({}, (1, 1, 24, 24, 24), 5),
    }
    volume = read_volume(data.tasks[0].scan.path)
    for kind, (options, input_shape, width) in wanted.items():
        encoder = make_encoder(kind, EncoderSetup(setup.work, model="copy"), options)
        found = encoder.encode(volume, None)
        assert tuple(network.given.shape) == input_shape and found.cls.shape == (width,), kind
    assert asked[0] == ((240, 480, 480), (1.5, 0.75, 0.75)) and asked[1] == ((160, 224, 224), (3.0, 1.5, 1.5))
    assert asked[2] == ((32, 256, 256), (2.0, 0.25, 0.25))  # stretched over the scan
    # SPECTRE gets the scan's own voxels as (x, y, z) in RAS.
    monkeypatch.setattr("voxelfm_hf.eval.encoders.peer.fixed_cube", fixed_cube)
    make_encoder("spectre", setup).encode(volume, None)
    assert network.given[0].numpy() == pytest.approx(volume.hu[:, ::-1, ::-1].transpose(2, 1, 0), abs=0.1)


def test_weights_that_do_not_fit_are_one_sentence(tmp_path):
    with pytest.raises(ModelError, match="needs options.weights"):
        loaded(StandIn(), None, encoder="ct_clip")
    with pytest.raises(ModelError, match="does not exist"):
        loaded(StandIn(), str(tmp_path / "none.pt"), encoder="ct_clip")
    torch.save({"other": torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="does not fit"):
        loaded(StandIn(), str(tmp_path / "w.pt"), encoder="ct_clip")


def test_spectre_on_random_weights(setup, data):
    pytest.importorskip("spectre")
    encoder = make_encoder("spectre", setup, {"preset": "spectre-small", "pretrained": False})
    found = encoder.encode(read_volume(data.tasks[2].scan.path), data.tasks[2].regions[0])
    assert found.cls.ndim == 1 and len(found.cls) >= 192 and np.isfinite(found.cls).all()
