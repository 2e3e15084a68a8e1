"""How scans are recognised again: a hash of the same voxels, and a fingerprint that near-duplicates share."""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

# Copies of whole scans (less padding, half the slices, another grid, added noise) stay below 0.14, different patients
# above 0.2; copies of crops of a few slices can reach 0.25 on another grid and are then missed.
NEAR_DUPLICATE = 0.15
_MOST_COMPARED = 100_000
_FINGERPRINT_EDGE = 8
_TISSUE_HU = -300


def content_hash(hu: np.ndarray, spacing: Sequence[float]) -> str:
    """Hash of a scan's voxels and geometry: equal for the same scan in any format and orientation."""
    digest = hashlib.sha256()
    digest.update(json.dumps([list(hu.shape), [round(float(s), 3) for s in spacing], str(hu.dtype)]).encode())
    digest.update(np.ascontiguousarray(hu).data)
    return digest.hexdigest()


def fingerprint(hu: np.ndarray) -> list[int]:
    """Means of 8 x 8 x 8 blocks of the body's box in HU, clipped to [-1000, 1000]; near-duplicates have close ones.

    Along each axis the box leaves out 5 % of the tissue at both ends (with fractional borders), so that padding,
    a table, another grid or noise hardly move it.
    """
    tissue_z = np.zeros(hu.shape[0])
    tissue_y, tissue_x = np.zeros(hu.shape[1]), np.zeros(hu.shape[2])
    for z, plane in enumerate(hu):
        tissue = plane > _TISSUE_HU
        tissue_z[z] = np.count_nonzero(tissue)
        tissue_y += np.count_nonzero(tissue, axis=1)
        tissue_x += np.count_nonzero(tissue, axis=0)
    weights_z, weights_y, weights_x = (_block_weights(counts) for counts in (tissue_z, tissue_y, tissue_x))
    # Along z plane by plane, so that no float copy of the whole scan is made.
    blocks = np.zeros((_FINGERPRINT_EDGE, *hu.shape[1:]), np.float32)
    for z, plane in enumerate(hu):
        for block in np.flatnonzero(weights_z[:, z]):
            blocks[block] += weights_z[block, z] * np.clip(plane, -1000, 1000)
    means = weights_y @ blocks @ weights_x.T
    return [int(v) for v in np.rint(means).ravel()]


def _block_weights(tissue: np.ndarray) -> np.ndarray:
    """(8, n) weights that average an axis over 8 equal parts of its box; border voxels count by their share."""
    mass = np.concatenate([[0.0], np.cumsum(tissue)])
    low, high = 0.0, float(len(tissue))
    if mass[-1]:
        # Ties (empty planes) are resolved towards the tissue by a slope too small to matter.
        steady = mass / mass[-1] + np.arange(len(mass)) * 1e-9
        low, high = np.interp((0.05, 0.95), steady, np.arange(len(mass)))
    edges = np.linspace(low, high, _FINGERPRINT_EDGE + 1)
    index = np.arange(len(tissue))
    covered = np.maximum(np.minimum(index + 1, edges[1:, None]) - np.maximum(index, edges[:-1, None]), 0)
    return (covered / covered.sum(1, keepdims=True)).astype(np.float32)


def fingerprint_distances(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How different a fingerprint (512,) is from others (n, 512): 0 the same, about 1.4 unrelated; offsets ignored."""
    a = one - one.mean(-1, keepdims=True)
    b = others - others.mean(-1, keepdims=True)
    spread = 0.5 * ((a**2).mean(-1) + (b**2).mean(-1))
    return np.sqrt(((a - b) ** 2).mean(-1) / np.maximum(spread, 1e-9))


def near_duplicates(ids: list[str], fingerprints: np.ndarray) -> list[dict[str, Any]]:
    """Pairs of scans whose fingerprints hardly differ, closest first.

    Args:
        ids: names (n).
        fingerprints: (n, 512), as from `fingerprint`.

    Returns:
        [{"id", "other", "distance"}].
    """
    if len(ids) > _MOST_COMPARED:
        logger.warning("near-duplicates are looked for among the first %d scans only", _MOST_COMPARED)
    values = fingerprints[:_MOST_COMPARED].astype(np.float32)
    values -= values.mean(1, keepdims=True)
    power = (values**2).mean(1)
    found: list[dict[str, Any]] = []
    for start in range(0, len(values), 1024):
        block = slice(start, start + 1024)
        inner = values[block] @ values.T / values.shape[1]
        spread = 0.5 * (power[block, None] + power[None])
        with np.errstate(invalid="ignore", divide="ignore"):
            squared = (2 * spread - 2 * inner) / spread
        rows, columns = np.nonzero(squared < (NEAR_DUPLICATE + 0.01) ** 2)  # rounding of float32; made exact below
        for row, column in zip(rows + start, columns, strict=True):
            if column > row and power[row] > 1:
                distance = float(fingerprint_distances(fingerprints[row].astype(float), fingerprints[column][None])[0])
                if distance < NEAR_DUPLICATE:
                    found.append({"id": ids[row], "other": ids[column], "distance": round(distance, 4)})
    return sorted(found, key=lambda pair: pair["distance"])
