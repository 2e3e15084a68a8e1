"""What stands for a region in the comparison: features of a model, of the same model untrained, or a HU histogram."""

from pathlib import Path

import numpy as np

from voxelfm_hf.eval.encoders.intensity import histogram
from voxelfm_hf.eval.learned.cases import CaseSet
from voxelfm_hf.features import EmbedOptions, embed_scans
from voxelfm_hf.hub import weight_hash
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import VoxelFMError

HISTOGRAM = "histogram"
# What of a region's tokens is probed, and the histogram that is given as much: of the cube, or of the cube and of the
# voxels of its central patch.
READOUTS = {
    "CLS": HISTOGRAM,
    "patch mean": HISTOGRAM,
    "CLS + patch mean": HISTOGRAM,
    "patch mean + centre": f"{HISTOGRAM} + centre",
}
# The one that counts: both outputs of the encoder side by side, as is usual for linear probes of DINOv2.
READOUT = "CLS + patch mean"


def model_features(model: Path, cases: CaseSet, out: Path, *, region_size: int) -> dict[str, np.ndarray]:
    """Features of every region, embedded once and kept in a store under `out`.

    Args:
        model: Model folder.
        cases: The regions.
        out: Folder of all stores.
        region_size: Edge of a cube in voxels, a multiple of the patch size.

    Returns:
        By readout, (n, C) or (n, 2 C) in the order of the cases: the CLS vector, the mean of the patch features, both,
        and the mean beside the patch at the cube's centre (the mean of the 8 nearest where the grid is even).

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
    means, centres = [], []
    for identifier in cases.identifiers:
        grid = opened.patches(identifier).astype(np.float32)
        means.append(grid.mean((0, 1, 2)))
        centres.append(grid[centre_slices(grid.shape[:3])].mean((0, 1, 2)))
    mean, centre = np.stack(means), np.stack(centres)
    return {
        "CLS": cls,
        "patch mean": mean,
        "CLS + patch mean": np.hstack((cls, mean)),
        "patch mean + centre": np.hstack((mean, centre)),
    }


def centre_slices(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The middle of a grid: one cell on axes of odd length, two on others."""
    return tuple(slice((n - 1) // 2, n // 2 + 1) for n in shape)


def histogram_features(cases: CaseSet, processor: VoxelFMImageProcessor, *, region_size: int) -> dict[str, np.ndarray]:
    """Intensity histograms of the very cubes that the models see.

    Returns:
        `histogram`, (n, 34): see `encoders.intensity.histogram`;
        `histogram + centre`, (n, 68): the same of the voxels of the central patch (or 8 patches) beside it.
    """
    whole, centre = {}, {}
    for task in cases.tasks:
        volume = read_volume(task.scan.path)
        for region in task.regions:
            voxels, _ = processor.prepare_region(volume, region.centre_lps, region.edge_mm, region_size)
            hu = (voxels.numpy() * processor.image_std + processor.image_mean).reshape((region_size,) * 3)
            whole[region.identifier] = histogram(hu)
            patches = centre_slices((region_size // processor.patch_size,) * 3)
            middle = tuple(slice(s.start * processor.patch_size, s.stop * processor.patch_size) for s in patches)
            centre[region.identifier] = histogram(hu[middle])
    found = [np.stack([part[identifier] for identifier in cases.identifiers]) for part in (whole, centre)]
    return {HISTOGRAM: found[0], f"{HISTOGRAM} + centre": np.hstack(found)}
