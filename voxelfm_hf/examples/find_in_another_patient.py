"""Where a second scan looks like a place in the first: `python -m voxelfm_hf.examples.find_in_another_patient [A B]`.

Writes a picture of each scan and the map of similarity as NIfTI on the second scan's own grid: load both in 3D Slicer.
"""

import argparse
from pathlib import Path

import nibabel
import numpy as np

from voxelfm_hf import load, read_volume
from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.features import embed_volume
from voxelfm_hf.features.likeness import likeness, on_scan_grid, patch_at, patch_box, patch_centre
from voxelfm_hf.pictures import body_centre, save_picture


def main(first: str | None = None, second: str | None = None, out: str = "example") -> None:
    paths = [first, second]
    a, b = (
        read_volume(path) if path else make_phantom(seed, shape=(64, 80, 80)).volume
        for seed, path in enumerate(paths, start=1)
    )
    model, processor = load("tiny")
    patches_a, where_a = embed_volume(model, processor, a)
    patches_b, where_b = embed_volume(model, processor, b)

    place = body_centre(a.hu)  # any voxel (z, y, x) of the first scan
    patch = patch_at(place, patches_a.shape[:3], patch_box(where_a))
    if patch is None:
        raise SystemExit("this place lies outside the body")
    similar = likeness(patches_b, patches_a[patch])
    best = patch_centre(np.argwhere(similar == similar.max())[0].tolist(), similar.shape, patch_box(where_b))
    heat = on_scan_grid(similar, patch_box(where_b), b)

    folder = Path(out)
    save_picture(a, folder / "place.png", position=place)
    save_picture(b, folder / "likest.png", position=best, heat=heat, heat_limits=(0.2, 1.0))
    nibabel.save(b.restore(heat), folder / "similarity.nii.gz")
    print(f"voxel {place} of the first scan is most like voxel {tuple(round(c) for c in best)} of the second")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", nargs="?", help="scan; by default a synthetic chest")
    parser.add_argument("second", nargs="?", help="scan of somebody else; by default another synthetic chest")
    parser.add_argument("out", nargs="?", default="example", help="folder for all that is made")
    main(**vars(parser.parse_args()))
