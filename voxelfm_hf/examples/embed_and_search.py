"""Embed a folder of scans and list the neighbours of each: `python -m voxelfm_hf.examples.embed_and_search [SCANS]`."""

import argparse
from pathlib import Path

from voxelfm_hf.data.phantom.scan_set import write_phantom_set
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.hub import embedded_model
from voxelfm_hf.scan_list import list_scans
from voxelfm_hf.store import FeatureStore


def main(scans: str | None = None, out: str = "example") -> None:
    if scans is None:
        write_phantom_set(f"{out}/chests", count=24, shape=(48, 64, 64))
        scans = f"{out}/chests/images"
    store = Path(out, "features")
    embed_scans([Task(scan) for scan in list_scans([scans])], embedded_model(), store, EmbedOptions())

    features = FeatureStore(store)
    cls = features.cls - features.cls.mean(0)  # what all scans share tells none of them apart
    cls /= (cls**2).sum(1, keepdims=True) ** 0.5
    for name, similarity in zip(features.ids, cls @ cls.T, strict=True):
        nearest = similarity.argsort()[::-1][1:4]
        print(name, *(f"{features.ids[row]} ({similarity[row]:.2f})" for row in nearest), sep="  ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="?", help="folder of scans; by default synthetic chests, made in OUT")
    parser.add_argument("out", nargs="?", default="example", help="folder for all that is made")
    main(**vars(parser.parse_args()))
