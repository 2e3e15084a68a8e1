"""The folder of a prepared data set while scans are added: one run at a time, one way of preparing, no scan twice."""

import csv
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import voxelfm_hf
from voxelfm_hf.data.prepare.job import JobSettings
from voxelfm_hf.data.shards import SCHEMA, read_small, read_volumes, shard_files, volume_row, write_shards
from voxelfm_hf.files import written_file
from voxelfm_hf.volumes import StoreError

logger = logging.getLogger(__name__)


def check_settings(out: Path, settings: JobSettings) -> None:
    """Refuse to mix scans that were prepared differently; note the settings of a new folder."""
    if settings.compression not in ("zstd", "lz4", "none"):
        raise StoreError(f'compression must be "zstd", "lz4" or "none", got {settings.compression!r}.')
    file = out / "prepare.json"
    mine: dict[str, Any] = {
        "crop_background": settings.crop_background,
        "hu_range": list(settings.hu_range),
        "min_spacing_mm": settings.min_spacing_mm,
        "anonymous_ids": settings.anonymous_ids,
    }
    if file.exists():
        try:
            theirs = json.loads(file.read_text())["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise StoreError(f"{file}: it is damaged; delete it or prepare into a new folder.") from None
        for key, value in mine.items():
            if theirs.get(key) != value:
                raise StoreError(
                    f"{out}: it was prepared with {key} = {theirs.get(key)}, now it is {value}; use the same settings "
                    "or a new folder."
                )
        return
    if shard_files(out / "data"):
        raise StoreError(f"{out}: it holds Parquet files but no prepare.json; name a new folder.")
    with written_file(file) as temporary:
        facts = {"settings": mine, "voxelfm_hf": voxelfm_hf.__version__, "columns": SCHEMA.names}
        temporary.write_text(json.dumps(facts, indent=2))


def known_scans(out: Path) -> tuple[set[str], dict[str, str]]:
    """(ids in the shards, duplicates named by earlier runs); broken shards are removed, their scans are done again."""
    known: set[str] = set()
    for shard in shard_files(out / "data"):
        try:
            known |= {row["id"] for row in read_small(shard, ["id"])}
        except StoreError as error:
            logger.warning("%s", error)
            os.replace(shard, shard.with_suffix(".broken"))
    duplicates = {}
    file = out / "duplicates.csv"
    if file.exists():
        with open(file, newline="", encoding="utf-8") as handle:
            duplicates = {row["id"]: row["duplicate_of"] for row in csv.DictReader(handle)}
    return known, {one: other for one, other in duplicates.items() if other in known}


def drop_repeated(out: Path, failed: dict[str, str], compression: str) -> dict[str, str]:
    """Drop scans whose content (or id) is in the data set already, the later one; id -> id of the one that is kept."""
    first_of: dict[str, str] = {}
    ids: set[str] = set()
    duplicates: dict[str, str] = {}
    shards = sorted(shard_files(out / "data"), key=_age)
    rows = [
        (shard, position, row)
        for shard in shards
        for position, row in enumerate(read_small(shard, ["id", "content_hash"]))
    ]
    older = [entry for entry in rows if "-of-" in entry[0].name]
    # Scans of earlier runs stay; among new ones the first id in alphabetical order does, whatever the shuffle.
    newer = sorted((entry for entry in rows if "-of-" not in entry[0].name), key=lambda entry: entry[2]["id"])
    drop: dict[Path, list[int]] = {}
    for shard, position, row in older + newer:
        item, content = row["id"], row["content_hash"]
        if item in ids:
            failed[item] = "its id occurs more than once; make ids unique"
        elif content in first_of:
            duplicates[item] = first_of[content]
            logger.warning("%s was dropped: it has the same content as %s", item, first_of[content])
        else:
            first_of[content] = item
            ids.add(item)
            continue
        drop.setdefault(shard, []).append(position)
    for shard, positions in drop.items():
        _rewrite(shard, positions, compression)
    return duplicates


def _rewrite(shard: Path, drop: list[int], compression: str) -> None:
    """Write a shard again without the rows of these positions; remove it if none is left."""

    def kept() -> Iterable[dict[str, Any]]:
        for position, row in enumerate(read_volumes(shard)):
            if position not in drop:
                hu, spacing = row.pop("hu"), row.pop("spacing")
                row.pop("shape")
                yield volume_row(hu, spacing, **row)

    if not write_shards([shard], kept(), compression=compression):
        shard.unlink()


def _age(shard: Path) -> tuple[bool, str]:
    return ("-of-" not in shard.name, shard.name)


def number_shards(folder: Path) -> list[Path]:
    """Number the shards as the Hub does; a crash in between leaves odd names, which the next run puts right."""
    files = sorted(shard_files(folder), key=_age)
    wanted = [folder / f"train-{index:05d}-of-{len(files):05d}.parquet" for index in range(len(files))]
    free = [path for path in wanted if path not in set(files)]
    for file in files:
        if file not in set(wanted):
            os.replace(file, free.pop(0))
    return wanted


def write_table(path: Path, header: Sequence[str], rows: Iterable[tuple[str, str]]) -> None:
    with written_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(sorted(rows))


def add_names(path: Path, names: dict[str, str]) -> None:
    """The list behind anonymous ids, for its owner only; it grows over runs."""
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            names = {row["id"]: row["original"] for row in csv.DictReader(file)} | names
    write_table(path, ["id", "original"], names.items())
    os.chmod(path, 0o600)
