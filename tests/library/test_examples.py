"""The examples run as they are printed, on synthetic scans, and do what they say."""

import json
import os
import subprocess
import sys
from pkgutil import iter_modules

import nibabel
import numpy as np
import pytest

from voxelfm_hf import examples
from voxelfm_hf.examples import (
    benchmark_own_encoder,
    embed_and_search,
    find_in_another_patient,
    fit_probe,
    lora_finetuning,
    pretrain_on_own_scans,
)
from voxelfm_hf.store import FeatureStore


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder that the examples share, as they do when run one after another."""
    return tmp_path_factory.mktemp("example")


@pytest.mark.parametrize("name", [module.name for module in iter_modules(examples.__path__)])
def test_help_says_what_an_example_does_and_makes_nothing(name, tmp_path):
    kept = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", f"voxelfm_hf.examples.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=kept)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr
    assert f"python -m voxelfm_hf.examples.{name}" in done.stdout and "folder for all that is made" in done.stdout
    assert not list(tmp_path.iterdir())


def test_search_lists_every_scan_with_three_others(out, capsys):
    embed_and_search.main(None, str(out))
    lines = capsys.readouterr().out.splitlines()
    made = list((out / "chests" / "images").iterdir())  # 24, or those of an example that ran before
    assert len(lines) == len(FeatureStore(out / "features").ids) == len(made) >= 24
    for line in lines:
        name, *nearest = line.split("  ")
        assert len(nearest) == 3 and not any(entry.startswith(name) for entry in nearest)


def test_probe_is_fitted_saved_and_asked(out, capsys):
    fit_probe.main(str(out))
    said = capsys.readouterr().out
    assert "synthetic effusions: AUROC" in said and "pleural_effusion" in said
    config = json.loads((out / "probe" / "config.json").read_text())
    assert config["metrics"]["pleural_effusion/auroc"]["n"] == 12 and (out / "probe" / "README.md").is_file()


def test_map_of_likeness_lies_on_the_second_scan(out, tmp_path, capsys):
    from voxelfm_hf.data.phantom import make_phantom
    from voxelfm_hf.data.write_scan import write_nifti

    scans = []
    for seed in (5, 6):
        scans.append(tmp_path / f"{seed}.nii.gz")
        write_nifti(make_phantom(seed, shape=(48, 64, 64)).volume, scans[-1])
    find_in_another_patient.main(str(scans[0]), str(scans[1]), str(out))
    similarity, scan = nibabel.load(out / "similarity.nii.gz"), nibabel.load(scans[1])
    assert similarity.shape == scan.shape and np.allclose(similarity.affine, scan.affine)
    values = similarity.get_fdata()
    assert 0.3 < values.max() <= 1 and (out / "likest.png").is_file() and (out / "place.png").is_file()
    # the scan with itself: the likest patch is the place
    find_in_another_patient.main(str(scans[0]), str(scans[0]), str(out))
    numbers = capsys.readouterr().out.splitlines()[-1].replace("(", " ").replace(")", " ").replace(",", " ").split()
    voxels = [int(word) for word in numbers if word.isdigit()]
    assert np.abs(np.array(voxels[:3]) - voxels[3:6]).max() <= 8


def test_pretraining_leaves_an_ordinary_model(out, capfd):
    pretrain_on_own_scans.main(str(out / "chests" / "images"), str(out), "--run.total_steps", "2")
    assert "an ordinary model folder, features (1, " in capfd.readouterr().out
    assert (out / "run" / "teacher" / "model.safetensors").is_file()


def test_own_encoder_stands_beside_the_others(out, capsys):
    benchmark_own_encoder.main(str(out))
    table = capsys.readouterr().out
    assert "slice means" in table and "tiny" in table
    rows = (out / "benchmark" / "results.csv").read_text().splitlines()
    assert any(row.startswith("slice means,classification,pleural_effusion,auroc") for row in rows)


def test_adapter_is_small_and_has_its_probe(out, capsys):
    lora_finetuning.main(str(out), epochs=1)
    assert "voxelfm predict SCAN --probe" in capsys.readouterr().out
    adapter = out / "tuned" / "adapter" / "adapter_model.safetensors"
    assert adapter.stat().st_size < 2_000_000 and (out / "tuned" / "probe" / "config.json").is_file()
