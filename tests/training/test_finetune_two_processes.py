"""Fine-tuning on two gloo processes against one, with the same batches."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.small_tuning import finetuned, make_tuning
from tests.two_processes import in_two_processes
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.training.finetune.settings import FinetuneSettings
from voxelfm_hf.training.probe import fit_probes, make_probe
from voxelfm_hf.training.probe.data import ProbeJob

# The last batch of an epoch has one row: one of the processes has none of it.
SETTINGS = FinetuneSettings(epochs=2, batch_size=19, micro_batch=4, noise=0.1, input_noise=0.05, flip=True)


def run_both(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and history of a classification with adapters and of a survival that trains everything."""
    made = make_tuning(folder)
    classified = finetuned(made, "lora", settings=SETTINGS)
    rng = np.random.default_rng(3)
    times = np.stack([rng.exponential(size=len(made.ids)).round(1), rng.integers(0, 2, len(made.ids))], axis=1)
    job = ProbeJob("death", times, made.job.train, made.job.validation)
    config = VoxelFMProbeConfig(task="survival", head="linear", feature_size=24, id2label={0: "event"})
    features = made.features.standardised(job.train)
    probe = make_probe(config, fit_probes(features, [job], config), features)
    survived = finetuned(made, "full", settings=SETTINGS, job=job, probe=probe)
    found = {}
    for name, result in (("class", classified), ("cox", survived)):
        for entry in result.history:
            found[f"{name}.score.{entry['epoch']}"] = torch.tensor(entry["score"], dtype=torch.float64)
            found[f"{name}.loss.{entry['epoch']}"] = torch.tensor(entry["loss"] or 0.0, dtype=torch.float64)
        found |= {f"{name}.{key}": value.clone() for key, value in result.backbone.state_dict().items()}
        found |= {f"{name}.probe.{key}": value.clone() for key, value in result.probe.state_dict().items()}
    return {name: value.contiguous() for name, value in found.items()}


def run_rank(folder: Path) -> None:
    save_file(run_both(folder), folder / f"rank{os.environ['RANK']}.safetensors")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("two")
    alone = run_both(folder)
    in_two_processes(run_rank, folder)
    return [alone, *(load_file(folder / f"rank{rank}.safetensors") for rank in range(2))]


def test_two_processes_give_what_one_gives(found):
    alone, first, _ = found
    assert alone.keys() == first.keys() and any("lora_B" in name for name in alone)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, atol=2e-5, rtol=2e-4, msg=name)


def test_the_processes_agree(found):
    _, first, second = found
    assert all(torch.equal(value, second[name]) for name, value in first.items())
