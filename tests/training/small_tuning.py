"""A small backbone, scans whose label is hard to see in its frozen features, and a probe on them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.features import Task
from voxelfm_hf.hub import load
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.scan_list import Scan
from voxelfm_hf.training.finetune.features import backbone_features
from voxelfm_hf.training.finetune.input_cache import InputCache, prepare_inputs
from voxelfm_hf.training.finetune.loop import finetune
from voxelfm_hf.training.finetune.settings import Finetuned
from voxelfm_hf.training.probe import fit_probes, make_probe
from voxelfm_hf.training.probe.data import ProbeFeatures, ProbeJob
from voxelfm_hf.volumes import Volume

SCANS = 48


@dataclass(frozen=True, eq=False)
class Made:
    """Everything `finetune` takes."""

    folder: Path
    model: Path
    scans: list[Path]
    ids: list[str]
    inputs: InputCache
    features: ProbeFeatures
    job: ProbeJob
    probe: VoxelFMProbe
    test: np.ndarray


def make_tuning(folder: Path) -> Made:
    """Scans of two sizes: noise with stripes along z (0) or y (1), the same histogram for both labels."""
    model = folder / "small"
    rng = np.random.default_rng(0)
    labels = rng.permutation(SCANS) % 3 == 0  # unbalanced
    scans = [folder / "scans" / f"{index}.nii.gz" for index in range(SCANS)]
    if not model.is_dir():
        torch.manual_seed(7)
        config = VoxelFMConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            patch_size=8,
            image_size=16,
            layerscale_value=1.0,
        )
        VoxelFMModel(config).save_pretrained(model)
        VoxelFMImageProcessor(patch_size=8, crop_background=False).save_pretrained(model)
        for index, (path, label) in enumerate(zip(scans, labels, strict=True)):
            shape = (16, 16, 16 if index % 4 else 24)
            stripes = np.sign(np.sin(np.arange(16) * 2 * np.pi / 4 + rng.uniform(0, 6)))
            pattern = stripes[None, :, None] if label else stripes[:, None, None]
            hu = (150 * pattern + rng.normal(0, 120, shape)).astype(np.int16)
            write_nifti(Volume.from_array(hu, spacing=(1, 1, 1)), path)
    ids = [f"s{index}" for index in range(SCANS)]
    tasks = [Task(Scan(name, path, named=True)) for name, path in zip(ids, scans, strict=True)]
    inputs, failures = prepare_inputs(tasks, model, folder / "inputs")
    assert not failures, failures
    features = backbone_features(load(model)[0], inputs, ids)
    rows = np.arange(SCANS)
    job = ProbeJob("stripes", labels[:, None].astype(float), rows[:20], rows[20:30])
    config = VoxelFMProbeConfig(task="classification", head="linear", feature_size=24, id2label={0: "stripes"})
    standardised = features.standardised(job.train)
    probe = make_probe(config, fit_probes(standardised, [job], config), standardised)
    return Made(folder, model, scans, ids, inputs, features, job, probe, rows[30:])


def finetuned(made: Made, mode: str, *, backbone=None, job=None, probe=None, **options) -> Finetuned:
    """A fine-tuning of the small backbone."""
    backbone = backbone or load(made.model, dtype=torch.float32)[0]
    return finetune(backbone, probe or made.probe, made.inputs, made.ids, job or made.job, mode=mode, **options)
