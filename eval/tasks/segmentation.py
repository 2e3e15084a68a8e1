"""Segmentation: label maps decoded from the whole patch grid and judged on the grid of the masks themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.metrics.catalogue import find_measure
from voxelfm_hf.eval.metrics.measure import MACRO
from voxelfm_hf.eval.metrics.scoring import per_row_report
from voxelfm_hf.eval.metrics.segmentation import METRICS, segmentation_scores
from voxelfm_hf.eval.tasks.answer import Answer, EncodedScan, output_names
from voxelfm_hf.eval.tasks.data import TaskData, open_data
from voxelfm_hf.eval.tasks.fitting import FitOptions, check_features, fit_columns, too_few
from voxelfm_hf.eval.tasks.kept import Judged, Tables, judge_row_values, row_names
from voxelfm_hf.features.tiles import tile_places, tile_weights
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.modeling.probe_heads_voxelfm import patch_positions
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.data import ProbeFeatures
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import LabelError

ANSWER = "class probabilities on the size asked for"
HEADLINES = ("dice_macro",)
HAS_MACRO = False
MASK_COLUMNS = ("mask", "mask_file", "label_file", "segmentation")
NOT_ANNOTATED = -1


def read(
    store: FeatureStore,
    labels: LabelTable,
    *,
    classes: Sequence[str],
    masks: str | None = None,
    folder: str | Path = ".",
    annotated: str | None = "contoured_{}",
    voxels_per_patch: int = 4,
    head: str = "subpatch",
    **options,
) -> TaskData:
    """Labelled rows with label maps.

    Args:
        store: The feature store, with patches.
        labels: The label table.
        classes: Names of the values 0, 1, ... of the maps; the first is the background.
        masks: Column with the path of the label map; by default the first of mask, mask_file, label_file, segmentation.
        folder: Where relative paths start.
        annotated: Pattern of columns that say (1 or 0) whether a class was looked for in a scan at all; others count as
            annotated.
        voxels_per_patch: Resolution at which maps are decoded.
        head: "subpatch" (quick) or "decoder" (the published one).
        **options: Options of `open_data`.

    Raises:
        LabelError: a map that cannot be read, holds unknown values, or does not lie on its scan.
    """
    data, labels = open_data(store, labels, task="segmentation", head=head, **options)
    column = masks or labels.first_of(MASK_COLUMNS)
    if column is None:
        raise LabelError(f"{labels.source} has no column of label maps: name it; it has {', '.join(labels.columns)}")
    missing = [i for i, value in zip(labels.ids, labels.column(column), strict=True) if value is None]
    if missing:
        raise LabelError(
            f"{labels.source}: {len(missing)} rows have no {column} ({', '.join(missing[:3])}): remove them"
        )
    if len(classes) < 2:
        raise LabelError(f"a segmentation has a background and at least one class, got {', '.join(classes) or 'none'}")
    paths = [Path(folder) / str(value) for value in labels.column(column)]
    known = np.ones((len(paths), len(classes)), dtype=bool)
    for number, name in enumerate(classes):
        contoured = (annotated or "").format(name)
        if number and contoured in labels.columns:
            known[:, number] = [value is None or float(value) != 0 for value in labels.columns[contoured]]
    cache: dict[int, np.ndarray] = {}

    def target(row: int) -> np.ndarray:
        if row not in cache:
            mask = read_mask(paths[row], num_classes=len(classes))
            cache[row] = on_patch_grid(
                mask, data.affines[row], data.grids[row], voxels_per_patch=voxels_per_patch, name=paths[row].name
            )
        return cache[row]

    extra = {**data.options, "paths": paths, "known": known, "voxels_per_patch": voxels_per_patch}
    return replace(data, maps=target, annotated=known.__getitem__, names=list(classes), options=extra)


def why_unfit(rows: np.ndarray) -> str:
    """Why no probe can be fitted on some training rows; empty if one can."""
    return too_few(rows)


def fit(data: TaskData, **options: Unpack[FitOptions]) -> VoxelFMProbe:
    """A decoder of patches to voxels.

    Args:
        data: From `read`.
        **options: See `FitOptions`; the hidden width of the decoder is a multiple of 8.
    """
    return fit_columns(data, fields={"voxels_per_patch": data.options["voxels_per_patch"]}, **options)


def predict(probe: VoxelFMProbe, data: TaskData, rows: np.ndarray, *, device: str = "cpu") -> list[np.ndarray]:
    """Label maps (D, H, W), each on the LPS+ grid of the row's own mask."""
    check_features(probe, data)
    maps = []
    for row in rows:
        mask = read_mask(data.options["paths"][row], num_classes=len(data.names))
        patches = ProbeFeatures(patches=data.features.patches).patch_rows([int(row)])[0].numpy()
        maps.append(segment(probe, patches, data.affines[row], mask, device=device))
    return maps


def answer(probe: VoxelFMProbe, scan: EncodedScan) -> Answer:
    """The label map on the grid of the volume."""
    patches = scan.patches[0].cpu().numpy()
    device = str(scan.patches.device)
    label_map = segment(probe, patches, scan.patch_affine, scan.volume, device=device)
    return Answer(label_map=label_map, label_names=output_names(probe))


def evaluate(
    predictions: Sequence[np.ndarray],
    data: TaskData,
    rows: np.ndarray,
    *,
    tolerance_mm: float = 2.0,
    surfaces: bool = True,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """One report: Dice, HD95 and surface Dice of each class, means over the scans where it is annotated.

    Args:
        predictions: Label maps on the grids of the masks.
        data: The task data.
        rows: The rows they belong to.
        tolerance_mm: Tolerance of the surface Dice.
        surfaces: Whether to compute the surface metrics.
        replicates: Bootstrap replicates.
        seed: Of the bootstrap.
    """
    report = per_row_report(
        row_scores(predictions, data, rows, tolerance_mm=tolerance_mm, surfaces=surfaces),
        patients=data.groups[rows],
        subgroups=data.levels(rows),
        replicates=replicates,
        seed=seed,
    )
    return {"structures": report}


def row_scores(
    predictions: Sequence[np.ndarray],
    data: TaskData,
    rows: np.ndarray,
    *,
    tolerance_mm: float = 2.0,
    surfaces: bool = True,
) -> dict[str, np.ndarray]:
    """Scores (rows,) by name, as `segmentation_scores` gives them for each scan; arguments as in `evaluate`."""
    scores = []
    for prediction, row in zip(predictions, rows, strict=True):
        mask = read_mask(data.options["paths"][row], num_classes=len(data.names))
        scores.append(
            segmentation_scores(
                prediction,
                mask.hu,
                class_names=data.names,
                spacing=mask.spacing if surfaces else None,
                tolerance_mm=tolerance_mm,
                annotated=data.options["known"][row],
            )
        )
    return {name: np.array([score[name] for score in scores]) for name in scores[0]} if scores else {}


def counts(data: TaskData, rows: np.ndarray) -> dict[str, str]:
    """In how many of some rows each class was looked for."""
    known = data.options["known"][rows]
    return {f"{name} annotated": str(int(known[:, i].sum())) for i, name in enumerate(data.names) if i}


def columns(
    predictions: Sequence[np.ndarray],
    data: TaskData,
    rows: np.ndarray,
    *,
    probe: VoxelFMProbe,
    tolerance_mm: float = 2.0,
    surfaces: bool = True,
) -> list[dict[str, Any]]:
    """A target a class: dice, hd95 (mm), nsd of each scan; "macro" is the mean over the classes of a scan."""
    scores = row_scores(predictions, data, rows, tolerance_mm=tolerance_mm, surfaces=surfaces)
    metrics = METRICS if surfaces else METRICS[:1]
    return [
        {**row_names(data, rows), "target": name, **{metric: scores[f"{metric}_{name}"] for metric in metrics}}
        for name in (*data.names[1:], MACRO)
    ]


def judge(tables: Tables, options: Mapping[str, Any]) -> Judged:
    """Measures of kept predictions by seed."""
    return judge_row_values(tables, (measure for name in METRICS if (measure := find_measure(name))))


def main_metric(options: Mapping[str, Any]) -> str:
    """The overlap."""
    return "dice"


def read_mask(path: str | Path, *, num_classes: int) -> Volume:
    """A label map as a volume in LPS+ whose `hu` holds classes; LabelError for values that are no class."""
    if not Path(path).exists():
        raise LabelError(f"{path} does not exist: the label table names it as a label map")
    mask = read_volume(path, assume_hu=True)
    values = np.unique(mask.hu)
    if (values != np.round(values)).any() or values[0] < 0 or values[-1] >= num_classes:
        odd = [f"{v:g}" for v in values if v != round(float(v)) or v < 0 or v >= num_classes]
        raise LabelError(
            f"{path} holds {', '.join(odd[:3])}, which is no class: the values must be 0 to {num_classes - 1} as the "
            "classes are listed"
        )
    return mask


def on_patch_grid(
    mask: Volume, patch_affine: np.ndarray, grid: np.ndarray, *, voxels_per_patch: int, name: str = "the mask"
) -> np.ndarray:
    """The classes at the decoded voxels of a patch grid, by nearest voxel; -1 where the mask does not reach.

    Args:
        mask: From `read_mask`.
        patch_affine: (4, 4) patch index (d, h, w, 1) -> LPS mm.
        grid: Patch grid (d, h, w).
        voxels_per_patch: Decoded voxels along each edge of a patch.
        name: For the message.

    Returns:
        (d * v, h * v, w * v) int16.

    Raises:
        LabelError: the mask and the scan do not overlap.
    """
    to_mask = np.linalg.inv(mask.affine) @ patch_affine
    size = [int(n) * voxels_per_patch for n in grid]
    axes = [(np.arange(n) + 0.5) / voxels_per_patch - 0.5 for n in size]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    place = np.rint(index @ to_mask[:3, :3].T + to_mask[:3, 3]).astype(int)
    inside = ((place >= 0) & (place < mask.hu.shape)).all(axis=1)
    if not inside.any():
        raise LabelError(
            f"{name} lies outside its scan: the two affines disagree; save the mask with the geometry of the scan"
        )
    classes = np.full(len(place), NOT_ANNOTATED, dtype=np.int16)
    classes[inside] = mask.hu[tuple(place[inside].T)]
    return classes.reshape(size)


@torch.no_grad()
def decoded_chances(probe: VoxelFMProbe, patches: torch.Tensor) -> torch.Tensor:
    """Class probabilities over a whole patch grid, decoded window by window as in the fit; overlaps are averaged.

    Args:
        probe: A segmentation probe in evaluation mode.
        patches: (d, h, w, C) on the device of the probe.

    Returns:
        (K, d * v, h * v, w * v) for v voxels a patch.
    """
    grid, v = tuple(patches.shape[:3]), probe.config.voxels_per_patch
    positions = patch_positions(grid, patches)
    total = patches.new_zeros((probe.config.num_classes, *(n * v for n in grid)))
    weight = patches.new_zeros(total.shape[1:])
    for place in tile_places(grid, probe.config.decoded_patches):
        window = patches[place]
        d, h, w = (n * v for n in window.shape[:3])
        logits = probe(patches=window[None], size=(d, h, w), positions=positions[place][None]).logits
        inside = tuple(slice(side.start * v, side.stop * v) for side in place)
        importance = tile_weights((d, h, w), patches.device)
        total[(slice(None), *inside)] += logits[0].softmax(0) * importance
        weight[inside] += importance
    return total.div_(weight)


@torch.no_grad()
def segment(
    probe: VoxelFMProbe, patches: np.ndarray, patch_affine: np.ndarray, onto: Volume, *, device: str = "cpu"
) -> np.ndarray:
    """The label map of a scan on the grid of a volume; `volume.restore` puts it on the file's own grid.

    The patch grid is decoded in overlapping windows. Class probabilities are interpolated linearly to the voxels before
    the largest is taken, slice by slice.

    Args:
        probe: A segmentation probe.
        patches: (d, h, w, C) patch features of the whole scan.
        patch_affine: (4, 4) patch index (d, h, w, 1) -> LPS mm.
        onto: The volume whose grid is wanted.
        device: Where to compute.

    Returns:
        (D, H, W) classes, uint8 (uint16 above 256 classes); 0 where the model saw nothing.
    """
    probe.to(device).eval()  # type: ignore[arg-type]
    features = torch.as_tensor(np.asarray(patches), dtype=torch.float32, device=device)
    chances = decoded_chances(probe, features)[None]  # (1, K, D', H', W')
    to_patch = torch.as_tensor(np.linalg.inv(patch_affine) @ onto.affine, device=device)
    depth, height, width = onto.hu.shape
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    extent = torch.tensor(features.shape[:3], device=device)
    labels = np.zeros(onto.hu.shape, dtype=np.uint8 if probe.config.num_classes <= 256 else np.uint16)
    for z in range(depth):
        index = torch.stack((torch.full_like(y, z), y, x), dim=-1).double()
        position = 2 * (index @ to_patch[:3, :3].T + to_patch[:3, 3] + 0.5) / extent - 1  # -1 to 1 across the grid
        sampled = torch.nn.functional.grid_sample(
            chances, position.flip(-1)[None, None].float(), padding_mode="border", align_corners=False
        )
        seen = (position.abs() <= 1).all(-1)
        labels[z] = torch.where(seen, sampled[0, :, 0].argmax(0), 0).cpu().numpy()
    return labels
