"""How far one set of scans lies from another in a model's features: Fréchet distance and nearest neighbours."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.data.isotropic import prepare_volume
from voxelfm_hf.data.rows import row_id, row_volume
from voxelfm_hf.data.skips import SkipLog
from voxelfm_hf.data.stream.opening import open_source
from voxelfm_hf.data.stream.sources import OpenSource, StreamSource
from voxelfm_hf.hub import load, resolve_model, weight_hash
from voxelfm_hf.store import FeatureStore, is_feature_store
from voxelfm_hf.volumes import ScanError, StoreError

logger = logging.getLogger(__name__)

_FEWEST = 5
_DRAWS = 5
_FARTHEST = 20
_BLOCK = 1024


def check_comparable(data: Path, against: Path, model: str | os.PathLike | None, max_scans: int) -> None:
    """Refuse two data sets that `distance_between` could not compare, before any scan is read.

    Raises:
        StoreError: fewer than five scans on a side, no model where one is needed, or features of different weights.
    """
    counts, weights = [], []
    for folder in (against, data):
        if is_feature_store(folder):
            store = FeatureStore(folder)
            counts.append(len(store.ids))
            weights.append(store.run.get("weight_hash"))
        elif model is None:
            raise StoreError(f"{folder}: it is no feature store, so a model is needed for the comparison; name one.")
        else:
            known = open_source(StreamSource.of(folder), SkipLog()).count
            counts.append(max_scans if known is None else min(known, max_scans))
            weights.append(weight_hash(resolve_model(str(model))))
    _check_counts(*counts)
    if weights[0] != weights[1]:
        raise StoreError(f"{data} and {against}: their features come from different weights; use one model for both.")


def _check_counts(reference: int, scans: int) -> None:
    if min(reference, scans) < _FEWEST:
        raise StoreError(f"a comparison needs at least {_FEWEST} scans on both sides, got {reference} and {scans}.")


def distance_between(
    data: Path,
    against: Path,
    model: str | os.PathLike | None,
    max_scans: int,
    *,
    assume_hu: bool = False,
    spacing: Sequence[float] | None = None,
) -> dict[str, Any]:
    """How far the scans of one data set lie from those of another, each a feature store or embedded here.

    Args:
        data: folder of the scans.
        against: folder of the reference; both as `check_comparable` lets them pass.
        model: folder or Hub id; not needed between two feature stores.
        max_scans: at most so many scans a side are embedded.
        assume_hu, spacing: of scans that were not prepared, as in `row_volume`.

    Returns:
        What `compare_features` returns, with "against" and "model".

    Raises:
        StoreError: fewer than five scans of a side could be read.
    """
    sides = []
    for folder in (against, data):
        if is_feature_store(folder):
            store = FeatureStore(folder)
            sides.append((store.ids, store.cls))
        else:
            assert model is not None
            sides.append(model_features(_volumes(folder, max_scans, assume_hu, spacing), model))
    (_, reference), (ids, features) = sides
    name = None if model is None else Path(model).name
    return {"against": against.resolve().name, "model": name, **compare_features(reference, features, ids=ids)}


def _volumes(
    folder: Path, most: int, assume_hu: bool, spacing: Sequence[float] | None
) -> Iterator[tuple[str, np.ndarray, tuple[float, ...]]]:
    """(id, HU, spacing) of up to `most` scans of a source, drawn with a fixed seed."""
    source = open_source(StreamSource.of(folder), SkipLog())
    given = 0
    for unit in drawn_units(source):
        for position, row in enumerate(source.read(unit)):
            if given == most:
                return
            try:
                if source.prepared:
                    sample = source.sample(row, source.label(unit), min_side=1)
                    yield sample["id"], sample["hu"], sample["spacing"]
                else:
                    name = row_id(row, source.columns, f"{source.label(unit)} row {position}")
                    volume = row_volume(row, source.columns, name=name, assume_hu=assume_hu, spacing=spacing)
                    prepared = prepare_volume(volume)
                    yield name, prepared.hu, prepared.spacing
            except ScanError as error:
                logger.warning("left out: %s", error)
                continue
            given += 1


def drawn_units(source: OpenSource) -> list[int]:
    """The units of a source in the random order in which scans are taken for a comparison."""
    return np.random.default_rng(0).permutation(source.units).tolist()


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features.

    d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau, J. Multivariate Anal. 12:450, 1982).

    Args:
        one, other: (n, C), (m, C); at least two rows each.

    Returns:
        d (not squared), in the units of the features. It grows as sets get smaller: compare equal numbers only.
    """
    first, second = one.astype(np.float64), other.astype(np.float64)
    # tr (C1 C2)^(1/2) is the nuclear norm of X1 X2^T for centred, scaled rows: no C x C matrix root is needed.
    a = (first - first.mean(0)) / np.sqrt(len(first) - 1)
    b = (second - second.mean(0)) / np.sqrt(len(second) - 1)
    if min(len(a), len(b)) > a.shape[1]:
        a, b = np.linalg.qr(a, mode="r"), np.linalg.qr(b, mode="r")
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    squared = ((first.mean(0) - second.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross
    return float(np.sqrt(max(0.0, squared)))


def compare_features(
    reference: np.ndarray, features: np.ndarray, *, ids: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """How far scans lie from a reference set.

    Two views: the Fréchet distance between the sets, next to that between random halves of the reference of the same
    size (their ratio is about 1 for scans like the reference; neither is 0, as small random draws of one set differ,
    even of a set and itself); and for each scan its distance to the nearest reference scan,
    as a percentile of the same distances among the reference scans themselves.

    Args:
        reference: (n, C) features of the reference, such as the training data.
        features: (m, C).
        ids: names of the m scans.
        seed: of the random halves.

    Returns:
        "reference_scans", "scans", "frechet", "frechet_within_reference", "frechet_ratio", "nearest_percentile"
        (quantiles), "beyond_95" (share of scans farther than 95 % of the reference scans are from each other),
        "farthest" ([{"id", "distance", "percentile"}]).

    Raises:
        StoreError: fewer than five scans on a side.
    """
    _check_counts(len(reference), len(features))
    generator = np.random.default_rng(seed)
    size = max(2, min(len(reference) // 2, len(features)))
    within, between = [], []
    for _ in range(_DRAWS):
        order = generator.permutation(len(reference))
        half = reference[order[:size]]
        within.append(frechet_distance(half, reference[order[size : 2 * size]]))
        between.append(frechet_distance(half, features[generator.permutation(len(features))[:size]]))
    own = _nearest(reference, reference, same=True)
    distances = _nearest(features, reference, same=False)
    inside, outside = float(np.mean(within)), float(np.mean(between))
    percentiles = 100 * np.searchsorted(np.sort(own), distances, side="right") / len(own)
    names = list(ids) if ids is not None else [str(index) for index in range(len(features))]
    farthest = np.argsort(-distances, kind="stable")[:_FARTHEST]
    return {
        "reference_scans": len(reference),
        "scans": len(features),
        "frechet": round(outside, 5),
        "frechet_within_reference": round(inside, 5),
        "frechet_ratio": round(outside / max(inside, 1e-12), 3),
        "nearest_percentile": {
            name: round(float(np.percentile(percentiles, q)), 1)
            for name, q in (("p25", 25), ("median", 50), ("p75", 75))
        },
        "beyond_95": round(float((percentiles > 95).mean()), 4),
        "farthest": [
            {"id": names[i], "distance": round(float(distances[i]), 5), "percentile": round(float(percentiles[i]), 1)}
            for i in farthest
        ],
    }


def _nearest(points: np.ndarray, reference: np.ndarray, *, same: bool) -> np.ndarray:
    """Euclidean distance of each point to the nearest reference point (other than itself if the sets are the same)."""
    base = reference.astype(np.float64)
    nearest = np.empty(len(points))
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK].astype(np.float64)
        squared = (block**2).sum(1)[:, None] + (base**2).sum(1)[None] - 2 * block @ base.T
        if same:
            squared[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
        nearest[start : start + _BLOCK] = np.sqrt(np.maximum(squared.min(1), 0))
    return nearest


def model_features(
    volumes: Iterable[tuple[str, np.ndarray, Sequence[float]]], model: str | os.PathLike
) -> tuple[list[str], np.ndarray]:
    """Embed prepared scans with a model.

    Args:
        volumes: (id, HU (D, H, W), spacing (z, y, x) mm), background already cropped.
        model: folder or Hub id.

    Returns:
        (ids, CLS features (n, C) float32).
    """
    import torch

    network, processor = load(str(model))
    ids, rows = [], []
    with torch.inference_mode():
        for name, hu, spacing in volumes:
            inputs = processor(hu, spacing=spacing, crop_background=False, pad_thin=True)
            rows.append(network(inputs["pixel_values"]).pooler_output[0].float().numpy())
            ids.append(name)
    return ids, np.array(rows, np.float32).reshape(len(ids), -1)
