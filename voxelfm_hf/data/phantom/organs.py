"""Painting the soft parts of a healthy chest: wall, abdomen, lungs with their vessels and airways, mediastinum."""

import numpy as np

from voxelfm_hf.data.phantom.facts import Body
from voxelfm_hf.data.phantom.shapes import Canvas, Ellipsoid, Segment, curve, grow_tree, smooth_noise
from voxelfm_hf.data.phantom.thorax import (
    LEFT,
    RIGHT,
    aorta_path,
    body_distance,
    cage_distance,
    diaphragm_height,
    heart_of,
    lung_distance,
    lung_points,
    resample_path,
)
from voxelfm_hf.data.phantom.tissues import LABELS, Tissue

HILUM = {RIGHT: np.array([8.0, 6.0, -30.0]), LEFT: np.array([14.0, 10.0, 32.0])}


def paint_wall(canvas: Canvas, body: Body, rng: np.random.Generator) -> np.ndarray:
    """Skin, fat, muscle and the fat that fills the cavities; returns cage_distance for the grid."""
    grid = canvas.grid
    marbling = smooth_noise(grid, rng, 10)
    skin = body_distance(grid.z, grid.y, grid.x, body)
    cage = cage_distance(grid.z, grid.y, grid.x)
    canvas.paint(canvas.everything, canvas.coverage(skin), -105, LABELS["fat"])
    if body.sex == "female":
        _paint_breasts(canvas, body)
    muscle = 55 - np.float32(140) * np.clip(marbling - 0.9, 0, 1)
    depth = np.float32(2 * body.fat_mm / (body.width_scale + body.depth_scale))
    canvas.paint(canvas.everything, canvas.coverage(skin + depth), muscle, LABELS["muscle"])
    canvas.paint(canvas.everything, canvas.coverage(cage), -95 + np.float32(8) * marbling, LABELS["fat"])
    # A thin dark rim of skin is brighter than fat.
    rim = canvas.coverage(skin) * canvas.coverage(-skin - np.float32(2))
    canvas.paint(canvas.everything, rim, 20)
    return cage


def _paint_breasts(canvas: Canvas, body: Body) -> None:
    front = -(88 + (body.muscle_mm + body.fat_mm) / body.depth_scale)
    for side in (LEFT, RIGHT):
        size = 1 + body.fat_mm / 60
        centre = (-2.0, front + 16, side * 72.0)
        canvas.ellipsoid(Ellipsoid(centre, (52 * size, 38 * size, 54 * size)), -100, LABELS["fat"])
        canvas.ellipsoid(Ellipsoid((-8.0, front - 4 - 8 * size, side * 76.0), (26, 11 * size, 28)), 15, LABELS["fat"])


def paint_abdomen(canvas: Canvas, tissue: Tissue, cage: np.ndarray, rng: np.random.Generator) -> None:
    """Diaphragm, liver (right), spleen and stomach with its air bubble (left), kidneys."""
    grid = canvas.grid
    top = float(grid.z.min()), -40.0
    box = grid.box((top[0], -200, -200), (top[1], 200, 200))
    part = grid.part(box)
    if 0 in part.shape:
        return
    below = (part.z - diaphragm_height(part.y, part.x)) * np.float32(0.75)
    inside = np.zeros(grid.shape, np.float32)
    inside[box] = canvas.coverage(np.maximum(below, cage[box] + np.float32(1)))
    canvas.paint(box, inside[box] * canvas.coverage(-below - np.float32(4)), 52, LABELS["muscle"])
    inside[box] = canvas.coverage(np.maximum(below + np.float32(4), cage[box] + np.float32(4)))

    jitter = rng.uniform(0.94, 1.06, (5, 3))
    liver = Ellipsoid((-124, -2, -56), tuple(np.array([80, 82, 76]) * jitter[0]))
    left_lobe = Ellipsoid((-102, -42, 14), tuple(np.array([30, 38, 52]) * jitter[1]))
    canvas.ellipsoid(
        Ellipsoid((-122, -28, 56), tuple(np.array([48, 44, 50]) * jitter[2])), 42, LABELS["stomach"], within=inside
    )
    bubble = Ellipsoid((-118, -48, 56), (26, 20, 36))
    canvas.ellipsoid(bubble, -950, LABELS["stomach"], within=inside)
    colon = resample_path(
        np.array([(-175, -30, -95), (-158, -60, -40), (-165, -66, 20), (-142, -40, 88), (-180, -5, 100)], float), 16
    )
    canvas.tubes(curve(colon, 17), 35, LABELS["colon"], within=inside)
    canvas.tubes(curve(colon - (0, 5, 0), 11), -900, LABELS["colon"], within=inside)
    canvas.ellipsoid(left_lobe, tissue.liver, LABELS["liver"], within=inside)
    canvas.ellipsoid(liver, tissue.liver, LABELS["liver"], within=inside)
    vessel = tissue.blood - 5 if tissue.blood > 60 else tissue.liver - 18
    ends = np.array([-124, -2, -66]) + rng.uniform(-1, 1, (14, 3)) * (45, 50, 50)
    tree = grow_tree(np.array([-135.0, 6, -20]), ends, end_radius=2.2, root_radius=6)
    canvas.tubes(tree, vessel, LABELS["liver"], within=inside)
    canvas.ellipsoid(
        Ellipsoid((-112, 40, 88), tuple(np.array([40, 38, 27]) * jitter[3])),
        tissue.spleen,
        LABELS["spleen"],
        within=inside,
    )
    for side in (LEFT, RIGHT):
        centre = (-172.0 - 8 * (side == RIGHT), 50.0, side * 56.0)
        canvas.ellipsoid(
            Ellipsoid(centre, tuple(np.array([52, 27, 26]) * jitter[4])),
            tissue.kidney,
            LABELS["kidneys"],
            within=inside,
        )
        canvas.ellipsoid(Ellipsoid((centre[0], 44.0, side * 46.0), (26, 11, 13)), -90, within=inside)


def paint_lungs(
    canvas: Canvas, body: Body, tissue: Tissue, cage: np.ndarray, rng: np.random.Generator
) -> dict[int, np.ndarray]:
    """Both lungs with parenchyma, arteries and bronchi; returns each lung's coverage of the grid by side."""
    grid = canvas.grid
    texture = smooth_noise(grid, rng, 9)
    # In a person lying on the back the lung is denser towards the back.
    parenchyma = body.lung_hu + np.float32(0.45) * grid.y + np.float32(16) * texture
    lungs = {}
    for side, label in ((RIGHT, "lung_right"), (LEFT, "lung_left")):
        share = canvas.coverage(lung_distance(grid.z, grid.y, grid.x, side, cage=cage))
        canvas.paint(canvas.everything, share, parenchyma, LABELS[label])
        lungs[side] = share
        ends = lung_points(rng, 260, side, body, depth_mm=4)
        arteries = grow_tree(HILUM[side], ends, end_radius=0.95, root_radius=8)
        canvas.tubes(arteries, tissue.blood, LABELS["lung_vessels"], within=share)
        bronchi = _bronchi(side, ends[::12])
        canvas.tubes([(a, b, r + 1.1, s + 0.8) for a, b, r, s in bronchi], -150, within=share)
        canvas.tubes(bronchi, -985, LABELS["airways"], within=share)
    return lungs


def _bronchi(side: int, ends: np.ndarray) -> list[Segment]:
    root = np.array([10.0, 21, -29]) if side == RIGHT else np.array([4.0, 24, 36])
    return grow_tree(root, ends, end_radius=1.3, exponent=2.2, root_radius=5.5)


def paint_mediastinum(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Heart in its fat, aorta, pulmonary trunk, superior vena cava, trachea and oesophagus."""
    heart = heart_of(body)
    canvas.ellipsoid(heart.muscle.grown(7), -85, LABELS["fat"])
    canvas.ellipsoid(heart.muscle, tissue.heart, LABELS["heart"])
    for chamber, hu in zip(heart.chambers, (tissue.aorta, tissue.blood, tissue.blood, tissue.aorta), strict=True):
        canvas.ellipsoid(chamber, hu, LABELS["heart"])
    trunk = resample_path(np.array([(-14.0, -42, 10), (12, -34, 16), (26, -12, 18)]), 8)
    canvas.tubes(curve(trunk, 13.5), tissue.blood, LABELS["great_vessels"])
    for side in (RIGHT, LEFT):
        bend = (18.0, -6.0, -8.0) if side == RIGHT else (24.0, -2.0, 26.0)
        branch = resample_path(np.array([trunk[-1], bend, HILUM[side]]), 6)
        canvas.tubes(curve(branch, np.linspace(11, 9, 6)), tissue.blood, LABELS["great_vessels"])
    cava = resample_path(np.array([(100.0, -12, -22), (60, -14, -28), (20, -12, -30), (-12, -8, -30)]), 10)
    canvas.tubes(curve(cava, 9.5), tissue.blood, LABELS["great_vessels"])
    for x, y in ((-16, -8), (16, -6), (24, 8)):  # arteries and veins of neck and arms
        start = np.array([54.0, y + 2, x * 0.6])
        canvas.tubes(
            curve(resample_path(np.array([start, (95.0, y - 2, x), (170.0, y, x * 1.9)]), 8), 5.5),
            tissue.aorta,
            LABELS["great_vessels"],
        )
    mean_scale = (body.width_scale + body.depth_scale) / 2
    path = aorta_path()
    radii = body.aorta_diameter_mm / 2 / mean_scale * np.linspace(1.08, 0.82, len(path))
    canvas.tubes(curve(path, radii), tissue.aorta, LABELS["aorta"])

    gullet = resample_path(np.array([(170.0, 30, 2), (90, 34, 4), (20, 38, 4), (-60, 34, 6), (-95, 18, 18)]), 14)
    canvas.tubes(curve(gullet, 7.5), 42, LABELS["esophagus"])
    canvas.tubes(curve(gullet[2:8], 1.8), -500)
    for radius, hu, label in ((1.8, 30.0, None), (0.0, -1000.0, LABELS["airways"])):
        tubes = curve(resample_path(np.array([(175.0, 2, 0), (110, 10, 0), (40, 22, 0)]), 8), 8.5 + radius)
        tubes += curve(np.array([(42.0, 22, 0), (26, 22, -16), (10, 21, -29)]), np.array([7.5, 7, 5.5]) + radius)
        tubes += curve(np.array([(42.0, 22, 0), (22, 24, 18), (4, 24, 36)]), np.array([7, 6.5, 5.5]) + radius)
        canvas.tubes(tubes, hu, label)
