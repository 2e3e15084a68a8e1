"""Pre-train a model on a folder of scans and use it: `python -m voxelfm_hf.examples.pretrain_on_own_scans [SCANS]`.

A minute of the recipe `smoke`, which teaches nothing yet: for real, take `tiny` or `base` and read the page beside the
recipes on batch, learning rate and steps. What else is given changes the recipe: `--run.total_steps=20`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from voxelfm_hf import load, read_volume
from voxelfm_hf.data.phantom.scan_set import write_phantom_set
from voxelfm_hf.data.prepare import prepare
from voxelfm_hf.volumes import find_scans


def main(scans: str | None = None, out: str = "example", *changes: str) -> None:
    if scans is None:
        write_phantom_set(f"{out}/chests", count=24, shape=(48, 64, 64))
        scans = f"{out}/chests/images"
    prepare(scans, f"{out}/shards")
    run = Path(out, "run")
    # On several GPUs: accelerate launch -m voxelfm_hf.training.pretrain smoke --data SHARDS --output_dir RUN
    train = [sys.executable, "-m", "voxelfm_hf.training.pretrain", "smoke"]
    subprocess.run([*train, "--data", f"{out}/shards", "--output_dir", str(run), *changes], check=True)
    model, processor = load(run / "teacher")
    features = model(**processor(read_volume(next(find_scans(scans))))).pooler_output
    print(f"{run / 'teacher'}: an ordinary model folder, features {tuple(features.shape)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="?", help="folder of scans; by default synthetic chests, made in OUT")
    parser.add_argument("out", nargs="?", default="example", help="folder for all that is made")
    options, changes = parser.parse_known_args()  # changes of the recipe, such as --run.total_steps=20
    main(options.scans, options.out, *changes)
