"""How far one set of scans lies from another in a model's features: Fréchet distance and nearest neighbours."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from voxelfm_hf.volumes import StoreError

_FEWEST = 5
_DRAWS = 5
_FARTHEST = 20
_BLOCK = 1024


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
    size (their ratio is 1 for scans like the reference); and for each scan its distance to the nearest reference scan,
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
    if min(len(reference), len(features)) < _FEWEST:
        raise StoreError(
            f"a comparison needs at least {_FEWEST} scans on both sides, got {len(reference)} and {len(features)}."
        )
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

    from voxelfm_hf.hub import load

    network, processor = load(str(model))
    ids, rows = [], []
    with torch.inference_mode():
        for name, hu, spacing in volumes:
            inputs = processor(hu, spacing=spacing, crop_background=False, pad_thin=True)
            rows.append(network(inputs["pixel_values"]).pooler_output[0].float().numpy())
            ids.append(name)
    return ids, np.array(rows, np.float32).reshape(len(ids), -1)
