import csv
import json

import numpy as np
import pytest

from tests.eval.small_model import save_small_model
from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.eval.labels import read_labels
from voxelfm_hf.eval.probes.apply import ProbeReader
from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.segmentation import segment
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.scan_list import Region, list_scans
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.settings import ProbeSettings
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import ModelError

QUICK = ProbeSettings(epochs=2, batch_size=2, evaluate_every=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six small volumes, a tiny model with random weights, and the store of both with patches."""
    folder = tmp_path_factory.mktemp("made")
    save_small_model(folder / "model", patch_size=8, max_patches=60)
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir()
    rows = []
    for i in range(6):
        hu = rng.integers(-900, 900, (20, 24, 28)).astype(np.int16)
        np.save(folder / "scans" / f"{i}.npy", hu)
        row = {"id": f"{i}.npy", "split": ("train", "train", "train", "val", "test", "test")[i], "sick": i % 2}
        rows.append(row | {"size": i + 0.5, "time": i + 1, "event": 1, "x": 5.0 + i, "y": 9, "z": 8})
    with open(folder / "labels.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    tasks = [Task(scan) for scan in list_scans([folder / "scans"])]
    options = EmbedOptions(patches=True, spacing=(1.5, 1.0, 1.0), dtype="float32")
    embed_scans(tasks, folder / "model", folder / "store", options)
    return folder


@pytest.fixture
def volume(made):
    return read_volume(made / "scans" / "4.npy", spacing=(1.5, 1.0, 1.0))


def fitted(made, name, fit=None, **options):
    """A probe of a task, saved, and what it predicts for scan 4 from the store."""
    task = load_task(name)
    data = task.read(FeatureStore(made / "store"), read_labels(made / "labels.csv"), **options)
    probe = task.fit(data, settings=QUICK if probe_needs_patches(name, options) else None, **(fit or {}))
    folder = made / f"probe-{name}-{options.get('head', '')}"
    probe.save_pretrained(folder)
    return folder, task.predict(probe, data, np.array([data.ids.index("4.npy")]))[0]


def probe_needs_patches(name, options):
    return name == "localization" or options.get("head") == "pooler"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("classification", {"targets": ["sick"]}),
        ("classification", {"targets": ["sick"], "head": "pooler"}),
        ("regression", {"targets": ["size"], "units": ["mm"]}),
        ("survival", {}),
        ("survival", {"unit": "months"}),
    ],
)
def test_a_scan_file_gives_what_its_stored_features_give(made, volume, name, options):
    fit = {"head_hidden_size": 8} if options.get("head") == "pooler" else {}
    folder, expected = fitted(made, name, fit, **options)
    answer = ProbeReader(folder, model=made / "model").answer(volume)
    np.testing.assert_allclose(list(answer.values.values()), expected, rtol=2e-3, atol=1e-4)
    if name == "classification":
        threshold = VoxelFMProbe.from_pretrained(folder).config.threshold[0]
        assert answer.positive == {"sick": answer.values["sick"] >= threshold}
    if name == "regression":
        assert answer.units == {"size": "mm"}
        probe = VoxelFMProbe.from_pretrained(folder)
        probe.config.interval_half_width = [2.5]  # one validation scan is too few for an interval
        probe.save_pretrained(folder)
        wide, value = ProbeReader(folder, model=made / "model").answer(volume), answer.values["size"]
        assert answer.intervals == {} and wide.intervals == {"size": pytest.approx((value - 2.5, value + 2.5))}
        assert wide.text() == f"size {value:.3g} mm ({value - 2.5:.3g} to {value + 2.5:.3g})"
    if name == "survival":
        chances = list(answer.survival.values())
        assert chances == sorted(chances, reverse=True) and len(chances) == 3
        config = VoxelFMProbe.from_pretrained(folder).config
        expected = np.exp(-np.array(config.baseline_hazard) * np.exp(answer.values["event"]))
        assert answer.survival == pytest.approx(dict(zip(config.baseline_times, expected, strict=True)))
        risk, last = answer.values["event"], config.baseline_times[-1]
        facts, unit = answer.facts(), options.get("unit")
        assert facts["units"] == {"event": "log risk"} and facts.get("time_unit") == unit
        assert list(facts["survival"]) == [f"{time:g}" for time in config.baseline_times]
        until = f"{last:g} {unit}" if unit else f"{last:g}"
        assert answer.text() == f"log risk of event {risk:.3g}; {expected[-1]:.0%} without event until {until}"


def test_a_point_comes_back_in_millimetres(made, volume):
    folder, expected = fitted(made, "localization", {"head_hidden_size": 8}, targets=["x", "y", "z"])
    answer = ProbeReader(folder, model=made / "model").answer(volume)
    np.testing.assert_allclose(answer.points_lps, expected, atol=1e-2)


def test_a_region_is_another_question_than_its_scan(made, volume):
    folder, _ = fitted(made, "classification", targets=["sick"])
    first, second = (Region("r", (x, 12.0, 15.0), 16.0) for x in (10.0, 16.0))
    with pytest.raises(ValueError, match="fitted on whole scans"):
        ProbeReader(folder, model=made / "model").answer(volume, region=first)
    config = json.loads((folder / "config.json").read_text())
    config["processor"]["region_size"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    reader = ProbeReader(folder, model=made / "model")
    assert reader.answer(volume, region=first).values["sick"] != reader.answer(volume, region=second).values["sick"]
    with pytest.raises(ValueError, match="fitted on regions"):
        reader.answer(volume)
    assert reader.answer(volume, region=first).notes == ()
    (note,) = reader.answer(volume, region=Region("r", (0.0, 12.0, 15.0), 16.0)).notes
    assert note == "47% of the region lies outside the scan and repeats its edge"


def test_the_wrong_or_an_unknown_backbone_is_refused(made, tmp_path):
    folder, _ = fitted(made, "classification", targets=["sick"])
    with pytest.raises(ModelError, match="that `voxelfm probe` wrote$"):
        ProbeReader(tmp_path / "missing", model=made / "model")
    with pytest.raises(ModelError, match="local folder named model: say where that model is \\(--model"):
        ProbeReader(folder)
    save_small_model(tmp_path / "other", patch_size=8, seed=1)
    with pytest.raises(ModelError, match="embed the scans with that model"):
        ProbeReader(folder, model=tmp_path / "other")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "voxelfm_probe"}))
    with pytest.raises(ModelError, match="cannot be loaded as a probe"):
        ProbeReader(tmp_path / "broken", model=made / "model")


@pytest.mark.parametrize(
    ("name", "found"),
    [("store", "it is a feature store"), ("model", "it is a voxelfm model"), ("empty", "it has no config.json")],
)
def test_a_folder_of_something_else_is_no_probe(made, name, found):
    (made / "empty").mkdir(exist_ok=True)
    with pytest.raises(ModelError) as error:
        ProbeReader(made / name)
    told = f"{made / name} cannot be loaded as a probe: {found}; name a folder that `voxelfm probe` wrote"
    assert str(error.value) == told


def test_a_label_map_lies_on_the_grid_of_the_scan(made):
    phantom = make_phantom(0, spacing=(12.0, 12.0, 12.0))
    config = VoxelFMProbeConfig(
        task="segmentation",
        head="decoder",
        feature_size=24,
        head_hidden_size=8,
        base_model_name_or_path=str(made / "model"),
    )
    VoxelFMProbe(config).save_pretrained(made / "probe-segmentation")
    answer = ProbeReader(made / "probe-segmentation").answer(phantom.volume)
    assert answer.label_map.shape == phantom.volume.hu.shape
    assert phantom.volume.restore(answer.label_map).shape == phantom.volume.restore(phantom.labels).shape


def test_a_label_map_is_that_of_the_stored_patches_at_their_place(made, volume):
    fields = {"task": "segmentation", "feature_size": 24, "id2label": {0: "rest", 1: "organ"}}
    probe = VoxelFMProbe(VoxelFMProbeConfig(head="subpatch", base_model_name_or_path=str(made / "model"), **fields))
    probe.save_pretrained(made / "probe-organ")
    store = FeatureStore(made / "store")
    affine = np.array(store.table["patch_affine"].to_pylist()[store.ids.index("4.npy")]).reshape(4, 4)
    expected = segment(probe, store.patches("4.npy"), affine, volume)
    found = ProbeReader(made / "probe-organ").answer(volume).label_map
    assert 0.05 < expected.mean() < 0.95 and (found == expected).mean() > 0.98


def test_a_scan_of_another_extent_than_the_training_scans_is_noted(made, volume):
    folder, _ = fitted(made, "regression", targets=["size"])
    reader = ProbeReader(folder, model=made / "model")
    low, high = reader.probe.config.fit["field_of_view_mm"]
    assert low == high and reader.answer(volume).notes == ()
    larger = read_volume(made / "scans" / "4.npy", spacing=(4.5, 3.0, 3.0))
    (note,) = (note for note in reader.answer(larger).notes if "fitted on" in note)
    once, thrice = (" x ".join(f"{times * mm:.0f}" for mm in low) for times in (1, 3))
    assert note == f"it covers {thrice} mm (z, y, x), the scans that the probe was fitted on {once} mm (z, y, x)"
    smaller = read_volume(made / "scans" / "4.npy", spacing=(0.6, 0.4, 0.4))
    assert any("fitted on" in note for note in reader.answer(smaller).notes)
