"""A benchmark of label columns as features, whose answers are known, and small scans with a bright cube."""

import nibabel as nib
import numpy as np

from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.features import Task
from voxelfm_hf.recipes import to_recipe
from voxelfm_hf.scan_list import Scan

COUNT = 240


def made_labels(count=COUNT, seed=0):
    """Scans of patients with two scans each; `clue` tells sick, size and survival, `junk` tells nothing."""
    rng = np.random.default_rng(seed)
    clue = rng.normal(size=count)
    sick = (clue + 0.7 * rng.normal(size=count) > 0.4).astype(int)
    risk = 1.2 * clue
    life, censoring = rng.exponential(np.exp(-risk)), rng.exponential(2.0, size=count)
    columns = {
        "patient_id": [i // 2 for i in range(count)],
        "split": [("train", "train", "train", "val", "test", "test")[i // 2 % 6] for i in range(count)],
        "clue": clue.tolist(),
        "junk": rng.normal(size=count).tolist(),
        "sick": [None if i % 11 == 0 else int(v) for i, v in enumerate(sick)],
        "luck": rng.integers(0, 2, size=count).tolist(),
        "size": (5 + 2 * clue + 0.3 * rng.normal(size=count)).tolist(),
        "time": np.minimum(life, censoring).tolist(),
        "event": (life <= censoring).astype(int).tolist(),
        "log_risk": risk.tolist(),
        "spacing": rng.choice([1.0, 2.0], size=count).tolist(),
        "sex": ["FM"[i // 2 % 2] for i in range(count)],
    }
    return LabelTable("labels.csv", [f"scan{i:03d}" for i in range(count)], columns)


def made_data(tmp_path, **changes):
    labels = made_labels()
    tasks = [Task(Scan(name, tmp_path / name)) for name in labels.ids]
    return BenchmarkData(
        tasks, labels, tmp_path, **{"baselines": {"junk": ("junk",)}, "subgroups": ("sex",), **changes}
    )


def made_recipe(**changes):
    values = {
        "data": "lidc",
        "encoders": [
            {"kind": "columns", "name": "good", "options": {"columns": ["clue"]}},
            {"kind": "columns", "name": "other", "options": {"columns": ["spacing"]}},
        ],
        "tasks": [
            {"task": "classification", "targets": ["sick", "luck"]},
            {"task": "regression", "targets": ["size"]},
            {"task": "survival", "ceiling": ["log_risk"], "read": {"horizons": [0.5]}},
            {"task": "retrieval", "targets": ["sick"], "read": {"alike": {"spacing": 0.5}}},
        ],
        "fractions": [0.1, 1.0],
        "seeds": [0, 1],
        "replicates": 100,
        **changes,
    }
    return to_recipe(values, BenchmarkRecipe)


def value(rows, encoder, task, target, metric, fraction=1.0):
    (row,) = [
        row
        for row in rows
        if (row["encoder"], row["task"], row["target"], row["metric"]) == (encoder, task, target, metric)
        and float(row["fraction"]) == fraction
    ]
    return float(row["value"])


def write_organ_scans(folder, count=12):
    """Small scans with a bright cube at random places, its label map, and its centre in LPS mm."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        hu, mask = rng.normal(0, 20, size=(24, 32, 32)), np.zeros((24, 32, 32), dtype=np.uint8)
        z, y, x = (int(rng.integers(0, n // 8 - 1)) * 8 for n in hu.shape)
        hu[z : z + 8, y : y + 8, x : x + 8] += 600
        mask[z : z + 8, y : y + 8, x : x + 8] = 1
        affine = np.diag([-2.0, -2.0, 2.0, 1.0])  # RAS, so LPS mm are twice the index
        nib.save(nib.Nifti1Image(hu.astype(np.int16).transpose(2, 1, 0), affine), folder / f"{i}.nii.gz")
        nib.save(nib.Nifti1Image(mask.transpose(2, 1, 0), affine), folder / f"{i}_mask.nii.gz")
        centre = [2 * (v + 3.5) for v in (x, y, z)]
        split = ("train", "train", "val", "test")[i % 4]
        rows.append([f"{i}", i, split, f"{i}_mask.nii.gz", *centre])
    names = ("id", "patient_id", "split", "mask", "x", "y", "z")
    columns = {name: [row[k] for row in rows] for k, name in enumerate(names)}
    labels = LabelTable("labels.csv", columns["id"], columns)
    tasks = [Task(Scan(name, folder / f"{name}.nii.gz", named=True)) for name in labels.ids]
    return BenchmarkData(tasks, labels, folder, classes=("background", "cube"))
