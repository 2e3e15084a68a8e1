"""The processor against the published stages, dense counts, torch's interpolation, and ugly inputs."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from voxelfm_hf.modeling.background_voxelfm import background_box
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.resampling_voxelfm import budget_size, isotropic_size


@pytest.fixture(scope="module")
def stages(parity):
    return load_file(parity / "preprocessing" / "stages.safetensors")


@pytest.fixture(scope="module")
def cases(parity):
    return json.loads((parity / "preprocessing" / "cases.json").read_text())


def dense_box(hu, threshold, kernel):
    mask = torch.from_numpy((hu > threshold).astype(np.float64))[None, None]
    count = torch.nn.functional.conv3d(mask, torch.ones(1, 1, kernel, kernel, kernel).double(), padding=kernel // 2)
    inside = np.argwhere(count[0, 0].numpy() > kernel**3 / 2)
    if not len(inside):
        return None
    half = kernel // 2
    lows, highs = inside.min(0) - half, inside.max(0) + half + 1
    return [(max(0, low), min(n, high)) for low, high, n in zip(lows, highs, hu.shape, strict=True)]


def test_background_box_equals_published_boxes(parity, stages, cases):
    for case in json.loads((parity / "preprocessing" / "crop_boxes.json").read_text()):
        z, y, x = np.meshgrid(*(np.arange(n) for n in case["shape"]), indexing="ij")
        squares = [((a - c) / r) ** 2 for a, c, r in zip((z, y, x), case["centre"], case["radii"], strict=True)]
        share = (73856093 * z + 19349663 * y + 83492791 * x) % 1009 % 1000 < case["share"]
        hu = np.where((sum(squares) < 1) & share, 40, -1000).astype(np.int16)
        for kernel, box in case["box"].items():
            found = background_box(hu, kernel=int(kernel))
            assert (None if found is None else [list(side) for side in found]) == box
    for name, case in cases.items():
        for kernel, box in case["crop_box"].items():
            found = background_box(stages[f"input.{name}"], kernel=int(kernel))
            assert (None if found is None else [list(side) for side in found]) == box


@pytest.mark.parametrize("seed", range(12))
def test_background_box_equals_dense_count(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(3, 34, 3)
    # blobs near the threshold of one half, where separable shortcuts would go wrong
    coarse = rng.random(tuple(-(-shape // 5))) < rng.uniform(0.2, 0.8)
    body = np.kron(coarse, np.ones((5, 5, 5)))[: shape[0], : shape[1], : shape[2]] > 0
    hu = np.where(body ^ (rng.random(tuple(shape)) < 0.2), 0, -1000).astype(np.int16)
    for kernel in (1, 3, 7, 13):
        assert background_box(hu, kernel=kernel) == dense_box(hu, -800, kernel)


def test_background_box_refuses_even_kernels():
    with pytest.raises(ValueError, match="odd"):
        background_box(np.zeros((4, 4, 4), np.int16), kernel=4)


def test_sizes_equal_published_sizes(parity):
    for case in json.loads((parity / "preprocessing" / "sizes.json").read_text()):
        isotropic = isotropic_size(case["shape"], case["spacing"])
        assert list(isotropic) == case["isotropic"]
        for patch, budget, resized, final in case["budget"]:
            if min(isotropic) < patch:
                continue
            ours = budget_size(isotropic, patch, budget)
            if 0 in final:  # the published code yields an empty volume here
                assert min(ours) >= patch and np.prod([n // patch for n in ours]) <= budget
            else:
                assert list(ours) == resized


def test_budget_is_kept_and_never_empties_an_axis():
    rng = np.random.default_rng(0)
    for _ in range(300):
        shape = [int(n) for n in rng.integers(14, 900, 3)]
        budget = int(rng.integers(1, 400))
        size = budget_size(shape, 14, budget)
        grid = [n // 14 for n in size]
        exact = (budget / np.prod([n // 14 for n in shape])) ** (1 / 3)
        published_fallback = size == tuple(int(n * exact * 0.95) for n in shape)
        assert min(grid) >= 1 and (np.prod(grid) <= budget or published_fallback)
    assert budget_size((1000, 20, 20), 14, 10)[1:] == (14, 14)
    assert budget_size((20, 20, 20), 14, 1) == (20, 20, 20)


def test_stages_equal_published_stages(stages, cases):
    checked = 0
    for name, expected in stages.items():
        _, volume, *stage = name.split(".")
        if "clip_first" not in stage or not stage[-1].startswith("normalised"):
            continue
        budget = int(stage[1].removeprefix("budget"))
        processor = VoxelFMImageProcessor(patch_size=cases[volume]["patch_size"], max_patches=budget)
        out = processor(stages[f"input.{volume}"], spacing=cases[volume]["spacing"])["pixel_values"]
        np.testing.assert_allclose(out[0, 0].numpy(), expected, atol=1e-4)
        checked += 1
    assert checked == 5


def test_end_to_end_equals_published_features(parity, tmp_path):
    from voxelfm_hf import load
    from voxelfm_hf.convert import convert_checkpoint

    case = parity / "backbone" / "mlp_p14"
    model, processor = load(convert_checkpoint(case / "checkpoint.pth", case / "config.yaml", tmp_path / "model"))
    expected = load_file(parity / "preprocessing" / "end_to_end.safetensors")
    inputs = load_file(parity / "preprocessing" / "stages.safetensors")
    # the published code leaves arrays unclipped; v1 only goes below the range by noise
    unclipped = VoxelFMImageProcessor.from_dict({**processor.to_dict(), "hu_range": [-3000, 3000]})
    runs = [
        (unclipped, inputs["input.v1"], 9, "array"),
        (processor, inputs["input.v3"], 25000, "array_clipped"),
        (processor, np.clip(inputs["input.v3"], -1000, 1900), 25000, "array_clipped"),  # clip first changes nothing
    ]
    for prepare, hu, budget, name in runs:
        prepared = prepare(hu, spacing=(1, 1, 1), crop_background=False, max_patches=budget)
        with torch.no_grad():
            outputs = model(**prepared)
        patches = model.patch_features(outputs, model.patch_grid(prepared["pixel_values"]))[0]
        np.testing.assert_allclose(outputs.pooler_output.numpy(), expected[f"output.{name}.cls"], atol=1e-3)
        np.testing.assert_allclose(patches.numpy(), expected[f"output.{name}.patch"], atol=1e-3)


def test_published_file_gives_published_features(parity, tmp_path):
    import nibabel

    from voxelfm_hf import load
    from voxelfm_hf.convert import convert_checkpoint

    case = parity / "backbone" / "mlp_p14"
    model, processor = load(convert_checkpoint(case / "checkpoint.pth", case / "config.yaml", tmp_path / "model"))
    expected = load_file(parity / "preprocessing" / "end_to_end.safetensors")
    image = nibabel.load(parity / "preprocessing" / "files" / "v3.nii.gz")
    # the published loader takes the array in file order, whatever its orientation
    hu = np.asarray(image.dataobj).transpose(2, 1, 0)
    spacing = image.header.get_zooms()[::-1]
    prepared = processor(hu, spacing=spacing, max_patches=20)
    volume = prepared["pixel_values"][0, 0].numpy() * processor.image_std + processor.image_mean
    np.testing.assert_allclose(volume, expected["output.nifti.volume"], atol=5e-3)
    with torch.no_grad():
        np.testing.assert_allclose(model(**prepared).pooler_output.numpy(), expected["output.nifti.cls"], atol=1e-3)


def test_resampling_equals_torch_interpolate():
    rng = np.random.default_rng(1)
    hu = rng.integers(-1000, 1900, (19, 40, 33)).astype(np.int16)
    processor = VoxelFMImageProcessor(patch_size=4, max_patches=150, crop_background=False)
    values, geometry = processor(hu, spacing=(3.0, 0.9, 0.9), return_geometry=True).values()
    step = torch.from_numpy(hu).double()[None, None]
    size = isotropic_size(hu.shape, (3.0, 0.9, 0.9))
    for shape in (size, budget_size(size, 4, 150)):
        step = torch.nn.functional.interpolate(step, shape, mode="trilinear", align_corners=False)
    offsets = [n % 4 // 2 for n in step.shape[2:]]
    kept = [n * 4 for n in geometry[0].grid]
    expected = step[0, 0][tuple(slice(o, o + k) for o, k in zip(offsets, kept, strict=True))]
    np.testing.assert_allclose(values[0, 0].numpy(), (expected.numpy() + 573.8) / 461.3, atol=1e-4)


def test_constant_volume_stays_constant_through_all_stages():
    hu = np.full((12, 50, 61), 40, np.int16)
    out = VoxelFMImageProcessor(patch_size=8, max_patches=30)(hu, spacing=(2.5, 0.8, 0.8))["pixel_values"]
    np.testing.assert_allclose(out.numpy(), (40 + 573.8) / 461.3, atol=1e-5)


def test_geometry_maps_patches_to_the_voxels_they_show():
    # a ramp along each axis: the mean of a prepared patch is the ramp's value at the patch's centre
    axes = np.meshgrid(np.arange(30), np.arange(64), np.arange(50), indexing="ij")
    for axis in range(3):
        hu = (axes[axis] * 10).astype(np.float32)
        processor = VoxelFMImageProcessor(patch_size=4, max_patches=300, crop_background=False)
        values, geometry = processor(hu, spacing=(2.0, 1.0, 1.25), return_geometry=True).values()
        d, h, w = geometry[0].grid
        means = (values[0, 0] * 461.3 - 573.8).reshape(d, 4, h, 4, w, 4).mean((1, 3, 5)).numpy()
        centres = geometry[0].patch_centres()[..., axis]
        inner = tuple(slice(1, -1) for _ in range(3))  # border patches see the edge's replication
        np.testing.assert_allclose(means[inner], 10 * centres[inner], atol=0.2)
        voxels = geometry[0].region_stop[axis] - geometry[0].region_start[axis]
        extent = geometry[0].grid[axis] * 4 * geometry[0].spacing_mm[axis]
        assert extent == pytest.approx(voxels * (2.0, 1.0, 1.25)[axis])


def test_background_is_cropped_and_reported():
    hu = np.full((40, 80, 80), -1000, np.int16)
    hu[5:35, 20:60, 10:50] = 20
    processor = VoxelFMImageProcessor(patch_size=4, background_kernel=3)
    _, geometry = processor(hu, spacing=(1, 1, 1), return_geometry=True).values()
    np.testing.assert_allclose(geometry[0].region_start, (4, 19, 9), atol=2)
    np.testing.assert_allclose(geometry[0].region_stop, (36, 61, 51), atol=2)
    whole = processor(hu, spacing=(1, 1, 1), crop_background=False)["pixel_values"]
    assert whole.shape == (1, 1, 40, 80, 80)


def test_air_only_volume_is_kept_whole_with_a_note():
    hu = np.full((16, 16, 16), -1000, np.int16)
    values, geometry = VoxelFMImageProcessor(patch_size=8)(hu, spacing=(1, 1, 1), return_geometry=True).values()
    assert values.shape == (1, 1, 16, 16, 16)
    assert "no body" in geometry[0].notes[0]


def test_thin_volume_is_refused_or_padded_symmetrically():
    hu = np.arange(3)[:, None, None] * np.ones((3, 32, 32)) * 100
    processor = VoxelFMImageProcessor(patch_size=8, crop_background=False)
    with pytest.raises(ValueError, match="--pad"):
        processor(hu, spacing=(1, 1, 1))
    values, geometry = processor(hu, spacing=(1, 1, 1), pad_thin=True, return_geometry=True).values()
    profile = (values[0, 0, :, 0, 0] * 461.3 - 573.8).round().tolist()
    assert profile == [0, 0, 0, 100, 200, 200, 200, 200]
    assert (geometry[0].region_start[0], geometry[0].region_stop[0]) == (-2, 6)


def test_batches_of_equal_and_unequal_shapes():
    processor = VoxelFMImageProcessor(patch_size=8, crop_background=False)
    small, large = np.zeros((16, 16, 16), np.int16), np.zeros((24, 16, 16), np.int16)
    assert processor([small, small], spacing=(1, 1, 1))["pixel_values"].shape == (2, 1, 16, 16, 16)
    assert processor(np.stack([small, small]), spacing=(1, 1, 1))["pixel_values"].shape == (2, 1, 16, 16, 16)
    unequal = processor([small, large], spacing=[(1, 1, 1), (2, 1, 1)])["pixel_values"]
    assert [tuple(v.shape) for v in unequal] == [(1, 16, 16, 16), (1, 48, 16, 16)]
    assert isinstance(processor(small, spacing=(1, 1, 1), return_tensors="np")["pixel_values"], np.ndarray)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint16, np.int64, np.float32, np.float64, ">i2"])
def test_dtypes_tensors_and_memory_layouts_agree(kind):
    rng = np.random.default_rng(2)
    hu = rng.integers(0, 1500, (20, 30, 26))
    processor = VoxelFMImageProcessor(patch_size=4, max_patches=60)
    expected = processor(hu.astype(np.int16), spacing=(2, 1, 1))["pixel_values"]
    forms = [hu.astype(kind), np.asfortranarray(hu.astype(kind)), hu[::-1].astype(kind)[::-1], hu.astype(kind)[None]]
    if kind in (np.int16, np.float32):
        forms.append(torch.from_numpy(hu.astype(kind)))
    for form in forms:
        assert torch.equal(processor(form, spacing=(2, 1, 1))["pixel_values"], expected)


@pytest.mark.parametrize(
    ("volume", "spacing", "message"),
    [
        (np.zeros((8, 8)), (1, 1, 1), "D, H, W"),
        (np.zeros((0, 8, 8)), (1, 1, 1), "at least one voxel"),
        (np.zeros((8, 8, 8), bool), (1, 1, 1), "integers or floats"),
        (np.full((8, 8, 8), np.nan), (1, 1, 1), "512 NaN"),
        (np.zeros((8, 8, 8)), None, "spacing="),
        (np.zeros((8, 8, 8)), (1, 1), "three positive"),
        (np.zeros((8, 8, 8)), (1, 0, 1), "three positive"),
        (np.zeros((8, 8, 8)), (1, 1, float("inf")), "three positive"),
        (np.zeros((8, 8, 8)), (1, 1, 5000), "larger than any CT"),
        ([], (1, 1, 1), "no volume"),
        ([np.zeros((8, 8, 8))] * 2, [(1, 1, 1)] * 3, "3 spacings"),
    ],
)
def test_bad_volumes_are_refused_with_the_reason(volume, spacing, message):
    with pytest.raises(ValueError, match=message):
        VoxelFMImageProcessor(patch_size=8, crop_background=False)(volume, spacing=spacing)


def test_save_load_round_trip_keeps_every_setting(tmp_path):
    processor = VoxelFMImageProcessor(hu_range=(-900, 1000), image_mean=1.5, patch_size=7, max_patches=9, pad_thin=True)
    processor.save_pretrained(tmp_path)
    again = VoxelFMImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert VoxelFMImageProcessor.from_pretrained(tmp_path, max_patches=5).max_patches == 5


class Scan:
    """The least a region needs: voxels, spacing and an affine."""

    def __init__(self, hu, spacing, origin=(0.0, 0.0, 0.0)):
        self.hu, self.spacing = hu, spacing
        self.affine = np.array(
            [[0, 0, spacing[2], origin[0]], [0, spacing[1], 0, origin[1]], [spacing[0], 0, 0, origin[2]], [0, 0, 0, 1]]
        )


def test_region_equals_simpleitk_resampling():
    import SimpleITK

    rng = np.random.default_rng(3)
    scan = Scan(rng.integers(-900, 1500, (14, 40, 36)).astype(np.int16), (2.5, 0.8, 0.7), origin=(-10.0, 20.0, 100.0))
    processor = VoxelFMImageProcessor(patch_size=4)
    centre, edge, size = (3.1, 35.3, 116.2), 14.0, 16
    values, geometry = processor.prepare_region(scan, centre, edge, size)
    image = SimpleITK.GetImageFromArray(scan.hu.astype(np.float64))
    image.SetSpacing(scan.spacing[::-1])
    image.SetOrigin((-10.0, 20.0, 100.0))
    corner = [c - edge / 2 + edge / size / 2 for c in centre]
    expected = SimpleITK.Resample(
        image,
        [size] * 3,
        SimpleITK.Transform(),
        SimpleITK.sitkLinear,
        corner,
        [edge / size] * 3,
        [1, 0, 0, 0, 1, 0, 0, 0, 1],
    )
    hu = values[0].numpy() * 461.3 - 573.8
    np.testing.assert_allclose(hu, SimpleITK.GetArrayFromImage(expected), atol=1e-2)
    assert geometry.grid == (4, 4, 4) and geometry.spacing_mm == pytest.approx((0.875,) * 3) and geometry.notes == ()
    middle = geometry.patch_centres().mean((0, 1, 2))
    np.testing.assert_allclose((scan.affine @ [*middle, 1])[:3], centre, atol=1e-6)


def test_region_partly_outside_repeats_the_edge_and_says_so():
    scan = Scan((np.arange(10)[:, None, None] * np.ones((10, 30, 30)) * 10).astype(np.int16), (1.0, 1.0, 1.0))
    processor = VoxelFMImageProcessor(patch_size=4)
    values, geometry = processor.prepare_region(scan, (15, 15, 9.5), 8, 8)
    profile = values[0, :, 0, 0].numpy() * 461.3 - 573.8
    np.testing.assert_allclose(profile, [60, 70, 80, 90, 90, 90, 90, 90], atol=1e-2)
    assert "50%" in geometry.notes[0]


@pytest.mark.parametrize(
    ("centre", "edge", "size", "message"),
    [((15, 15, 99), 8, 8, "outside the scan"), ((15, 15, 5), 0, 8, "positive"), ((15, 15, 5), 8, 9, "multiple")],
)
def test_impossible_regions_are_refused(centre, edge, size, message):
    scan = Scan(np.zeros((10, 30, 30), np.int16), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=message):
        VoxelFMImageProcessor(patch_size=4).prepare_region(scan, centre, edge, size)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0)])
def test_the_array_given_is_left_as_it_was(spacing):
    """float32 in C order could be worked on in place, with and without resampling."""
    hu = np.random.default_rng(0).normal(0, 900, (24, 32, 32)).astype(np.float32)
    before = hu.copy()
    for crop_background in (True, False):
        VoxelFMImageProcessor(patch_size=8, crop_background=crop_background)(hu, spacing=spacing)
    np.testing.assert_array_equal(hu, before)
