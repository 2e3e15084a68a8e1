"""What stands for a region in the comparison: features of a model, of the same model untrained, or a HU histogram."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from voxelfm_hf.eval.learned_cases import CaseSet
from voxelfm_hf.features import EmbedOptions, embed_scans
from voxelfm_hf.files import written_folder
from voxelfm_hf.hub import load, weight_hash
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import VoxelFMError

HISTOGRAM_EDGES_HU = np.linspace(-1000, 1000, 33)
# The two summaries of a region that are probed.
POOLINGS = ("CLS", "patch mean")


def model_features(model: Path, cases: CaseSet, out: Path, *, region_size: int) -> dict[str, np.ndarray]:
    """Features of every region, embedded once and kept in a store under `out`.

    Args:
        model: Model folder.
        cases: The regions.
        out: Folder of all stores.
        region_size: Edge of a cube in voxels, a multiple of the patch size.

    Returns:
        By pooling, (n, C) in the order of the cases: the CLS vector, and the mean of the patch features.

    Raises:
        VoxelFMError: a region cannot be embedded; scores over different regions would not compare.
    """
    store = out / weight_hash(model)[:12] / f"{cases.name}-{cases.origin}-{region_size}"
    options = EmbedOptions(patches=True, region_size=region_size, dtype="float32")
    summary = embed_scans(cases.tasks, model, store, options)
    if summary.failures:
        reason = next(iter(summary.failures.values()))
        raise VoxelFMError(f"{len(summary.failures)} regions of the task {cases.name} cannot be embedded: {reason}")
    opened = FeatureStore(store)
    row = {identifier: number for number, identifier in enumerate(opened.ids)}
    cls = opened.cls[[row[identifier] for identifier in cases.identifiers]]
    means = [opened.patches(identifier).astype(np.float32).mean((0, 1, 2)) for identifier in cases.identifiers]
    return {"CLS": cls, "patch mean": np.stack(means)}


def untrained_model(model: Path, out: Path, *, seed: int) -> Path:
    """A folder with the same architecture and image processor, and weights as they are before any training.

    Args:
        model: Folder of the trained model.
        out: Where the folder is made; one that is there already is used.
        seed: Fixes the weights.
    """
    from transformers import AutoModel

    network, processor = load(model, dtype=torch.float32)
    architecture = hashlib.sha256(repr(sorted(network.config.to_diff_dict().items())).encode()).hexdigest()[:8]
    folder = out / f"untrained-{architecture}-{seed}"
    if not (folder / "config.json").is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = AutoModel.from_config(network.config, dtype=torch.float32)
        with written_folder(folder) as part:
            fresh.save_pretrained(part)
            processor.save_pretrained(part)
    return folder


def histogram_features(cases: CaseSet, processor: VoxelFMImageProcessor, *, region_size: int) -> np.ndarray:
    """Intensity histograms of the very cubes that the models see.

    Returns:
        (n, 34): the square roots of the shares of 32 bins in [-1000, 1000] HU (values beyond count in the outer bins;
        roots bring the many small shares to one scale), mean and standard deviation in HU.
    """
    found = {}
    for task in cases.tasks:
        volume = read_volume(task.scan.path)
        for region in task.regions:
            voxels, _ = processor.prepare_region(volume, region.centre_lps, region.edge_mm, region_size)
            hu = voxels.numpy() * processor.image_std + processor.image_mean
            found[region.identifier] = histogram(hu)
    return np.stack([found[identifier] for identifier in cases.identifiers])


def histogram(hu: np.ndarray) -> np.ndarray:
    """(34,) features of one cube in HU, see `histogram_features`."""
    counts, _ = np.histogram(np.clip(hu, HISTOGRAM_EDGES_HU[0], HISTOGRAM_EDGES_HU[-1]), HISTOGRAM_EDGES_HU)
    return np.array([*np.sqrt(counts / hu.size), hu.mean(), hu.std()])
