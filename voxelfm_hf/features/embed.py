"""Scans to features in a store: the model computes while further scans are read and prepared ahead."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import voxelfm_hf
from voxelfm_hf.failures import write_failures
from voxelfm_hf.features.inputs import EmbedOptions, Prepared, mistaken, prepared_scans, processor_settings
from voxelfm_hf.features.tiles import check_tile, encode
from voxelfm_hf.hub import inference_dtype, load, resolve_model, weight_hash
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry, VoxelFMImageProcessor
from voxelfm_hf.scan_list import Task
from voxelfm_hf.store import StoreWriter, locked
from voxelfm_hf.volumes import Volume

# Regions of one scan go through the model in batches of this many cubes.
REGION_BATCH = 16


@dataclass
class BatchSummary:
    """What became of the scans and regions that were asked for."""

    added: int = 0
    present: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def embed_scans(
    tasks: Sequence[Task],
    model: str | Path,
    store: str | Path,
    options: EmbedOptions = EmbedOptions(),  # noqa: B008 (frozen)
    *,
    on_start: Callable[[int], None] | None = None,
    on_scan: Callable[[Task], None] | None = None,
) -> BatchSummary:
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
    dtype = inference_dtype(options.dtype, state.device)
    network, processor = load(folder, dtype=dtype)
    network = network.to(state.device)
    options.set_up(processor)
    check_tile(options.tile, network.config.patch_size)
    region_size = options.region_size or network.config.image_size
    run = _run_facts(model, folder, processor, options, dtype, region_size if any(t.regions for t in tasks) else None)

    summary = BatchSummary()
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
        known = dict(zip(writer.ids, writer.table["input_hash"].to_pylist(), strict=True))
        summary.failures = mistaken(tasks[state.process_index :: state.num_processes], known, options, writer.folder)
        if on_start:
            on_start(len(share))
        prepared = prepared_scans(
            share, processor, options, region_size=region_size, present=frozenset(present), dtype=dtype
        )
        for task, results in prepared:
            rows, patches, failures = _embed(network, results, state.device, None if task.regions else options.tile)
            if rows:
                writer.add(rows, patches if options.patches else None)
            summary.added += len(rows)
            summary.failures.update(failures)
            if failures and state.num_processes == 1:
                write_failures(writer.folder, _merged(writer, summary.failures, present))
            if on_scan:
                on_scan(task)
        if state.num_processes > 1:
            shares = gather_object([summary])
            summary.added = sum(share.added for share in shares)
            summary.failures = {key: reason for share in shares for key, reason in share.failures.items()}
        summary.present -= sum(identifier in present for identifier in summary.failures)
        if state.is_main_process:
            asked = {identifier for task in tasks for identifier in task.identifiers}
            write_failures(writer.folder, _merged(writer, summary.failures, asked - summary.failures.keys()))
    return summary


def process_state() -> Any:
    """The processes of this run, as an `Accelerator` made later finds them."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # By itself it does not look at the flag, and would keep an Accelerator from doing so.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def embed_volume(model: Any, processor: VoxelFMImageProcessor, volume: Volume) -> tuple[np.ndarray, VoxelFMGeometry]:
    """Patch features of one volume in memory, for pictures and maps.

    Returns:
        Patch features (d, h, w, C) float32, and where the grid lies in the volume.
    """
    prepared = processor(volume, return_geometry=True)
    _, grids = encode(model, prepared["pixel_values"].to(model.device))
    return grids[0].cpu().numpy(), prepared["geometry"][0]


def _run_facts(
    model: str | Path,
    folder: Path,
    processor: VoxelFMImageProcessor,
    options: EmbedOptions,
    dtype: torch.dtype,
    region_size: int | None,
) -> dict[str, Any]:
    settings = processor_settings(processor)
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
        arrays = [prepared.voxels for prepared in batch]
        voxels = torch.from_numpy(np.stack(arrays) if len(arrays) > 1 else arrays[0][None])
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
