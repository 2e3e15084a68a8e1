"""A bounded number of damaged files of every format; fuzz_readers.py runs thousands in limited processes."""

import random
import resource


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


def test_damaged_series_folders(tmp_path, writers, fuzz) -> None:
    rng = random.Random(3)
    paths = writers.write_series(tmp_path / "series", writers.ct_array())
    for _ in range(60):
        victims = rng.sample(paths, rng.randint(1, 3))
        kept = [path.read_bytes() for path in victims]
        for path, data in zip(victims, kept, strict=True):
            path.write_bytes(fuzz.mutate(rng, data, path.name))
        fuzz.check(tmp_path / "series")
        for path, data in zip(victims, kept, strict=True):
            path.write_bytes(data)
