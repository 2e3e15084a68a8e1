"""What a data set of CT scans is: distributions, tissue, body regions, near-duplicates, pictures, distance to another.

`describe` writes into a folder:

    README.md          data set card with the YAML header that the Hub and `datasets.load_dataset` read
    description.json   all numbers
    pictures/*.png     histograms (of both, where it is compared with another) and a contact sheet
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxelfm_hf.data.describe.card import write_card
from voxelfm_hf.data.describe.pictures import save_contact_sheet, save_histograms
from voxelfm_hf.data.describe.set_distance import check_comparable, distance_between, drawn_units
from voxelfm_hf.data.fingerprint import near_duplicates
from voxelfm_hf.data.measure import AXES, PERCENTILES, TISSUES_HU, measure_volume
from voxelfm_hf.data.rows import row_id, row_volume
from voxelfm_hf.data.shards import SMALL_COLUMNS, is_prepared_data, shard_files
from voxelfm_hf.data.skips import SkipLog
from voxelfm_hf.data.stream.opening import open_source
from voxelfm_hf.data.stream.sources import StreamSource
from voxelfm_hf.failures import FAILURES_FILE, read_failures, write_failures
from voxelfm_hf.files import written_file
from voxelfm_hf.store import FeatureStore, is_feature_store
from voxelfm_hf.volumes import ScanError, StoreError

logger = logging.getLogger(__name__)

_QUANTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
_MOST_LISTED = 1000
_CONTACT_SHEET = 24


def describe(
    data: str | os.PathLike,
    *,
    out: str | os.PathLike | None = None,
    against: str | os.PathLike | None = None,
    model: str | os.PathLike | None = None,
    max_scans: int = 500,
    license: str | None = None,
    assume_hu: bool = False,
    spacing: tuple[float, float, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_failure: Callable[[str, str], None] | None = None,
) -> dict[str, Any]:
    """Characterise a data set and write its card, numbers and pictures.

    Args:
        data: a folder made by `prepare`, a feature store, or a folder (or other source) of scans, which are then read.
        out: where to write; by default into a prepared data set's own folder. Needed for the other kinds.
        against: another data set of any of these kinds: how far the scans lie from it, in a model's features.
        model: the model for that comparison (folder or Hub id); not needed between two feature stores.
        max_scans: at most so many scans a side are embedded for the comparison, and measured of a reference of scans.
        license: for the card.
        assume_hu: of scans that were not prepared, here and in `against`: take their values as HU even if they do not
            look like it.
        spacing: (z, y, x) mm of those that state none themselves, as .npy files without a sidecar.
        progress: called with (scans read, scans in all) where scans have to be read.
        on_failure: called with id and reason of every scan that cannot be read; `out`/failures.csv lists them.

    Returns:
        What description.json holds.

    Raises:
        StoreError: nothing to describe there, or sides that cannot be compared (see `check_comparable`).
    """
    folder = Path(data)
    is_prepared = is_prepared_data(folder)
    failures: dict[str, str] = {}
    if out is None and not is_prepared:
        raise StoreError(f"{data}: name a folder for the description (only prepared data sets keep their own).")
    out = folder if out is None else Path(out)
    if against is not None:
        check_comparable(folder, Path(against), model, max_scans)
    facts = _known_facts(folder)
    if facts is None:
        facts, failures = _scan_facts(data, progress, assume_hu=assume_hu, spacing=spacing)
        write_failures(out, failures)
        for identifier, reason in failures.items():
            if on_failure is not None:
                on_failure(identifier, reason)
    if failures and not facts["id"]:
        reason = next(iter(failures.values()))
        raise StoreError(
            f"{data}: none of {len(failures)} scans could be read, see {out / FAILURES_FILE}; first: {reason}"
        )
    if not facts["id"]:
        raise StoreError(f"{data}: it holds no scans to describe.")

    description = _summary(facts)
    description["name"] = folder.resolve().name or "scans"
    description["prepared"] = is_prepared
    description |= _left_out(folder) if is_prepared else {"failures": len(failures)}
    reference = None
    if against is not None:
        against = Path(against)
        distance = distance_between(folder, against, model, max_scans, assume_hu=assume_hu, spacing=spacing)
        description["distance"] = distance
        others = _known_facts(against)
        if others is None:
            others, _ = _scan_facts(against, None, assume_hu=assume_hu, spacing=spacing, most=max_scans)
        reference = (distance["against"], others)
    out.mkdir(parents=True, exist_ok=True)
    pictures = [save_histograms(facts, out / "pictures" / "distributions.png", reference=reference)]
    if is_prepared:
        sheet = save_contact_sheet(folder, out / "pictures" / "scans.png", most=_CONTACT_SHEET)
        pictures += [] if sheet is None else [sheet]
    with written_file(out / "description.json") as temporary:
        temporary.write_text(json.dumps(description, indent=2, allow_nan=False), encoding="utf-8")
    write_card(out, description, pictures, license=license)
    return description


def _known_facts(folder: Path) -> dict[str, list] | None:
    """What prepared data or a feature store tell without reading scans; None of a source that is neither."""
    if is_prepared_data(folder):
        return _prepared_facts(folder)
    return _store_facts(folder) if is_feature_store(folder) else None


def _store_facts(folder: Path) -> dict[str, list]:
    """What a feature store knows of its scans: geometry and notes."""
    table = FeatureStore(folder).table
    return {
        "id": table["id"].to_pylist(),
        "original_spacing": table["spacing_mm"].to_pylist(),
        "field_of_view_mm": table["field_of_view_mm"].to_pylist(),
        "notes": table["notes"].to_pylist(),
    }


def _prepared_facts(folder: Path) -> dict[str, list]:
    """Columns of all shards, voxels left out: {"id": [...], "fingerprint": [array], ...}."""
    facts: dict[str, list] = {}
    for file in shard_files(folder):
        try:
            table = pq.read_table(file, columns=SMALL_COLUMNS, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s is left out: %s", file.name, str(error).split("\n")[0])
            continue
        nested = table["facts"].combine_chunks()
        for name in table.drop_columns(["facts"]).column_names:
            facts.setdefault(name, []).extend(table[name].to_pylist())
        for field in nested.type:
            values = nested.field(field.name)
            if field.name == "fingerprint":
                flat = values.flatten().to_numpy(zero_copy_only=False)
                facts.setdefault("fingerprint", []).extend(flat.reshape(table.num_rows, -1))
            else:
                facts.setdefault(field.name, []).extend(values.to_pylist())
    return facts or {"id": []}


def _scan_facts(
    data: Any,
    progress: Callable[[int, int], None] | None,
    *,
    assume_hu: bool,
    spacing: tuple[float, float, float] | None,
    most: int | None = None,
) -> tuple[dict[str, list], dict[str, str]]:
    """Measure scans that were not prepared, all or `most` random ones; reasons by id for those that cannot be read."""
    skips = SkipLog()
    source = open_source(StreamSource.of(data), skips)
    facts: dict[str, list] = {"id": []}
    failures: dict[str, str] = {}
    for done, unit in enumerate(range(source.units) if most is None else drawn_units(source), 1):
        if len(facts["id"]) == most:
            break
        for position, row in enumerate(source.read(unit)):
            name = row_id(row, source.columns, f"{source.label(unit)} row {position}")
            try:
                volume = row_volume(row, source.columns, name=name, assume_hu=assume_hu, spacing=spacing)
            except ScanError as error:
                failures[name] = str(error)
                continue
            measured = measure_volume(volume.hu, volume.spacing)
            row_facts = {
                "id": name,
                "source": source.name,
                "original_shape": list(volume.hu.shape),
                "original_spacing": list(volume.spacing),
                "original_orientation": volume.grid.orientation,
                "notes": list(volume.notes),
                **measured,
                "fingerprint": np.array(measured["fingerprint"], np.int16),
            }
            for key, value in row_facts.items():
                facts.setdefault(key, []).append(value)
        if progress is not None:
            progress(done, source.units)
    return facts, {entry["id"]: entry["reason"] for entry in skips.entries()} | failures


def _summary(facts: Mapping[str, list]) -> dict[str, Any]:
    """All numbers of a description; what the data set does not know is left out."""
    summary: dict[str, Any] = {"scans": len(facts["id"])}
    patients = [p for p in facts.get("patient", []) if p is not None]
    if patients:
        summary["patients"] = len(set(patients))
        summary["scans_without_patient"] = len(facts["id"]) - len(patients)
    for key, unit in (("original_spacing", "mm"), ("field_of_view", "mm"), ("original_shape", "voxels")):
        values = facts.get(f"{key}_mm" if key == "field_of_view" else key)
        if values:
            summary[f"{key}_{unit}"] = _by_axis(values)
    if "spacing" in facts:
        summary["spacing_mm"] = _by_axis(facts["spacing"])
        summary["shape_voxels"] = _by_axis(facts["shape"])
        summary["voxels"] = int(sum(int(np.prod(shape, dtype=np.int64)) for shape in facts["shape"]))
    if "hu_percentiles" in facts:
        table = np.array(facts["hu_percentiles"], float)
        summary["hu_percentiles"] = {f"p{q}": _quantiles(table[:, i]) for i, q in enumerate(PERCENTILES)}
        summary["tissue_fractions"] = {name: _quantiles(facts[name]) for name in TISSUES_HU}
    if "noise_hu" in facts:
        summary["noise_hu"] = _quantiles(facts["noise_hu"])
    for key in ("source", "region", "contrast", "original_orientation", "manufacturer", "kernel"):
        if any(value is not None for value in facts.get(key, [])):
            counts = Counter("unknown" if value is None else str(value) for value in facts[key])
            summary[key] = dict(counts.most_common())
    if "region" in facts and len(summary.get("source", {})) > 1:
        pairs = Counter(zip(facts["source"], facts["region"], strict=True))
        summary["region_by_source"] = {
            source: {region: n for (s, region), n in pairs.most_common() if s == source} for source in summary["source"]
        }
    if any(facts.get("notes", [])):
        summary["notes"] = dict(Counter(_without_numbers(note) for notes in facts["notes"] for note in notes or []))
    if "fingerprint" in facts:
        pairs_found = near_duplicates(facts["id"], np.array(facts["fingerprint"]))
        summary["near_duplicates"] = pairs_found[:_MOST_LISTED]
        summary["near_duplicates_count"] = len(pairs_found)
    return summary


def _left_out(folder: Path) -> dict[str, Any]:
    """How many scans failed and how many were exact duplicates, from what `prepare` wrote."""
    counts = {"failures": len(read_failures(folder))}
    duplicates = folder / "duplicates.csv"
    if duplicates.is_file():
        counts["exact_duplicates"] = max(0, len(duplicates.read_text(encoding="utf-8").splitlines()) - 1)
    return counts


def _quantiles(values: Any) -> dict[str, float | int] | None:
    """Quantiles of the known values, their mean and number; None if there are none."""
    known = np.array([v for v in values if v is not None], float)
    if not len(known):
        return None
    numbers: dict[str, float | int] = {name: round(float(np.percentile(known, q)), 4) for name, q in _QUANTILES.items()}
    return numbers | {"mean": round(float(known.mean()), 4), "known": len(known)}


def _by_axis(triples: list) -> dict[str, Any]:
    table = np.array(triples, float)
    return {axis: _quantiles(table[:, index]) for index, axis in enumerate(AXES)}


def _without_numbers(note: str) -> str:
    """Notes differ in their numbers; counted without them."""
    return re.sub(r"-?\d[\d.,]*", "N", note)
