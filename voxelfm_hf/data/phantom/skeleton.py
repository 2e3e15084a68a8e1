"""Painting what is hard: spine, ribs, sternum, shoulders, and the table under the back."""

import numpy as np

from voxelfm_hf.data.phantom.facts import Body
from voxelfm_hf.data.phantom.shapes import Canvas, Ellipsoid, Segment, curve
from voxelfm_hf.data.phantom.thorax import (
    LEFT,
    RIGHT,
    body_distance,
    body_half_axes,
    cage_half_axes,
    resample_path,
    spine_centre,
)
from voxelfm_hf.data.phantom.tissues import LABELS


def paint_skeleton(canvas: Canvas, body: Body) -> None:
    """Vertebrae with discs and canal, ribs with cartilage, sternum, shoulder blades, collar bones."""
    _paint_spine(canvas, body)
    heights = 116 - 22.5 * np.arange(12)
    sweep = np.array([155, 155, 155, 152, 150, 148, 146, 138, 128, 118, 100, 80])
    bone, cartilage = [], []
    for side in (LEFT, RIGHT):
        for k, (height, end) in enumerate(zip(heights, sweep, strict=True)):
            angle = np.deg2rad(np.linspace(14, end, 13))
            drop = min(26 + 7 * k, 78)
            z = height + 6 - drop * (1 - np.cos(angle)) / 2
            half_width, half_depth, middle = cage_half_axes(z)
            x = side * (half_width + 4) * np.sin(angle) ** 0.8
            y = middle + (half_depth + 4) * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.8
            points = np.stack([z, y, x], 1)
            bone += curve(points, 4.6)
            if k < 9:
                sternal_z = max(88.0 - 16 * k, -42)
                wide, deep, mid = cage_half_axes(np.array(sternal_z))
                joint = np.array([sternal_z, mid - deep - 7, side * 14.0])
                cartilage += curve(np.stack([points[-1], (points[-1] + joint) / 2 - (4, 4, 0), joint]), 4.5)
        plate = resample_path(np.array([(90.0, -62, side * 16), (108, -52, side * 58), (112, -20, side * 112)]), 8)
        bone += curve(plate, 5.5)
    canvas.tubes(cartilage, 105, LABELS["ribs"])
    index, distance = canvas.tubes(bone, 620, LABELS["ribs"])
    # Marrow: the cortex is about 1.6 mm thick.
    canvas.paint_sparse(index, canvas.coverage(distance + np.float32(1.6)), body.trabecular_hu + 40, None)
    _paint_sternum(canvas, body)
    for side in (LEFT, RIGHT):
        turn = np.deg2rad(38)
        across = np.array([0.15, -np.sin(turn), side * np.cos(turn)])
        across /= np.linalg.norm(across)
        flat = np.cross(across, [1.0, 0, 0])
        flat /= np.linalg.norm(flat)
        axes = np.stack([np.cross(flat, across), flat, across])
        blade = Ellipsoid((58.0, 78.0, side * 98.0), (52, 4, 36), axes)
        canvas.ellipsoid(blade, 430, LABELS["ribs"])
        tip = np.array([84.0, 92, side * 72]), np.array([98.0, 48, side * 136])
        canvas.tubes([(tip[0], tip[1], 4.0, 7.0)], 430, LABELS["ribs"])


def _paint_spine(canvas: Canvas, body: Body) -> None:
    grid = canvas.grid
    box = grid.box((float(grid.z.min()) - 1, 10, -32), (float(grid.z.max()) + 1, 112, 32))
    part = grid.part(box)
    if 0 in part.shape:
        return
    centre_y, centre_x = spine_centre(part.z)
    size = np.clip(1 - part.z / 700, 0.8, 1.25)  # vertebrae grow towards the feet
    dy, dx = (part.y - centre_y).astype(np.float32), (part.x - centre_x).astype(np.float32)
    phase = np.mod(part.z, 23.0) - 11.5
    waist = size * (1 - 0.07 * np.cos(phase * np.pi / 11.5))
    round_body = (np.hypot(dy / (14.5 * waist), dx / (18 * waist)) - 1) * 16
    disc = np.abs(phase) - 9.2  # positive in the discs
    canvas.paint(box, canvas.coverage(round_body), 85, LABELS["spine"])
    vertebra = np.maximum(round_body, disc)
    canvas.paint(box, canvas.coverage(vertebra), 560, LABELS["spine"])
    canvas.paint(box, canvas.coverage(vertebra + np.float32(1.5)), body.trabecular_hu)
    arch = (np.hypot((dy - 22) / 14, dx / 15) - 1) * 14
    arch = np.maximum(arch, np.abs(phase + 3) - 9)
    canvas.paint(box, canvas.coverage(arch), 420, LABELS["spine"])
    canal = (np.hypot((dy - 21) / 8.5, dx / 10) - 1) * 9
    canvas.paint(box, canvas.coverage(canal), 28, LABELS["spine"])
    processes: list[Segment] = []
    for level in np.arange(-20, 20) * 23.0 + 11.5:
        y, x = (float(v) for v in spine_centre(np.array(level)))
        processes.append((np.array([level - 2, y + 33, x]), np.array([level - 18, y + 48, x]), 4.0, 3.5))
        for side in (LEFT, RIGHT):
            wing = np.array([level + 2, y + 30, x + side * 30])
            processes.append((np.array([level, y + 20, x + side * 12]), wing, 5.0, 4.0))
    canvas.tubes(processes, 380, LABELS["spine"])


def _paint_sternum(canvas: Canvas, body: Body) -> None:
    grid = canvas.grid
    box = grid.box((-52, -130, -30), (92, -20, 30))
    part = grid.part(box)
    if 0 in part.shape:
        return
    _, deep, middle = cage_half_axes(part.z)
    front = (middle - deep - 7).astype(np.float32)
    wide = np.interp(part.z, (-52, -40, 40, 60, 92), (6, 16, 14, 24, 28)).astype(np.float32)
    plate = (np.hypot((part.y - front) / np.float32(6), part.x / wide) - 1) * np.float32(7)
    plate = np.maximum(plate, np.abs(part.z - 20) - 70)
    canvas.paint(box, canvas.coverage(plate), 450, LABELS["ribs"])
    canvas.paint(box, canvas.coverage(plate + np.float32(1.6)), body.trabecular_hu + 10)


def paint_table(canvas: Canvas, body: Body) -> None:
    """The patient table: a shallow trough of two thin shells with foam between, under the back."""
    grid = canvas.grid
    _, half_depth, middle = body_half_axes(np.array(-20.0), body)
    back = float(half_depth + middle) + 3
    radius = 460.0
    box = grid.box((float(grid.z.min()) - 1, back - 60, -215), (float(grid.z.max()) + 1, back + 60, 215))
    part = grid.part((slice(0, 1), box[1], box[2]))  # the same in every slice
    if 0 in part.shape:
        return
    depth = np.hypot(part.y - (back - radius), part.x) - radius
    sides = np.abs(part.x) - 210
    free = 1 - np.minimum(1, canvas.coverage(body_distance(grid.z, part.y, part.x, body)) * 1.0)
    for inner, outer, hu in ((0.0, 3.0, -120.0), (3.0, 22.0, -930.0), (22.0, 25.0, -120.0)):
        share = canvas.coverage(np.maximum(np.maximum(inner - depth, depth - outer), sides))
        canvas.paint((slice(None), box[1], box[2]), free * share, hu, LABELS["table"])
