"""Linear erasure: the smallest change of features after which no linear probe finds a concept in them.

LEACE (Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form", theorem 4.3): with W a whitening of
the features x and P the orthogonal projection onto the columns of W Cov(x, z),

    r(x) = x - W^+ P W (x - E[x])

has Cov(r(x), z) = 0, so the best linear predictor of z is a constant, and among all linear maps that do this it moves
x least in mean square. It holds exactly for the rows it is fitted on; on others a linear probe finds what the estimates
of mean and covariance miss, and other probes what is not linear.
"""

from dataclasses import dataclass

import numpy as np

# Directions with less than this share of the largest variance count as absent, as for a rank.
SMALLEST_SHARE = 1e-10


@dataclass(frozen=True, eq=False)
class LinearErasure:
    """A fitted erasure.

    Attributes:
        mean: (C,) mean of the features it was fitted on.
        removed: (C, C) oblique projection onto what is taken out.
    """

    mean: np.ndarray
    removed: np.ndarray

    @property
    def rank(self) -> int:
        """Dimensions that are taken out."""
        return round(float(np.trace(self.removed)))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features (n, C) without the concept."""
        features = np.asarray(features, dtype=float)
        return features - (features - self.mean) @ self.removed.T


def fit_erasure(features: np.ndarray, concepts: np.ndarray) -> LinearErasure:
    """The erasure of some concepts from features.

    Args:
        features: (n, C) of the training rows.
        concepts: (n, k) numbers, or 0 and 1 for each class of a column, of the same rows.

    Returns:
        LinearErasure: takes out at most k dimensions, and all variance of the features when k reaches their rank.
    """
    features, concepts = np.asarray(features, dtype=float), np.asarray(concepts, dtype=float)
    if features.ndim != 2 or concepts.ndim != 2 or len(features) != len(concepts) or len(features) < 2:
        raise ValueError(f"features (n, C) and concepts (n, k) are needed, got {features.shape} and {concepts.shape}")
    mean = features.mean(0)
    centred = features - mean
    magnitude = np.linalg.norm(concepts, axis=0)
    concepts = concepts - concepts.mean(0)
    spread = np.linalg.norm(concepts, axis=0)
    varies = spread > 1e-9 * magnitude  # the mean of equal numbers may differ from them by a rounding
    concepts = concepts[:, varies] / spread[varies]  # whatever their units
    # The right singular vectors of the features and their lengths are the square root of their covariance.
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    kept = lengths > np.sqrt(SMALLEST_SHARE) * max(float(lengths.max(initial=0.0)), 1e-300)
    lengths, directions = lengths[kept], directions[kept]
    whitened = (centred @ directions.T / lengths).T @ concepts  # (r, k): W Cov(x, z) in the basis of the directions
    if not whitened.size:
        return LinearErasure(mean, np.zeros((features.shape[1], features.shape[1])))
    basis, sizes, _ = np.linalg.svd(whitened, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * max(float(sizes.max()), 1e-300)]
    removed = (directions.T * lengths) @ basis @ basis.T @ (directions / lengths[:, None])
    return LinearErasure(mean, removed)
