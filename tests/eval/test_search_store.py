"""Searching a store with one of its scans and with a new one, as a function and as a command."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.eval.small_model import save_small_model
from voxelfm_hf import read_volume
from voxelfm_hf.cli import app
from voxelfm_hf.eval.search.query import query_vector, stored_vector
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.scan_list import Region, list_scans
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes.errors import ModelError, ScanError, StoreError

SPACING = (1.5, 1.0, 1.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Five volumes, a small model, stores of whole scans in tiles and of regions."""
    folder = tmp_path_factory.mktemp("made")
    save_small_model(folder / "model", max_patches=200)
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir()
    for i in range(5):
        np.save(folder / "scans" / f"{i}.npy", rng.integers(-900, 900, (12, 16, 20)).astype(np.int16))
    scans = list_scans([folder / "scans"])
    whole = EmbedOptions(spacing=SPACING, dtype="float32", voxel_mm=1.0, tile=8)
    embed_scans([Task(scan) for scan in scans], folder / "model", folder / "whole", whole)
    regions = [Task(scan, (Region(f"{scan.identifier}#0", (9.0, 8.0, 8.0), 8.0),)) for scan in scans]
    embed_scans(regions, folder / "model", folder / "regions", EmbedOptions(spacing=SPACING, dtype="float32"))
    return folder


def test_a_stored_scan_as_a_new_file_has_the_vector_of_its_row(made):
    volume = read_volume(made / "scans" / "3.npy", spacing=SPACING)
    whole, regions = FeatureStore(made / "whole"), FeatureStore(made / "regions")
    found = query_vector(whole, volume, model=made / "model")
    np.testing.assert_allclose(found, stored_vector(whole, "3.npy"), atol=1e-5)
    region = Region("r", (9.0, 8.0, 8.0), 8.0)
    found = query_vector(regions, volume, region=region, model=made / "model")
    np.testing.assert_allclose(found, stored_vector(regions, "3.npy#0"), atol=1e-5)


def test_what_cannot_be_compared_is_one_sentence(made, tmp_path):
    volume = read_volume(made / "scans" / "3.npy", spacing=SPACING)
    whole = FeatureStore(made / "whole")
    with pytest.raises(StoreError, match="has no scan x"):
        stored_vector(whole, "x")
    with pytest.raises(ModelError, match="say where that model is"):
        query_vector(whole, volume)
    with pytest.raises(ModelError, match="other weights"):
        query_vector(whole, volume, model="tiny")
    with pytest.raises(ScanError, match="holds whole scans"):
        query_vector(whole, volume, region=Region("r", (0, 0, 0), 5.0), model=made / "model")
    with pytest.raises(ScanError, match="holds regions: say which with --point"):
        query_vector(FeatureStore(made / "regions"), volume, model=made / "model")


def test_the_command_lists_the_most_similar_first(made):
    def search(*words):
        done = CliRunner().invoke(app, [str(word) for word in ("search", made / "whole", *words, "--json")])
        return done, [json.loads(line) for line in done.stdout.splitlines()]

    scan = ("--scan", made / "scans" / "2.npy", "--spacing", "1.5,1,1", "--model", made / "model")
    _, found = search(*scan, "-k", 5)
    assert found[0] == {"id": "2.npy", "similarity": 1.0} and len(found) == 5
    cls = FeatureStore(made / "whole").cls
    unit = cls / np.linalg.norm(cls, axis=1, keepdims=True)
    expected = [f"{i}.npy" for i in np.argsort(-(unit @ unit[2])) if i not in (2, 0)]
    _, found = search("--id", "2.npy", "--without", "0.npy")
    assert [answer["id"] for answer in found] == expected
    wrong, _ = search("--id", "nothing")
    assert isinstance(wrong.exception, StoreError) and "has no scan nothing" in str(wrong.exception)
    assert search()[0].exit_code == 2
    for needless in (("--point", "1,2,3,9"), ("--model", "tiny"), ("--spacing", "1,1,1"), ("--assume-hu",)):
        done, _ = search("--id", "2.npy", *needless)
        assert done.exit_code == 2 and needless[0] in done.stderr
