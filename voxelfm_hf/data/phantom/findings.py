"""Painting what is not healthy: the lung lesion and the other findings."""

import numpy as np

from voxelfm_hf.data.phantom.facts import Body, Findings, Lesion
from voxelfm_hf.data.phantom.shapes import Canvas, Ellipsoid, curve, smooth_noise
from voxelfm_hf.data.phantom.thorax import (
    LEFT,
    RIGHT,
    aorta_path,
    cage_half_axes,
    heart_of,
    lung_points,
    resample_path,
)
from voxelfm_hf.data.phantom.tissues import LABELS

SIDES = {"right": RIGHT, "left": LEFT}
LESION_HU = {  # ends of the range that Lesion.density moves in
    "solid": (10, 60),
    "ground_glass": (-680, -480),
    "calcified": (250, 800),
    "spiculated": (15, 60),
    "cavity": (10, 60),
}


def place_lesion(lesion: Lesion, body: Body, rng: np.random.Generator) -> np.ndarray:
    """Draw the centre (z, y, x) in the reference frame: anywhere in the lung where the lesion fits."""
    return lung_points(rng, 1, SIDES[lesion.side], body, depth_mm=lesion.diameter_mm / 2 + 4)[0]


def paint_lesion(canvas: Canvas, lesion: Lesion, centre: np.ndarray, body: Body, rng: np.random.Generator) -> None:
    """Paint the lesion; its diameter is in true mm, so offsets are taken out of the reference frame."""
    if lesion.type == "none":
        return
    radius, scale = lesion.diameter_mm / 2, body.scale
    grid = canvas.grid
    box = grid.box(centre - 2.2 * radius / scale, centre + 2.2 * radius / scale)
    part = grid.part(box)
    lobes = rng.standard_normal((5, 3))
    phases = rng.uniform(0, 2 * np.pi, 5)
    spikes = rng.standard_normal((40, 3))
    hollow = rng.uniform(-0.18, 0.18, 3) * radius
    if 0 in part.shape:
        return
    axes = (part.z, part.y, part.x)
    dz, dy, dx = ((a - np.float32(c)) * np.float32(s) for a, c, s in zip(axes, centre, scale, strict=True))
    distance = np.sqrt(dz**2 + dy**2 + dx**2)
    bumps = sum(
        np.sin((dz * k[0] + dy * k[1] + dx * k[2]) * (2.2 / radius) + p) for k, p in zip(lobes, phases, strict=True)
    )
    bump_share = {"spiculated": 0.05, "solid": 0.025, "calcified": 0.012, "ground_glass": 0.035, "cavity": 0.025}[
        lesion.type
    ]
    surface = distance - np.float32(radius) * (1 + np.float32(bump_share) * bumps)
    low, high = LESION_HU[lesion.type]
    hu = low + lesion.density * (high - low)
    if lesion.type == "ground_glass":
        haze = np.clip(0.5 - surface / max(2.5, canvas.grid.edge), 0, 1)
        region = canvas.hu[box]
        # Vessels stay visible through ground glass: it fills air but does not replace denser tissue.
        region += haze * np.maximum(hu - region, 0)
        canvas.labels[box][surface <= 0] = LABELS["lesion"]
        return
    if lesion.type == "spiculated":
        _paint_spikes(canvas, centre, spikes, radius, scale, hu)
    core = canvas.coverage(surface)
    if lesion.type == "calcified":
        canvas.paint(box, core, 45, LABELS["lesion"])
        canvas.paint(box, canvas.coverage(surface + np.float32(0.22 * radius)), hu)
        return
    canvas.paint(box, core, hu, LABELS["lesion"])
    if lesion.type == "cavity":
        hole = np.sqrt((dz - hollow[0]) ** 2 + (dy - hollow[1]) ** 2 + (dx - hollow[2]) ** 2)
        canvas.paint(box, canvas.coverage(hole - np.float32(0.62 * radius)), -960)


def _paint_spikes(
    canvas: Canvas, centre: np.ndarray, spikes: np.ndarray, radius: float, scale: np.ndarray, hu: float
) -> None:
    directions = spikes / np.linalg.norm(spikes, axis=1, keepdims=True)
    reach = radius * (1.45 + 0.35 * np.abs(spikes[:, :1]).clip(0, 2))
    tips = centre + directions * reach / scale
    base = centre + directions * (0.8 * radius / scale)
    width = max(0.09 * radius, 0.7)
    canvas.tubes([(b, t, 1.8 * width, 0.5 * width) for b, t in zip(base, tips, strict=True)], hu * 0.6)


def paint_lung_findings(
    canvas: Canvas, findings: Findings, body: Body, lungs: dict[int, np.ndarray], rng: np.random.Generator
) -> None:
    """Emphysema, consolidation, pleural effusion: everything that stays inside the lungs' outline."""
    grid = canvas.grid
    draws = rng.spawn(3)
    if findings.emphysema_fraction:
        holes = smooth_noise(grid, draws[0], 10)
        # Upper lung zones suffer first; the threshold keeps the overall share at the drawn fraction.
        holes += np.float32(0.006) * grid.z
        in_lung = np.maximum(lungs[LEFT], lungs[RIGHT]) >= 0.5
        if in_lung.any():
            threshold = np.quantile(holes[in_lung], 1 - findings.emphysema_fraction)
            share = np.clip(0.5 + 2.5 * (holes - threshold), 0, 1) * np.maximum(lungs[LEFT], lungs[RIGHT])
            airy = canvas.hu < -600  # vessels survive
            canvas.paint(canvas.everything, share * airy, -965)
    if findings.consolidation_mm:
        side = SIDES[findings.consolidation_side]
        _paint_consolidation(canvas, findings.consolidation_mm, side, body, lungs[side], draws[1])
    for side, depth in ((RIGHT, findings.pleural_effusion_right_mm), (LEFT, findings.pleural_effusion_left_mm)):
        if depth:
            _, half_depth, middle = cage_half_axes(grid.z)
            # A person on the back: fluid lies behind a level surface that rises along the chest wall and to the base.
            level = middle + half_depth - depth / body.depth_scale + np.float32(0.10) * (grid.z + 60).clip(-40, None)
            meniscus = np.float32(0.0016) * (np.abs(grid.x) - 70) ** 2
            fluid = canvas.coverage(level - meniscus - grid.y) * lungs[side]
            canvas.paint(canvas.everything, fluid, 12, LABELS["effusion"])


def _paint_consolidation(
    canvas: Canvas, radius: float, side: int, body: Body, lung: np.ndarray, rng: np.random.Generator
) -> None:
    centre = lung_points(rng, 1, side, body, depth_mm=8)[0]
    reach = radius / body.scale
    box = canvas.grid.box(centre - 1.7 * reach, centre + 1.7 * reach)
    part = canvas.grid.part(box)
    field = smooth_noise(part, rng, 14) if 0 not in part.shape else None
    if field is None:
        return
    shape = Ellipsoid(tuple(centre), tuple(reach * (0.8, 1.0, 1.25)))
    patchy = shape.distance(part.z, part.y, part.x) + np.float32(0.22 * radius) * field
    share = np.clip(0.5 - patchy / 9, 0, 1) * lung[box]
    share[canvas.hu[box] < -960] = 0  # air bronchograms
    canvas.paint(box, share, 25, LABELS["consolidation"])


def paint_mediastinal_findings(canvas: Canvas, findings: Findings, body: Body, rng: np.random.Generator) -> None:
    """Calcified plaques, enlarged lymph nodes, hiatal hernia, pacemaker."""
    draws = rng.spawn(5)
    heart = heart_of(body)
    if findings.coronary_calcification:
        _paint_plaques(canvas, _coronary_path(heart.muscle), findings.coronary_calcification, draws[0], (1.3, 2.4))
    if findings.aortic_calcification:
        path = aorta_path()[:34]
        radius = body.aorta_diameter_mm / 2 / ((body.width_scale + body.depth_scale) / 2)
        angle = draws[1].uniform(0, 2 * np.pi, len(path))
        rim = path + radius * np.stack([np.zeros_like(angle), np.sin(angle), np.cos(angle)], 1)
        _paint_plaques(canvas, rim, findings.aortic_calcification, draws[1], (1.5, 3.2))
    if findings.lymphadenopathy_mm:
        places = np.array([(42, 8, -22), (28, 34, -4), (34, -22, 24), (62, 4, -14), (12, 36, 12), (70, -28, 10)], float)
        sizes = findings.lymphadenopathy_mm / 2 * np.array([1, 0.85, 0.8, 0.75, 0.7, 0.65])
        for place, size in zip(draws[2].permutation(places) + draws[2].uniform(-3, 3, (6, 3)), sizes, strict=True):
            radii = size * draws[2].uniform(0.85, 1.1, 3) / body.scale
            canvas.ellipsoid(Ellipsoid(tuple(place), tuple(radii)), 45, LABELS["lymph_nodes"])
    if findings.hiatal_hernia_mm:
        size = findings.hiatal_hernia_mm / 2
        centre = np.array([-72.0, 30, 2])
        sac = Ellipsoid(tuple(centre), (1.05 * size, 0.8 * size, size))
        canvas.ellipsoid(sac, 40, LABELS["hiatal_hernia"])
        canvas.ellipsoid(sac.grown(-3), 20, LABELS["hiatal_hernia"])
        bubble = Ellipsoid((centre[0], centre[1] - 0.35 * size, centre[2]), (0.6 * size, 0.35 * size, 0.7 * size))
        canvas.ellipsoid(bubble, -930, LABELS["hiatal_hernia"])
    if findings.medical_material:
        _paint_pacemaker(canvas, body)


def paint_pericardial_effusion(canvas: Canvas, thickness_mm: float, body: Body) -> None:
    """A shell of fluid round the heart; call before the heart is painted."""
    if thickness_mm:
        muscle = heart_of(body).muscle
        canvas.ellipsoid(muscle.grown(thickness_mm + 4), -60, LABELS["fat"])
        canvas.ellipsoid(muscle.grown(thickness_mm), 12, LABELS["pericardial_effusion"])


def _coronary_path(muscle: Ellipsoid) -> np.ndarray:
    """Along the front of the heart from its base towards the apex."""
    t = np.linspace(-0.65, 0.6, 24)[:, None]
    assert muscle.axes is not None
    sideways = -muscle.axes[1] if muscle.axes[1][1] > 0 else muscle.axes[1]
    round_it = np.sqrt(1 - t**2)
    return np.asarray(muscle.centre) + muscle.radii[0] * t * muscle.axes[0] + muscle.radii[1] * round_it * sideways


def _paint_plaques(canvas: Canvas, path: np.ndarray, count: int, rng: np.random.Generator, radii: tuple[float, float]):
    where = rng.choice(len(path) - 1, size=count, replace=False)
    plaques = [
        (path[i], path[i] + 0.7 * (path[i + 1] - path[i]), r, r)
        for i, r in zip(where, rng.uniform(*radii, count), strict=True)
    ]
    canvas.tubes(plaques, 850)


def _paint_pacemaker(canvas: Canvas, body: Body) -> None:
    """A metal can under the left collar bone and a lead through the vena cava into the right ventricle."""
    _, half_depth, middle = cage_half_axes(np.array(72.0))
    place = np.array([72.0, float(middle - half_depth) - 4, 62.0])
    lead = resample_path(
        np.array(
            [place, (96.0, -34, 40), (88.0, -20, -4), (60, -14, -26), (10, -12, -32), (-34, -32, -2), (-46, -36, 16)]
        ),
        40,
    )
    canvas.tubes(curve(lead, 1.4), 2600, LABELS["device"])
    canvas.ellipsoid(Ellipsoid(tuple(place), (22, 5, 25)), 3200, LABELS["device"])
