"""The geometry of the reference thorax: outlines as functions of (z, y, x), and the places of the organs.

Everything is in mm of the reference thorax (half-width 132, from the diaphragm's rim at -150 to the lung tops at 128),
x to the left, y to the back, z to the head. Functions take broadcastable coordinates, so they serve grids and points.
"""

from dataclasses import dataclass

import numpy as np

from voxelfm_hf.data.phantom.facts import Body
from voxelfm_hf.data.phantom.shapes import Ellipsoid

CAGE_HALF_WIDTH, CAGE_HALF_DEPTH = 132.0, 88.0
_CAGE_WIDEST_Z, _CAGE_TOP_Z = -60.0, 130.0
RIGHT, LEFT = -1, 1


def cage_half_axes(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half-width, half-depth and y of the middle of the thoracic cavity at heights z."""
    up = np.clip((z - _CAGE_WIDEST_Z) / (_CAGE_TOP_Z - _CAGE_WIDEST_Z), 0, 0.9995)
    dome = 1 - up**2.2
    half_width = CAGE_HALF_WIDTH * dome**0.45 - 0.0006 * np.clip(_CAGE_WIDEST_Z - z, 0, None) ** 2
    half_depth = CAGE_HALF_DEPTH * dome**0.38
    return half_width, half_depth, 22 * up**2


def _superellipse(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Approximate signed distance to |u|^2.5 + |v|^2.5 = 1 (the powers act on planes, never on the whole grid)."""
    level = np.sqrt(np.abs(u) ** 2.5 + np.abs(v) ** 2.5)
    level -= 1
    level *= radius / 1.25
    return level


def cage_distance(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Signed distance to the inner surface of the rib cage."""
    half_width, half_depth, middle = cage_half_axes(z)
    return _superellipse(x / half_width, (y - middle) / half_depth, (half_width + half_depth) / 2)


def body_half_axes(z: np.ndarray, body: Body) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half-width, half-depth and y of the middle of the skin outline at heights z: chest, shoulders, lower neck."""
    wall_x = (body.muscle_mm + body.fat_mm) / body.width_scale
    wall_y = (body.muscle_mm + body.fat_mm) / body.depth_scale
    shoulder = np.clip((z - 20) / 80, 0, 1) ** 2 * (3 - 2 * np.clip((z - 20) / 80, 0, 1))
    neck = np.clip((z - 112) / 60, 0, 1) ** 2
    half_width = CAGE_HALF_WIDTH + wall_x + 24 * shoulder - 75 * neck
    half_depth = CAGE_HALF_DEPTH + wall_y - 12 * shoulder - 18 * neck
    return half_width, half_depth, 9 * shoulder + 6 * neck


def body_distance(z: np.ndarray, y: np.ndarray, x: np.ndarray, body: Body) -> np.ndarray:
    """Signed distance to the skin."""
    half_width, half_depth, middle = body_half_axes(z, body)
    return _superellipse(x / half_width, (y - middle) / half_depth, (half_width + half_depth) / 2)


def diaphragm_height(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Height z of the diaphragm; the right dome stands higher than the left."""
    right = -46 - 78 * (((x + 62) / 72) ** 2 + ((y + 12) / 84) ** 2)
    left = -60 - 72 * (((x - 64) / 70) ** 2 + ((y + 12) / 84) ** 2)
    middle = -74 - 60 * (((x - 8) / 70) ** 2 + ((y + 25) / 70) ** 2)
    return np.maximum(np.maximum(np.maximum(right, left), middle), -152)


def lung_distance(z: np.ndarray, y: np.ndarray, x: np.ndarray, side: int, *, cage: np.ndarray | None = None):
    """Signed distance to one lung before heart and vessels are laid over it; cage reuses a computed cage_distance."""
    cage = cage_distance(z, y, x) if cage is None else cage
    hilum = 26 * np.exp(-(((y - 8) / 30) ** 2)) * np.exp(-(((z - 25) / 110) ** 2))
    midline = 8 + hilum + 10 * np.clip((z - 60) / 60, 0, 1)
    distance = np.maximum(cage + 3, midline - side * x)
    return np.maximum(distance, (diaphragm_height(y, x) + 3 - z) * np.float32(0.75))


def spine_centre(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) of the vertebral bodies' middle at heights z: a kyphosis and a slight bend."""
    return 64 - 13 * ((z - 20) / 150) ** 2, 1.5 * np.sin(z / 60)


@dataclass(frozen=True)
class Heart:
    """The heart: outline and chambers, scaled to the cardiothoracic ratio, apex to the left, front and feet."""

    muscle: Ellipsoid
    chambers: tuple[Ellipsoid, ...]
    scale: float


def heart_of(body: Body) -> Heart:
    """Place the heart so that its width is the cardiothoracic ratio times the inner width of the chest."""
    long_axis = np.array([-0.46, -0.52, 0.72])
    long_axis /= np.linalg.norm(long_axis)
    second = np.cross(long_axis, [1.0, 0.0, 0.0])
    second /= np.linalg.norm(second)
    axes = np.stack([long_axis, second, np.cross(long_axis, second)])
    radii = np.array([64.0, 47.0, 49.0])
    width = 2 * np.sqrt(((radii * axes[:, 2]) ** 2).sum())
    scale = body.cardiothoracic_ratio * 2 * CAGE_HALF_WIDTH / width
    centre = np.array([-34.0, -24.0, 17.0])
    chambers = [
        ((-8, 6, 22), (25, 26, 30)),  # left ventricle
        ((-12, -24, -4), (27, 18, 32)),  # right ventricle
        ((2, -4, -36), (28, 22, 18)),  # right atrium
        ((20, 26, -2), (17, 15, 28)),  # left atrium
    ]
    return Heart(
        muscle=Ellipsoid(tuple(centre), tuple(radii * scale), axes),
        chambers=tuple(Ellipsoid(tuple(centre + scale * np.array(c)), tuple(scale * np.array(r))) for c, r in chambers),
        scale=scale,
    )


def aorta_path() -> np.ndarray:
    """Centre line of the aorta, (n, 3) as (z, y, x): root, arch, then down left of the spine."""
    knots = np.array(
        [
            (-18, -18, 2), (5, -28, -14), (32, -24, -16), (52, -10, -6), (60, 10, 10), (52, 32, 22), (35, 44, 27),
            (0, 48, 28), (-50, 46, 25), (-100, 42, 18), (-150, 34, 10), (-230, 24, 6),
        ],
        float,
    )  # fmt: skip
    return resample_path(knots, 40)


def resample_path(knots: np.ndarray, count: int) -> np.ndarray:
    """Catmull-Rom curve through knots (n, 3), as count points."""
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    position = np.linspace(0, len(knots) - 1, count)
    i = np.minimum(position.astype(int), len(knots) - 2)
    t = (position - i)[:, None]
    p0, p1, p2, p3 = (padded[i + k] for k in range(4))
    return 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)


def free_lung_depth(points: np.ndarray, side: int, body: Body) -> np.ndarray:
    """Depth in mm of (n, 3) points (z, y, x) inside aerated lung; negative outside and under heart, spine, aorta."""
    z, y, x = points.T
    spine_y, spine_x = spine_centre(z)
    aorta = aorta_path()
    to_aorta = np.sqrt(((points[:, None] - aorta[None]) ** 2).sum(-1)).min(1) - body.aorta_diameter_mm / 2
    obstacles = (
        -lung_distance(z, y, x, side),
        heart_of(body).muscle.grown(10).distance(z, y, x),
        np.hypot(y - spine_y, x - spine_x) - 22,
        to_aorta,
    )
    return np.minimum.reduce(obstacles)


def lung_points(rng: np.random.Generator, count: int, side: int, body: Body, *, depth_mm: float = 0.0) -> np.ndarray:
    """Draw points uniformly in one lung, at least depth_mm from its surface; (count, 3) as (z, y, x)."""
    chosen: list[np.ndarray] = []
    found = 0
    while found < count:
        low, high = np.array([-145, -88, 0]), np.array([128, 100, 132])
        points = rng.uniform(low, high, (4 * count + 64, 3)) * (1, 1, side)
        points = points[free_lung_depth(points, side, body) > depth_mm]
        chosen.append(points)
        found += len(points)
    return np.concatenate(chosen)[:count]
