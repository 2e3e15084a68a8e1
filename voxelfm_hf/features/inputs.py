"""Scans as model inputs: read and prepared ahead in worker processes, each with the facts of its row."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxelfm_hf.features.identity import input_hashes, is_other, other_input
from voxelfm_hf.features.tiles import TILED_BUDGET
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry, VoxelFMImageProcessor
from voxelfm_hf.read_ahead import WorkerCrash, read_ahead
from voxelfm_hf.scan_list import Region, Scan, Task
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import VoxelFMError

NOT_SETTINGS = ("auto_map", "image_processor_type", "processor_class")


@dataclass(frozen=True)
class EmbedOptions:
    """How scans are read and embedded; everything that changes a row is written to the store's run.json.

    Attributes:
        patches: Keep the patch grids beside the CLS vectors.
        max_patches: Patch budget in place of the processor's own.
        pad: Pad volumes thinner than one patch by their edge values.
        region_size: Edge in voxels of a region's cube; the model's training crop by default.
        voxel_mm: Isotropic spacing of every scan, in place of that of its finest axis.
        tile: Edge in voxels of overlapping tiles that whole scans go through the model in, see `tiles`.
        dtype: "auto" (bfloat16 where the hardware computes in it, else float32) or a name in `hub.DTYPES`.
        workers: Processes that read ahead; 0 reads in this process.
        assume_hu, spacing: Passed to `read_volume`.
    """

    patches: bool = False
    max_patches: int | None = None
    pad: bool = False
    region_size: int | None = None
    voxel_mm: float | None = None
    tile: int | None = None
    dtype: str = "auto"
    workers: int = 0
    assume_hu: bool = False
    spacing: tuple[float, float, float] | None = None

    def set_up(self, processor: VoxelFMImageProcessor) -> None:
        """Gives a processor the settings that are asked for; it keeps its own where none are."""
        processor.max_patches = self.max_patches or (TILED_BUDGET if self.tile else processor.max_patches)
        processor.voxel_mm = self.voxel_mm or processor.voxel_mm
        processor.pad_thin = self.pad or processor.pad_thin

    def input_hashes(self, task: Task) -> dict[str, str | None]:
        """See `identity.input_hashes`, for a scan that is read as these options say."""
        return input_hashes(task, assume_hu=self.assume_hu, spacing=self.spacing)


def processor_settings(processor: VoxelFMImageProcessor) -> dict[str, Any]:
    """How a processor prepares scans, without what only says how its folder is loaded."""
    # Versions of transformers differ in whether they name what is None.
    settings = processor.to_dict().items()
    return {name: value for name, value in settings if name not in NOT_SETTINGS and value is not None}


def set_up_processor(
    processor: VoxelFMImageProcessor, settings: Mapping[str, Any] | None
) -> tuple[int | None, int | None]:
    """Gives a processor the settings that features were made with: `processor` of a store's run.json or of a probe.

    Returns:
        Edge in voxels of the regions, and of the tiles, that were embedded; None for whole scans in one piece.
    """
    found = dict(settings or {})
    region_size, tile = found.pop("region_size", None), found.pop("tile", None)
    for name, value in found.items():
        setattr(processor, name, value)
    return region_size, tile


@dataclass(frozen=True)
class Prepared:
    """One model input and the facts of its row; voxels are int16 where they stand for bfloat16 bits."""

    voxels: np.ndarray
    facts: dict[str, Any]


def prepared_scans(
    tasks: Sequence[Task],
    processor: VoxelFMImageProcessor,
    options: EmbedOptions,
    *,
    region_size: int,
    present: frozenset[str] = frozenset(),
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Task, dict[str, Prepared | str]]]:
    """The model inputs of scans, read ahead in worker processes.

    Args:
        tasks: What to prepare.
        processor: Prepares them.
        options: How to read.
        region_size: Edge in voxels of a region's cube.
        present: Ids to leave out.
        dtype: Of the voxels.

    Yields:
        Each task with its inputs by id; a sentence where one cannot be made.
    """
    setup = (processor, options, region_size, present, dtype)
    for task, results in read_ahead(_prepare, tasks, workers=options.workers, setup=_set_up, setup_args=setup):
        if isinstance(results, WorkerCrash):
            reason = f"{task.scan.identifier}: reading it ended the process (out of memory or a damaged file)"
            results = dict.fromkeys(task.identifiers, reason)
        yield task, results


_worker: dict[str, Any] = {}


def _set_up(
    processor: VoxelFMImageProcessor, options: EmbedOptions, region_size: int, present: frozenset, dtype: torch.dtype
) -> None:
    """What every reading process needs once."""
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # the model has the cores
    _worker.update(processor=processor, options=options, region_size=region_size, present=present, dtype=dtype)


def _prepare(task: Task) -> dict[str, Prepared | str]:
    """The model inputs of a scan by id; a sentence where one cannot be made."""
    options = _worker["options"]
    try:
        volume = read_volume(task.scan.path, assume_hu=options.assume_hu, spacing=options.spacing)
    except Exception as error:
        return dict.fromkeys(task.identifiers, failure_reason(task.scan, error))
    results: dict[str, Prepared | str] = {}
    hashes = options.input_hashes(task)
    for identifier, region in zip(task.identifiers, task.regions or (None,), strict=True):
        if identifier in _worker["present"]:
            continue
        try:
            results[identifier] = _prepare_one(task.scan, identifier, volume, region, hashes[identifier])
        except Exception as error:
            results[identifier] = failure_reason(task.scan, error)
    return results


def _prepare_one(
    scan: Scan, identifier: str, volume: Volume, region: Region | None, input_hash: str | None
) -> Prepared:
    processor = _worker["processor"]
    if region is None:
        features = processor(volume, return_geometry=True)
        voxels, geometry = features["pixel_values"][0], features["geometry"][0]
    else:
        voxels, geometry = processor.prepare_region(volume, region.centre_lps, region.edge_mm, _worker["region_size"])
    facts = row_facts(scan, identifier, volume, geometry, patch_size=processor.patch_size)
    facts["input_hash"] = input_hash
    voxels = voxels.to(_worker["dtype"])
    # numpy knows no bfloat16; its bits travel as int16
    return Prepared((voxels.view(torch.int16) if voxels.dtype == torch.bfloat16 else voxels).numpy(), facts)


def row_facts(
    scan: Scan, identifier: str, volume: Volume, geometry: VoxelFMGeometry, *, patch_size: int
) -> dict[str, Any]:
    """What a store says of a row beside its features.

    Args:
        scan: The scan.
        identifier: Of the row: the scan, or one of its regions.
        volume: The scan as it was read.
        geometry: Where the prepared volume lies in it.
        patch_size: Edge of a patch in prepared voxels.
    """
    return {
        "id": identifier,
        "source": scan.identifier if scan.named else volume.source,
        "grid": list(geometry.grid),
        "spacing_mm": list(volume.spacing),
        "effective_spacing_mm": list(geometry.spacing_mm),
        "field_of_view_mm": [n * patch_size * mm for n, mm in zip(geometry.grid, geometry.spacing_mm, strict=True)],
        "patch_affine": (volume.affine @ geometry.patch_to_voxel()).ravel().tolist(),
        "notes": [*volume.notes, *geometry.notes],
    }


def mistaken(
    tasks: Sequence[Task], known: Mapping[str, str | None], options: EmbedOptions, folder: Path
) -> dict[str, str]:
    """A sentence for every id that is in a folder already, made of something else than the task names now.

    Args:
        tasks: What is asked for.
        known: Hash by id of what is there; None where it is not known.
        options: How scans are read.
        folder: The folder, for the sentence.
    """
    there = [task for task in tasks if any(known.get(identifier) is not None for identifier in task.identifiers)]
    return {
        identifier: other_input(identifier, folder, is_region=bool(task.regions))
        for task in there
        for identifier, asked in options.input_hashes(task).items()
        if is_other(known.get(identifier), asked)
    }


def failure_reason(scan: Scan, error: Exception) -> str:
    """One sentence that names the scan by its id; texts of unexpected errors may quote headers and are left out."""
    if isinstance(error, (VoxelFMError, ValueError)):
        text = str(error).replace(str(scan.path), scan.identifier)
        if scan.named:
            text = text.replace(f"{scan.path.parent}{os.sep}", "").replace(scan.path.name, scan.identifier)
            # A message may name a file beside the scan: its .json, its .hdr.
            stem = re.escape(scan.path.name.split(".")[0])
            text = re.sub(rf"{stem}((\.[A-Za-z]\w*)+)", lambda found: scan.identifier + found[1], text)
        return text if scan.identifier in text else f"{scan.identifier}: {text}"
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else "unknown place"
    return f"{scan.identifier}: unexpected {type(error).__name__} at {where}, please report it"
