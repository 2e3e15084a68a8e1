"""How much of `voxelfm embed` is spent outside the model, with the base model on scans of realistic size."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch

from voxelfm_hf.eval.speed.reading import noisy_ct
from voxelfm_hf.eval.speed.timing import finish_gpu_work
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.scan_list import list_scans


@dataclass(frozen=True)
class EmbedShare:
    """Seconds of an embedding run and of the model's forwards in it."""

    scans: int
    max_patches: int
    workers: int
    total_seconds: float
    model_seconds: float

    @property
    def outside(self) -> float:
        """Share of the run outside the model."""
        return 1 - self.model_seconds / self.total_seconds

    def __str__(self) -> str:
        return (
            f"embed, base model, {self.scans} scans at {self.max_patches} patches, {self.workers} worker(s): "
            f"{self.outside:.1%} of the time outside the model ({self.total_seconds / self.scans:.2g} s a scan)"
        )


def embed_share(shape: tuple[int, int, int], *, scans: int, max_patches: int, workers: int) -> EmbedShare:
    """Embeds copies of a synthetic CT with a random base model and times the model's forwards among it.

    Args:
        shape: Voxels (D, H, W) of the scans, 1.0 x 0.7 x 0.7 mm.
        scans: How many.
        max_patches: Patch budget.
        workers: Processes that read ahead.
    """
    spent: list[float] = []
    started: list[float] = []

    def before(module, inputs) -> None:
        if isinstance(module, VoxelFMModel):
            started.append(time.perf_counter())

    def after(module, inputs, output) -> None:
        if isinstance(module, VoxelFMModel):
            finish_gpu_work()
            spent.append(time.perf_counter() - started.pop())

    hooks = [
        torch.nn.modules.module.register_module_forward_pre_hook(before),
        torch.nn.modules.module.register_module_forward_hook(after),
    ]
    begin: list[float] = []
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "scans").mkdir()
            image = nibabel.Nifti1Image(noisy_ct(shape).transpose(2, 1, 0), np.diag([-0.7, -0.7, 1.0, 1.0]))
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / "scans" / "0.nii.gz")
            for number in range(1, scans):
                (folder / "scans" / f"{number}.nii.gz").hardlink_to(folder / "scans" / "0.nii.gz")
            VoxelFMModel(VoxelFMConfig()).save_pretrained(folder / "model")
            VoxelFMImageProcessor().save_pretrained(folder / "model")
            tasks = [Task(scan) for scan in list_scans([folder / "scans"])]
            summary = embed_scans(
                tasks,
                folder / "model",
                folder / "store",
                EmbedOptions(max_patches=max_patches, workers=workers),
                on_start=lambda _: begin.append(time.perf_counter()),
            )
            total = time.perf_counter() - begin[0]
    finally:
        for hook in hooks:
            hook.remove()
    if summary.added != scans:
        raise RuntimeError(f"{scans - summary.added} of {scans} scans were not embedded: {summary.failures}")
    return EmbedShare(scans, max_patches, workers, total, sum(spent))
