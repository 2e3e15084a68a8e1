"""VoxelFM models: a folder, a Hub repository, or "tiny"."""

from dataclasses import replace
from pathlib import Path

from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.encoders.base import EncoderSetup, OnScan
from voxelfm_hf.eval.encoders.cubes import Preparation
from voxelfm_hf.features import BatchSummary, EmbedOptions, embed_scans
from voxelfm_hf.hub import EMBEDDED, resolve_model, weight_hash


class VoxelFMEncoder:
    """A model of this package, through `embed_scans`.

    Args:
        setup: Its model, and how scans are prepared.
        untrained: Folder of an untrained twin in place of the model.
        seeded: Whether its weights depend on the seed of the setup.
    """

    gives_patches = True

    def __init__(self, setup: EncoderSetup, *, untrained: Path | None = None, seeded: bool = False):
        self.folder = untrained or resolve_model(setup.model or EMBEDDED)
        self.is_baseline, self.seeded = untrained is not None, seeded
        self.hash = weight_hash(self.folder)
        preparation = replace(Preparation.of_setup(setup, model=str(self.folder)), title="the model")
        self.preprocessing = preparation.sentence
        tiles = {"tile": setup.tile} if setup.tile else {}
        self.settings = {**preparation.settings(), **tiles, "dtype": setup.dtype}
        self.options = EmbedOptions(
            max_patches=setup.max_patches,
            region_size=preparation.region_size,
            voxel_mm=setup.voxel_mm,
            tile=setup.tile,
            dtype=setup.dtype,
            pad=True,
        )

    @property
    def fingerprint(self) -> str:
        """The weights and the preparation."""
        return f"{self.hash} {sorted(self.settings.items())}"

    def fill(self, data: BenchmarkData, store: Path, *, patches: bool = False, on_scan: OnScan = None) -> BatchSummary:
        """See `Encoder.fill`."""
        return embed_scans(data.tasks, self.folder, store, replace(self.options, patches=patches), on_scan=on_scan)


def make(setup: EncoderSetup) -> VoxelFMEncoder:
    """The model of the setup."""
    return VoxelFMEncoder(setup)
