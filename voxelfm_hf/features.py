"""Scans to features: reading and preparing run ahead in worker processes while the model computes."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import voxelfm_hf
from voxelfm_hf.hub import load, resolve_model, weight_hash
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry, VoxelFMImageProcessor
from voxelfm_hf.read_ahead import WorkerCrash, read_ahead
from voxelfm_hf.scan_list import Region, Scan
from voxelfm_hf.store import StoreWriter, locked
from voxelfm_hf.tiles import TILED_BUDGET, check_tile, encode
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import ModelError, VoxelFMError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Regions of one scan go through the model in batches of this many cubes.
REGION_BATCH = 16
# Settings of a processor that say how a saved folder is loaded, not how a scan is prepared.
NOT_SETTINGS = ("auto_map", "image_processor_type", "processor_class", "max_patches", "pad_thin")


@dataclass(frozen=True)
class Task:
    """A scan to embed, whole or by regions."""

    scan: Scan
    regions: tuple[Region, ...] = ()

    @property
    def identifiers(self) -> list[str]:
        return [region.identifier for region in self.regions] or [self.scan.identifier]


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
        dtype: "auto" (bfloat16 where the hardware computes in it, else float32) or a name in `DTYPES`.
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


@dataclass
class EmbedSummary:
    """What became of the scans and regions that were asked for."""

    added: int = 0
    present: int = 0
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """One model input and the facts of its row; voxels are int16 where they stand for bfloat16 bits."""

    voxels: np.ndarray
    facts: dict[str, Any]


def embed_scans(
    tasks: Sequence[Task],
    model: str | Path,
    store: str | Path,
    options: EmbedOptions = EmbedOptions(),  # noqa: B008 (frozen)
    *,
    on_start: Callable[[int], None] | None = None,
    on_scan: Callable[[Task], None] | None = None,
) -> EmbedSummary:
    """Adds the features of scans to a store; what is there already is left alone.

    Under `accelerate launch` every process embeds its share of the scans.

    Args:
        tasks: Scans with unique ids (see `scan_list.list_scans`).
        model: Folder or Hub repository.
        store: Folder of the store; created when new.
        options: How to read and embed.
        on_start: Called with the number of scans this process will embed.
        on_scan: Called after each of them.

    Returns:
        Counts and the reason of each failure by id; on the main process those of all processes.

    Raises:
        ModelError, StoreError: nothing can be embedded with this model, or into this store.
    """
    from accelerate.utils import gather_object

    state = process_state()
    folder = resolve_model(model)
    dtype = _dtype(options.dtype, state.device)
    network, processor = load(folder, dtype=dtype)
    network = network.to(state.device)
    processor.max_patches = options.max_patches or (TILED_BUDGET if options.tile else processor.max_patches)
    processor.voxel_mm = options.voxel_mm or processor.voxel_mm
    processor.pad_thin = options.pad or processor.pad_thin
    check_tile(options.tile, network.config.patch_size)
    region_size = options.region_size or network.config.image_size
    run = _run_facts(model, folder, processor, options, dtype, region_size if any(t.regions for t in tasks) else None)

    summary = EmbedSummary()
    # Only the main process locks; the others belong to the same run.
    with locked(Path(store)) if state.is_main_process else nullcontext():
        if state.is_main_process:
            writer = StoreWriter(store, run)
        state.wait_for_everyone()
        if not state.is_main_process:
            writer = StoreWriter(store, run, rank=state.process_index)
        present = set(writer.ids)
        todo = [task for task in tasks if not present.issuperset(task.identifiers)]
        summary.present = sum(len(present.intersection(task.identifiers)) for task in tasks)
        state.wait_for_everyone()  # every process has seen the same rows before the first is added
        share = todo[state.process_index :: state.num_processes]
        if on_start:
            on_start(len(share))
        prepared = prepared_scans(
            share, processor, options, region_size=region_size, present=frozenset(present), dtype=dtype
        )
        for task, results in prepared:
            rows, patches, failures = _embed(network, results, state.device, None if task.regions else options.tile)
            writer.add(rows, patches if options.patches else None) if rows else None
            summary.added += len(rows)
            summary.failures.update(failures)
            if failures and state.num_processes == 1:
                writer.write_failures(_merged(writer, summary.failures, present))
            if on_scan:
                on_scan(task)
        if state.num_processes > 1:
            shares = gather_object([summary])
            summary.added = sum(share.added for share in shares)
            summary.failures = {key: reason for share in shares for key, reason in share.failures.items()}
        if state.is_main_process:
            asked = {identifier for task in tasks for identifier in task.identifiers}
            writer.write_failures(_merged(writer, summary.failures, asked - summary.failures.keys()))
    return summary


def process_state() -> Any:
    """The processes of this run, as an `Accelerator` made later finds them."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # By itself it does not look at the flag, and would keep an Accelerator from doing so.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


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


def embed_volume(model: Any, processor: VoxelFMImageProcessor, volume: Volume) -> tuple[np.ndarray, VoxelFMGeometry]:
    """Patch features of one volume in memory, for pictures and maps.

    Returns:
        Patch features (d, h, w, C) float32, and where the grid lies in the volume.
    """
    prepared = processor(volume, return_geometry=True)
    with torch.inference_mode():
        outputs = model(prepared["pixel_values"].to(model.device))
    grid = model.patch_features(outputs, prepared["geometry"][0].grid)
    return grid[0].float().cpu().numpy(), prepared["geometry"][0]


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    if name not in DTYPES:
        raise ModelError(f"the dtype {name} is not known: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _run_facts(
    model: str | Path,
    folder: Path,
    processor: VoxelFMImageProcessor,
    options: EmbedOptions,
    dtype: torch.dtype,
    region_size: int | None,
) -> dict[str, Any]:
    settings = {key: value for key, value in processor.to_dict().items() if key not in NOT_SETTINGS}
    settings.update(max_patches=processor.max_patches, pad_thin=processor.pad_thin)
    settings = {key: value for key, value in settings.items() if key != "voxel_mm" or value is not None}
    if region_size:
        settings["region_size"] = region_size
    if options.tile:
        settings["tile"] = options.tile
    import transformers

    return {
        # The name of a local folder may hold anything; its last part is enough to recognise it.
        "model": Path(model).name if Path(model).is_dir() else str(model),
        "weight_hash": weight_hash(folder),
        "processor": settings,
        "dtype": str(dtype).removeprefix("torch."),
        "patches": options.patches,
        "versions": {
            "voxelfm_hf": voxelfm_hf.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _merged(writer: StoreWriter, failures: dict[str, str], resolved: set[str]) -> dict[str, str]:
    """Earlier failures that this run did not resolve, and its own."""
    earlier = {key: reason for key, reason in writer.failures().items() if key not in resolved}
    return {**earlier, **failures}


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
    for identifier, region in zip(task.identifiers, task.regions or (None,), strict=True):
        if identifier in _worker["present"]:
            continue
        try:
            results[identifier] = _prepare_one(task.scan, identifier, volume, region)
        except Exception as error:
            results[identifier] = failure_reason(task.scan, error)
    return results


def _prepare_one(scan: Scan, identifier: str, volume: Volume, region: Region | None) -> Prepared:
    processor = _worker["processor"]
    if region is None:
        features = processor(volume, return_geometry=True)
        voxels, geometry = features["pixel_values"][0], features["geometry"][0]
    else:
        voxels, geometry = processor.prepare_region(volume, region.centre_lps, region.edge_mm, _worker["region_size"])
    facts = row_facts(scan, identifier, volume, geometry, patch_size=processor.patch_size)
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


@torch.inference_mode()
def _embed(
    network: Any, results: dict[str, Prepared | str], device: torch.device, tile: int | None
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], dict[str, str]]:
    """Rows, patch grids and failures of one scan's model inputs."""
    failures = {key: result for key, result in results.items() if isinstance(result, str)}
    ready = [result for result in results.values() if isinstance(result, Prepared)]
    rows, patches = [], {}
    for start in range(0, len(ready), REGION_BATCH):
        batch = ready[start : start + REGION_BATCH]
        voxels = torch.from_numpy(np.stack([prepared.voxels for prepared in batch]))
        if voxels.dtype == torch.int16:
            voxels = voxels.view(torch.bfloat16)
        grid = tuple(batch[0].facts["grid"])
        try:
            vectors, features = encode(network, voxels.to(device), tile=tile)
            cls, grids = vectors.cpu().numpy(), features.cpu().numpy()
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            reason = f"not enough memory for {int(np.prod(grid))} patches: lower --max-patches, or use --tile"
            failures.update((p.facts["id"], f"{p.facts['id']}: {reason}") for p in batch)
            continue
        for prepared, vector, patch_grid in zip(batch, cls, grids, strict=True):
            identifier = prepared.facts["id"]
            if not np.isfinite(vector).all():
                failures[identifier] = f"{identifier}: the model gave features that are not finite: try --dtype float32"
                continue
            rows.append({**prepared.facts, "cls": vector})
            patches[identifier] = patch_grid
    return rows, patches, failures
