"""An encoder of your own beside the others: `python -m voxelfm_hf.examples.benchmark_own_encoder`.

All that a benchmark needs of an encoder is in the class: a scan in, a vector out. In a recipe its kind is the module
that has `make`. The chests are synthetic, and so is every number.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.benchmark.run import run_recipe
from voxelfm_hf.eval.encoders.base import Encoded, EncoderSetup, VolumeEncoder
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry
from voxelfm_hf.scan_list import Region
from voxelfm_hf.volumes import Volume


class SliceMeans(VolumeEncoder):
    """The mean HU of ten slabs from the feet to the head: put your network here."""

    preprocessing = "ten slabs of equal thickness, the mean HU of each"

    def settings(self) -> dict[str, Any]:
        return {"slabs": 10}  # whatever changes the features

    def encode(self, volume: Volume, region: Region | None) -> Encoded:
        vector = np.array([slab.mean() for slab in np.array_split(volume.hu, 10)])
        depth, height, width = map(float, volume.hu.shape)
        whole = VoxelFMGeometry((1, 1, 1), (0.0, 0.0, 0.0), (depth, height, width), volume.spacing)
        return Encoded(vector, whole, patch_size=1)


def make(setup: EncoderSetup) -> SliceMeans:
    return SliceMeans()


RECIPE = """
data: phantoms
data_options: {count: 60, scans_each: 1, shape: [48, 64, 64]}
max_patches: 500
encoders:
  - {kind: voxelfm, model: tiny}
  - {kind: voxelfm_hf.examples.benchmark_own_encoder, name: slice means}
tasks:
  - {task: classification, targets: [pleural_effusion, cardiomegaly]}
fractions: [1.0]
seeds: [0]
replicates: 200
"""


def main(out: str = "example") -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "own_encoder.yaml"
    recipe.write_text(RECIPE)
    finished = run_recipe(recipe, data=folder / "benchmark_chests", out=folder / "benchmark")
    for failure in finished.failures:
        print(failure, file=sys.stderr)
    print((folder / "benchmark" / "results.md").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", default="example", help="folder for all that is made")
    main(**vars(parser.parse_args()))
