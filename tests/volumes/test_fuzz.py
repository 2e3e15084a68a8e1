"""A bounded number of damaged files of every format; fuzz_readers.py runs thousands in limited processes."""

import random
import resource

import numpy as np
import pydicom.pixels
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from voxelfm_hf.volumes import read_volume

SYNTAXES = {"jls.dcm": JPEGLSLossless, "j2k.dcm": JPEG2000Lossless, "rle.dcm": RLELossless}


def test_damaged_files_give_a_volume_or_a_sentence(tmp_path, writers, fuzz) -> None:
    (tmp_path / "seeds").mkdir()
    seeds = fuzz.make_seeds(tmp_path / "seeds", writers)
    assert len(seeds) >= 12 and "tiles.dcm" in seeds
    for name in seeds:
        path = tmp_path / "seeds" / name
        assert fuzz.check(path) == ("refused" if name == "jpeg.dcm" else "read"), name  # jpeg.dcm states no rescale
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"read": 0, "refused": 0}
    rng = random.Random(7)
    for number in range(400):
        name = sorted(seeds)[number % len(seeds)]
        path = tmp_path / name
        path.write_bytes(fuzz.mutate(rng, seeds[name], name))
        outcomes[fuzz.check(path)] += 1
    assert outcomes["read"] > 40 and outcomes["refused"] > 40
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kB


@pytest.mark.parametrize("seed", ["slice.dcm", "jls.dcm", "j2k.dcm", "rle.dcm"])
def test_damaged_series_folders(tmp_path, writers, fuzz, seed) -> None:
    """Series, because their slices are decoded several at a time and by threads."""
    rng = random.Random(3)
    hu = writers.ct_array((20, 34, 33)).clip(-1024)
    paths = writers.write_series(tmp_path / "series", hu)
    if seed != "slice.dcm":
        if not pydicom.pixels.get_encoder(syntax := SYNTAXES[seed]).is_available:
            pytest.skip("needs pyjpegls, pylibjpeg and pylibjpeg-openjpeg to write compressed test files")
        for path in paths:
            item = pydicom.dcmread(path)
            item.compress(syntax, generate_instance_uid=False)
            item.save_as(path)
    for _ in range(40):
        victims = rng.sample(paths, rng.randint(1, 3))
        kept = [path.read_bytes() for path in victims]
        for path, data in zip(victims, kept, strict=True):
            path.write_bytes(fuzz.mutate(rng, data, seed))
        fuzz.check(tmp_path / "series")
        for path, data in zip(victims, kept, strict=True):
            path.write_bytes(data)
    assert np.array_equal(read_volume(tmp_path / "series").hu, hu)
