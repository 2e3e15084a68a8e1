"""Backbone and probe head as one model: the same answers as apart, saved, loaded, trained, and from a file."""

import builtins
import json
import os
import re
import subprocess
import sys
from importlib import resources

import nibabel as nib
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, pipeline

from tests.two_processes import in_two_processes
from voxelfm_hf import (
    VoxelFMConfig,
    VoxelFMImageProcessor,
    VoxelFMModel,
    load_classifier,
    read_volume,
    save_classifier,
)
from voxelfm_hf.hub import weight_hash
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm_classifier import VoxelFMForImageClassification
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.volumes.errors import ModelError

SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 4, "layerscale_value": 1.0}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The folder of a small model with random weights."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    VoxelFMModel(VoxelFMConfig(**SIZES)).save_pretrained(folder)
    VoxelFMImageProcessor(patch_size=4, max_patches=60).save_pretrained(folder)
    return folder


def make_probe(folder, backbone, **fields):
    """A saved probe with random weights and calibration for that model."""
    torch.manual_seed(1)
    fields = {"id2label": {0: "effusion", 1: "nodule", 2: "emphysema"}} | fields
    probe = VoxelFMProbe(
        VoxelFMProbeConfig(
            feature_size=24,
            base_model_name_or_path=str(backbone),
            base_model_hash=weight_hash(backbone),
            processor={"max_patches": 30},
            **fields,
        )
    )
    torch.nn.init.normal_(probe.feature_mean)
    probe.save_pretrained(folder)
    return probe.eval()


FINDINGS, CLASSES = ({"problem_type": f"{kind}_label_classification"} for kind in ("multi", "single"))
THRESHOLDS = [0.1, 0.9, 0.5]
NUMBERS = {"task": "regression", "target_mean": [5.0] * 3, "target_scale": [2.0] * 3}
PROBES = {
    "findings": {**FINDINGS, "temperature": [2.0, 1.0, 0.5], "threshold": THRESHOLDS},
    "classes": {**CLASSES, "temperature": [3.0], "head": "mlp", "head_hidden_size": 8},
    "pooled": {**FINDINGS, "head": "pooler", "head_hidden_size": 8},
    "numbers": {**NUMBERS, "interval_half_width": [1.0] * 3},
    "survival": {"task": "survival", "id2label": {0: "death"}, "baseline_times": [1.0], "baseline_hazard": [0.1]},
}


@pytest.mark.parametrize("kind", PROBES)
def test_the_composed_model_says_what_backbone_and_probe_say(kind, backbone, tmp_path):
    probe = make_probe(tmp_path / "probe", backbone, **PROBES[kind])
    composed, processor = load_classifier(tmp_path / "probe")
    assert processor.max_patches == 30
    pixel_values = torch.randn(2, 1, 8, 12, 8)
    features = VoxelFMModel.from_pretrained(backbone)
    outputs = features(pixel_values)
    expected = probe.predict(cls=outputs.pooler_output, patches=features.patch_features(outputs, (2, 3, 2)))
    composed.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "whole").eval()
    for model in (composed, again, load_classifier(tmp_path / "whole")[0]):
        found = model.predict(pixel_values)
        torch.testing.assert_close(found.predictions, expected.predictions)
        for name in ("positive", "low"):
            assert (getattr(found, name) is None) == (getattr(expected, name) is None)
    assert not list((tmp_path / "whole").glob("*.bin"))


def test_the_whole_folder_is_also_its_backbone(backbone, tmp_path):
    make_probe(tmp_path / "probe", backbone, **PROBES["findings"])
    load_classifier(tmp_path / "probe")[0].save_pretrained(tmp_path / "whole")
    pixel_values = torch.randn(1, 1, 8, 8, 8)
    expected = VoxelFMModel.from_pretrained(backbone)(pixel_values).pooler_output
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path / "whole")(pixel_values).pooler_output, expected)


@pytest.mark.parametrize("region_size", [None, 8], ids=["scans", "regions"])
@pytest.mark.parametrize("kind", ["findings", "classes", "numbers", "survival"])
def test_the_code_of_the_card_runs_and_its_text_speaks_of_that_code(kind, region_size, backbone, tmp_path):
    probe = make_probe(tmp_path / "probe", backbone, **PROBES[kind])
    probe.config.processor = {"max_patches": 30, "region_size": region_size}
    probe.save_pretrained(tmp_path / "probe")
    template = (resources.files("voxelfm_hf.model_cards") / "probe.md").read_text(encoding="utf-8")
    (tmp_path / "probe" / "README.md").write_text(template.replace("{{ answer }}", "`probe.config.id2label`, a. B"))
    card = (save_classifier(tmp_path / "probe", tmp_path / "whole") / "README.md").read_text()
    assert "answer.predictions" not in card and "probe.config" not in card and "The backbone is `{{ base }}`" in card

    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-44, 8, 278)
    hu = np.random.default_rng(0).integers(-700, 1000, (32, 32, 32)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "chest.nii.gz")
    code = card.split("```python\n")[1].split("```")[0]
    assert ("region=" in code) == (region_size is not None)
    code = code.replace("THIS_FOLDER_OR_REPOSITORY", str(tmp_path / "whole"))
    code = code.replace("chest.nii.gz", str(tmp_path / "chest.nii.gz"))
    variables: dict = {}
    exec(code, variables)
    # Every name that the text puts in quotation marks is in the answers, and the other way round.
    text = card.split("```python\n")[1].split("```")[1].split("The backbone is")[0]
    named = set(re.findall("`([a-z_]+)`", text)) - {"answers"}
    assert named - {"unit"} == set(variables["answers"][0]) and "answers" in text


def test_what_does_not_belong_together_is_refused(backbone, tmp_path):
    make_probe(tmp_path / "probe", backbone, **PROBES["findings"])
    torch.manual_seed(5)
    VoxelFMModel(VoxelFMConfig(**SIZES)).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="embed the scans with that model"):
        load_classifier(tmp_path / "probe", model=tmp_path / "other")
    make_probe(tmp_path / "decoder", backbone, task="segmentation", head="subpatch")
    with pytest.raises(ModelError, match="use VoxelFMProbe on features"):
        load_classifier(tmp_path / "decoder")
    with pytest.raises(ValueError, match="without a mask token"):
        model = VoxelFMForImageClassification(VoxelFMConfig(**SIZES))
        model.voxelfm(torch.zeros(1, 1, 4, 4, 4), bool_masked_pos=torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("fields", "labels", "loss"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2, -100, 1]), torch.nn.functional.cross_entropy),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 1]]),
            torch.nn.functional.binary_cross_entropy_with_logits,
        ),
        ({"num_labels": 1}, torch.tensor([1.0, 2, 3, 4]), lambda a, b: torch.nn.functional.mse_loss(a[:, 0], b)),
    ],
    ids=["classes", "findings", "number"],
)
def test_fine_tuning_starts_from_a_backbone_folder(backbone, fields, labels, loss):
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_pretrained(backbone, probe_config={"head": "linear"}, **fields)
    outputs = model(torch.randn(4, 1, 8, 8, 8), labels=labels)
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def _two_steps_in_ddp():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    torch.manual_seed(0)
    model = VoxelFMForImageClassification(VoxelFMConfig(**SIZES, num_labels=2))
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(2):
        loss = model(torch.randn(2, 1, 8, 8, 8), labels=torch.tensor([0, 1])).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def test_no_parameter_is_left_without_gradient_in_two_processes():
    in_two_processes(_two_steps_in_ddp)


def test_a_scan_file_goes_in_and_an_answer_comes_out(backbone, tmp_path, monkeypatch):
    hu = np.random.default_rng(0).integers(-700, 1000, (30, 40, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "scan.nii.gz")
    monkeypatch.setattr(builtins, "input", lambda *prompt: pytest.fail(f"asked: {prompt}"))
    make_probe(tmp_path / "probe", backbone, **PROBES["findings"])
    composed, processor = load_classifier(tmp_path / "probe")
    for part in (composed, processor):
        part.save_pretrained(tmp_path / "whole")
    answers = pipeline("ct-classification", model=str(tmp_path / "whole"))(str(tmp_path / "scan.nii.gz"))
    found = composed.predict(processor(read_volume(tmp_path / "scan.nii.gz"))["pixel_values"])
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(
        dict(zip(("effusion", "nodule", "emphysema"), found.predictions[0].tolist(), strict=True))
    )
    assert [a["score"] for a in answers] == sorted((a["score"] for a in answers), reverse=True)
    thresholds = dict(zip(("effusion", "nodule", "emphysema"), THRESHOLDS, strict=True))
    assert all(answer["positive"] == (answer["score"] >= thresholds[answer["label"]]) for answer in answers)

    make_probe(tmp_path / "risk", backbone, **PROBES["survival"] | {"target_unit": ["days"]})
    for part in load_classifier(tmp_path / "risk"):
        part.save_pretrained(tmp_path / "death")
    (answer,) = pipeline("ct-classification", model=str(tmp_path / "death"))(str(tmp_path / "scan.nii.gz"))
    assert answer.keys() == {"label", "log_risk"} and answer["label"] == "death"

    make_probe(tmp_path / "size", backbone, **PROBES["numbers"] | {"target_unit": ["mm", "mm", "ml"]})
    composed, processor = load_classifier(tmp_path / "size")
    composed.config.probe_config["processor"] = composed.probe.config.processor = {"region_size": 8}
    for part in (composed, processor):
        part.save_pretrained(tmp_path / "regions")
    of_regions = pipeline("ct-classification", model=str(tmp_path / "regions"))
    (first, *_) = of_regions(str(tmp_path / "scan.nii.gz"), region=(-10.0, -20.0, 20.0, 12.0))
    assert first["unit"] == "mm" and first["low"] == pytest.approx(first["value"] - 1)
    with pytest.raises(ValueError, match=r"needs region=\(x, y, z, edge\)"):
        of_regions(str(tmp_path / "scan.nii.gz"))


def test_loads_as_remote_code_without_the_package(backbone, tmp_path):
    make_probe(tmp_path / "probe", backbone, **PROBES["classes"])
    composed, _ = load_classifier(tmp_path / "probe")
    composed.save_pretrained(tmp_path / "whole")
    script = (
        "import sys, torch; from transformers import AutoModelForImageClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "assert 'voxelfm_hf' not in sys.modules\n"
        "print(model.predict(torch.ones(1, 1, 8, 8, 8)).predictions.tolist())"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "whole")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = composed.predict(torch.ones(1, 1, 8, 8, 8)).predictions
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected.numpy(), atol=1e-6)
