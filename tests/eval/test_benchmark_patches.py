"""Tasks on patches in a benchmark: label maps, points, ceiling and floor."""

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.eval.small_benchmark import made_recipe, value, write_organ_scans
from voxelfm_hf.eval.benchmark.grid import run_benchmark
from voxelfm_hf.eval.benchmark.recipe import TaskRecipe
from voxelfm_hf.eval.benchmark.references import with_reference
from voxelfm_hf.eval.benchmark.results import score_benchmark
from voxelfm_hf.eval.benchmark.tables import write_benchmark
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.modeling.probe_heads_voxelfm import pooled_grid
from voxelfm_hf.training.probe.data import ProbeFeatures


def test_patch_tasks_with_ceiling_and_label_maps(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    data = write_organ_scans(folder)
    recipe = made_recipe(
        encoders=[{"kind": "intensity", "model": "tiny"}, {"kind": "spacing"}],
        tasks=[
            {
                "task": "segmentation",
                "read": {"voxels_per_patch": 2},
                "evaluate": {"surfaces": False},
                "settings": {"epochs": 12, "learning_rate": 0.01, "accumulate": 1},
            },
            {"task": "localization", "targets": ["x", "y", "z"], "settings": {"epochs": 40, "learning_rate": 0.003}},
        ],
        seeds=[0],
        baselines=False,
    )
    run = run_benchmark(recipe, data, tmp_path / "out")
    assert not run.failures
    results = score_benchmark(run)
    write_benchmark(run, results, tmp_path / "out")
    rows = results.rows
    assert value(rows, "ceiling", "segmentation", "cube", "dice") > 0.6
    assert (
        value(rows, "ceiling", "segmentation", "cube", "dice")
        > value(rows, "floor", "segmentation", "cube", "dice") + 0.3
    )
    errors = {e: value(rows, e, "localization", "localization", "error_mm") for e in ("ceiling", "floor", "intensity")}
    assert errors["ceiling"] < 0.6 * errors["floor"]
    constant = value(rows, "intensity", "localization", "localization", "mean_position_error_mm")
    report = (tmp_path / "out" / "results.md").read_text()
    assert f"A constant answer, the mean training position, has an error of {constant:.1f} [" in report
    maps = sorted((tmp_path / "out" / "predictions" / "intensity" / "segmentation" / "maps").iterdir())
    assert len(maps) == 3
    mask = nib.load(folder / maps[0].name.replace(".nii.gz", "_mask.nii.gz"))
    assert np.allclose(nib.load(maps[0]).affine, mask.affine) and nib.load(maps[0]).shape == mask.shape
    assert not any(row["encoder"] == "spacing" for row in rows)
    # It is not even asked for its features, and the report says so.
    assert "spacing gives no patches, which every task here needs, and is left out" in run.notes
    assert [path.name for path in (tmp_path / "out" / "stores").iterdir() if path.name.startswith("spacing")] == []


@pytest.mark.parametrize("kind", ["ceiling", "floor"])
def test_ceiling_and_floor_localise_on_as_many_patches_as_the_encoders(kind):
    data = TaskData(
        task="localization",
        ids=["a"],
        features=ProbeFeatures(patches=lambda row: np.zeros((10, 12, 8, 16), np.float32)),
        targets=np.array([[0.2, 0.5, 0.9]]),
        names=["point"],
        splits=np.array(["train"]),
        groups=np.array([0]),
        subgroups={},
        run={},
        affines=np.eye(4)[None],
        grids=np.array([[10, 12, 8]]),
        options={"max_positions": 100},
    )
    task = TaskRecipe("localization", targets=["x", "y", "z"])
    changed = with_reference(data, task, LabelTable("labels.csv", ["a"], {}), kind, seed=0)
    found = changed.features.patches(0)
    assert found.shape[:3] == pooled_grid(torch.zeros(10, 12, 8, 1), 100).shape[:3]
    if kind == "ceiling":
        # Its first channel shines where the point lies.
        place = (np.array(np.unravel_index(found[..., 0].argmax(), found.shape[:3])) + 0.5) / found.shape[:3]
        assert np.abs(place - data.targets[0]).max() <= 0.5 / min(found.shape[:3]) + 1e-9
