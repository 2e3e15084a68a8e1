"""The online probe: a labels file with scans becomes scores that tell good features from bad ones."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.training.pretrain.online_probe import ProbeSet, load_probe_set, probe_scores, score_features
from voxelfm_hf.volumes.errors import LabelError

PROCESSOR = VoxelFMImageProcessor(patch_size=4, max_patches=100, crop_background=False, pad_thin=True)


def write_scans(folder: Path, *, split: bool = False) -> Path:
    """Twelve scans of two classes that differ in their mean HU; two scans a patient."""
    folder.mkdir()
    lines = ["path,label,patient" + (",split" if split else "")]
    generator = np.random.default_rng(0)
    for number in range(12):
        level = -700 if number % 2 else 100
        hu = (generator.normal(level, 60, (12, 12, 12))).astype(np.int16)
        nib.save(nib.Nifti1Image(hu, np.diag([1.0, 1.0, 1.0, 1.0])), folder / f"{number}.nii.gz")
        group = "test" if number >= 8 else "train"
        lines.append(f"{number}.nii.gz,{'ab'[number % 2]},p{number // 2}" + (f",{group}" if split else ""))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def test_a_list_saved_by_a_spreadsheet(tmp_path: Path):
    path = write_scans(tmp_path / "scans")
    path.write_text(path.read_text().replace(",", ";"), encoding="utf-8-sig")
    probe_set = load_probe_set(path, PROCESSOR)
    assert len(probe_set.volumes) == 12 and len(set(probe_set.groups)) == 6


@pytest.mark.parametrize("split", [False, True])
def test_an_untrained_model_already_sees_air_and_water_apart(tmp_path: Path, split: bool):
    probe_set = load_probe_set(write_scans(tmp_path / "scans", split=split), PROCESSOR)
    torch.manual_seed(0)
    config = VoxelFMConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=1, patch_size=4, layerscale_value=1.0
    )
    model = VoxelFMModel(config).eval()
    before = torch.get_rng_state()
    scores = probe_scores(model, probe_set, device=torch.device("cpu"), neighbours=3)
    assert scores == {"probe_knn": 1.0, "probe_linear": 1.0}
    assert torch.equal(torch.get_rng_state(), before)  # or a probed run would differ from one that is not


def test_features_without_information_score_like_chance():
    generator = np.random.default_rng(1)
    labels = np.array(["a", "b"] * 100)
    probe_set = ProbeSet([], labels, None, np.arange(200).astype(str))
    scores = score_features(generator.normal(size=(200, 8)), probe_set)
    assert 0.38 < scores["probe_knn"] < 0.62 and 0.38 < scores["probe_linear"] < 0.62


def test_patients_stay_on_one_side_of_the_folds():
    # features that only tell patients apart must not help
    generator = np.random.default_rng(2)
    patients = np.repeat(np.arange(30), 4)
    labels = np.where(generator.permutation(30) % 2, "a", "b")[patients]
    probe_set = ProbeSet([], labels, None, patients.astype(str))
    scores = score_features(generator.normal(size=(30, 64))[patients], probe_set, neighbours=3)
    assert scores["probe_knn"] < 0.7


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("label", "class", 1), "no column label"),
        (lambda text: text.replace("patient", "Patient ID").replace("p4,test", "p3,test", 1), "patient in train"),
        (lambda text: text + "x.nii.gz\n", r"labels.csv line 14: label is empty"),
        (lambda text: text + ",a,p9,train\n", r"labels.csv line 14: path is empty"),
        (lambda text: text.replace("split", "label", 1), "label occurs twice"),
        (lambda text: text.replace(",b,", ",a,"), "at least two classes"),
        (lambda text: text.replace("p4,test", "p3,test", 1), "patient in train and test"),
        (lambda text: "path,label\n", "no rows"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(tmp_path: Path, edit, message):
    path = write_scans(tmp_path / "scans", split=True)
    path.write_text(edit(path.read_text()))
    with pytest.raises(LabelError, match=message):
        load_probe_set(path, PROCESSOR)
    with pytest.raises(LabelError, match="no such file"):
        load_probe_set(tmp_path / "none.csv", PROCESSOR)
