"""A synthetic chest CT with known truth: anatomy, findings, a lung lesion and a simulated scanner.

The person is described by continuous shapes, so one seed gives the same person on any voxel grid, and one person can
be scanned with several scanner settings. It is a drawing with realistic HU values, not a model of disease: use it to
test and to teach, never to claim clinical performance.
"""

from dataclasses import dataclass, replace

import numpy as np

from voxelfm_hf.data.phantom import facts as facts_module
from voxelfm_hf.data.phantom.facts import LESION_TYPES, PhantomFacts
from voxelfm_hf.data.phantom.findings import (
    paint_lesion,
    paint_lung_findings,
    paint_mediastinal_findings,
    paint_pericardial_effusion,
    place_lesion,
)
from voxelfm_hf.data.phantom.organs import paint_abdomen, paint_lungs, paint_mediastinum, paint_wall
from voxelfm_hf.data.phantom.scanner import add_scanner, slice_profile
from voxelfm_hf.data.phantom.shapes import Canvas, Grid
from voxelfm_hf.data.phantom.skeleton import paint_skeleton, paint_table
from voxelfm_hf.data.phantom.tissues import LABELS, Tissue
from voxelfm_hf.volumes import Volume

_ANATOMY, _NOISE = 10, 11
_CHEST_CENTRE = np.array([-12.0, 8.0, 0.0])  # reference frame (z, y, x); the table is in view


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic scan.

    volume: the scan, int16 HU; labels: (D, H, W) uint8, the organ that fills most of each voxel, named by label_names;
    facts: everything that was drawn.
    """

    volume: Volume
    labels: np.ndarray
    facts: PhantomFacts

    @property
    def label_names(self) -> dict[str, int]:
        """Value of each organ in `labels`."""
        return dict(LABELS)

    def mask(self, name: str) -> np.ndarray:
        """The voxels of one organ as a boolean array."""
        return self.labels == LABELS[name]


def draw_facts(
    seed: int,
    *,
    shape: tuple[int, int, int] = (128, 160, 160),
    spacing: tuple[float, float, float] | None = None,
    lesion: str | None = None,
    acquisition_seed: int | None = None,
) -> PhantomFacts:
    """Draw everything about a phantom without making its volume; same arguments as make_phantom."""
    return _draw(seed, shape, spacing, lesion, acquisition_seed)[0]


def make_phantom(
    seed: int,
    *,
    shape: tuple[int, int, int] = (128, 160, 160),
    spacing: tuple[float, float, float] | None = None,
    center_on: str = "chest",
    lesion: str | None = None,
    acquisition_seed: int | None = None,
) -> Phantom:
    """Make a synthetic chest CT.

    Args:
        seed: Fixes the person, the findings, the lesion and, with acquisition_seed, the scan, bit for bit.
        shape: Voxels along (z, y, x).
        spacing: Voxel size in mm along (z, y, x); by default the whole chest fits the shape, with a field of view that
            differs between scans.
        center_on: "chest", or "lesion" to centre the volume on the lesion (or on its drawn place if there is none).
        lesion: One of LESION_TYPES instead of the drawn type; everything else stays the same.
        acquisition_seed: Another scan of the same person: kernel, noise, contrast, thickness, field of view, position.

    Returns:
        The phantom; volume.hu (D, H, W) int16 in [-1024, 3071], LPS+ order.

    Example:
        >>> phantom = make_phantom(7, shape=(40, 48, 48))
        >>> phantom.volume.hu.shape, phantom.facts.lesion.type in LESION_TYPES
        ((40, 48, 48), True)
    """
    if center_on not in ("chest", "lesion"):
        raise ValueError(f"center_on must be 'chest' or 'lesion', not {center_on!r}")
    facts, place, shift = _draw(seed, shape, spacing, lesion, acquisition_seed)
    body, acquisition = facts.body, facts.acquisition
    centre = place if center_on == "lesion" else _CHEST_CENTRE + shift
    spacing_mm = np.array(acquisition.spacing_mm)
    # Thick slices average the anatomy over their thickness, in steps no coarser than the voxels in the plane.
    thickness = acquisition.slice_thickness_mm
    steps = int(np.clip(np.rint(thickness / max(2.0, 1.3 * spacing_mm[1])), 1, 6)) | 1
    total, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for step in range(steps):
        offset = ((step + 0.5) / steps - 0.5) * thickness
        grid = Grid.regular(shape, spacing_mm / body.scale, centre + np.array([offset, 0, 0]) / body.scale)
        canvas = _paint_person(facts, grid, place)
        total += canvas.hu
        if step == steps // 2:
            labels = canvas.labels
    rng = np.random.default_rng([seed, facts.acquisition_seed, _NOISE])
    noiseless = total / np.float32(steps) if steps > 1 else slice_profile(total, acquisition=acquisition)
    hu = add_scanner(noiseless, acquisition=acquisition, rng=rng)
    # Index (z, y, x) -> LPS mm (x, y, z).
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing_mm
    first = centre * body.scale - (np.array(shape) - 1) / 2 * spacing_mm
    affine[:3, 3] = first[::-1] + acquisition.offset_lps_mm
    affine[3, 3] = 1
    volume = Volume.from_array(hu, spacing=acquisition.spacing_mm, affine=affine, source=f"phantom-{seed}")
    return Phantom(volume=volume, labels=labels, facts=facts)


def _draw(
    seed: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float] | None,
    lesion_type: str | None,
    acquisition_seed: int | None,
) -> tuple[PhantomFacts, np.ndarray, np.ndarray]:
    """The facts, the lesion's place in the reference frame, and the shift of the field of view."""
    if lesion_type is not None and lesion_type not in LESION_TYPES:
        raise ValueError(f"lesion must be one of {LESION_TYPES}, not {lesion_type!r}")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be three positive sizes (z, y, x), not {shape}")
    if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
        raise ValueError(f"spacing must be three positive numbers (z, y, x) in mm, not {spacing}")
    acquisition_seed = seed if acquisition_seed is None else acquisition_seed
    findings = facts_module.draw_findings(seed)
    body = facts_module.draw_body(seed, cardiomegaly=bool(findings.cardiomegaly))
    acquisition = facts_module.draw_acquisition(acquisition_seed, body=body, shape=shape, spacing=spacing)
    lesion, rng = facts_module.draw_lesion(seed)
    lesion = replace(lesion, type=lesion_type or lesion.type)
    place = place_lesion(lesion, body, rng)
    if lesion.type != "none":
        x, y, z = ((place * body.scale)[::-1] + acquisition.offset_lps_mm).round(3).tolist()
        lesion = replace(lesion, position_lps_mm=(x, y, z))
    shift = np.random.default_rng([acquisition_seed, _NOISE]).uniform(-1, 1, 3) * (6, 5, 8)
    facts = PhantomFacts(
        seed=seed,
        acquisition_seed=acquisition_seed,
        body=body,
        findings=findings,
        lesion=lesion,
        acquisition=acquisition,
    )
    return facts, place, shift


def _paint_person(facts: PhantomFacts, grid: Grid, lesion_place: np.ndarray) -> Canvas:
    """Paint the noiseless person; every organ has its own random stream, so none depends on another's drawing."""
    body, findings = facts.body, facts.findings
    streams = np.random.default_rng([facts.seed, _ANATOMY]).spawn(6)
    tissue = Tissue(body, facts.acquisition)
    canvas = Canvas(grid)
    cage = paint_wall(canvas, body, streams[0])
    paint_abdomen(canvas, tissue, cage, streams[1])
    lungs = paint_lungs(canvas, body, tissue, cage, streams[2])
    paint_lung_findings(canvas, findings, body, lungs, streams[3])
    paint_pericardial_effusion(canvas, findings.pericardial_effusion_mm, body)
    paint_mediastinum(canvas, body, tissue)
    paint_mediastinal_findings(canvas, findings, body, streams[4])
    paint_skeleton(canvas, body)
    paint_lesion(canvas, facts.lesion, lesion_place, body, streams[5])
    paint_table(canvas, body)
    return canvas
