"""What a run was trained on, in a form that can be compared and published: counts and a fingerprint, no names."""

import hashlib
from pathlib import Path
from typing import Any

from voxelfm_hf.data.shards import shard_files
from voxelfm_hf.data.stream import SampleStream
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe


def data_facts(recipe: PretrainRecipe, stream: SampleStream) -> dict[str, Any]:
    """Describe the data of a run.

    The fingerprint covers order, number and size of the files of local sources, and name and revision of remote ones.

    Args:
        recipe: of the run.
        stream: its opened stream.

    Returns:
        `sources` (name, scans, weight), `fingerprint`, `skipped` (their number; names stay in the run's skipped.jsonl).
    """
    digest = hashlib.blake2b(digest_size=8)
    for source in recipe.sources:
        folder = Path(source.data)
        if folder.is_dir():
            # Cards and pictures of a prepared data set may be made anew; its shards are the data.
            for file in shard_files(folder) or sorted(path for path in folder.rglob("*") if path.is_file()):
                digest.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
        elif folder.is_file():
            digest.update(f"{folder.name} {folder.stat().st_size}\n".encode())
        else:
            digest.update(f"{source.data} {source.config} {source.split} {source.revision}\n".encode())
    return {
        "sources": [
            {"name": opened.name, "scans": opened.count, "weight": float(weight)}
            for opened, weight in zip(stream.sources, stream.weights, strict=True)
        ],
        "fingerprint": digest.hexdigest(),
        "skipped": len(stream.skips.entries()),
    }
