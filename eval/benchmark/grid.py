"""Encoders x tasks x targets x label fractions x seeds, on the same scans, splits, heads, seeds and budget."""

import hashlib
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from voxelfm_hf.eval.benchmark.cells import fit_cell, read_task
from voxelfm_hf.eval.benchmark.entrants import (
    BenchmarkRun,
    Entrant,
    enter_encoder,
    enter_tuned,
    own_baselines,
)
from voxelfm_hf.eval.benchmark.folder import cell_path, claim_folder, data_fingerprint, label_map_path
from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe, TaskRecipe
from voxelfm_hf.eval.benchmark.references import CEILING, FLOOR, SENTENCES, with_reference
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.tasks.segmentation import MASK_COLUMNS, read_mask
from voxelfm_hf.files import written_file
from voxelfm_hf.progress import Progress, unwatched
from voxelfm_hf.recipes import to_values
from voxelfm_hf.volumes.errors import RecipeError, VoxelFMError

KEY, SECONDS = b"voxelfm_key", b"voxelfm_seconds"


def run_benchmark(
    recipe: BenchmarkRecipe, data: BenchmarkData, out: Path, *, progress: Progress = unwatched
) -> BenchmarkRun:
    """Embeds, fits and predicts whatever is missing in `out`.

    Args:
        recipe: The benchmark.
        data: Scans and labels.
        out: New, empty, or of an interrupted run of the same recipe.
        progress: Told what is done and how far it is.

    Raises:
        RecipeError: `out` belongs to another recipe or other data, or no encoder could be made.
    """
    fingerprint = data_fingerprint(data)
    claim_folder(out, recipe, fingerprint)
    run = BenchmarkRun(recipe, data, notes=list(data.notes))
    for entry in [*recipe.encoders, *own_baselines(recipe, data)]:
        enter_encoder(run, entry, out, progress)
    if not run.entrants:
        raise RecipeError("no encoder could be used: " + "; ".join([*run.failures.values(), *run.notes]))
    labels = _common_rows(run)
    run.labels = labels
    enter_tuned(run, out, progress)
    if recipe.references:
        for name in (CEILING, FLOOR):
            sentence = SENTENCES[name]
            run.entrants[name] = Entrant(name, "reference", sentence, gives_patches=True, fingerprint=sentence)
    cells = [
        (entrant, task, seed)
        for task in recipe.tasks
        for entrant in run.entrants.values()
        for seed in recipe.seeds_of(task, seeded=None not in entrant.stores and entrant.name != CEILING)
    ]
    rows_hash = hashlib.sha256("\n".join(labels.ids).encode()).hexdigest()
    for number, (entrant, task, seed) in enumerate(cells):
        progress(f"{entrant.name}: {task.title}", number, len(cells))
        _fill_cell(run, entrant, task, seed, labels, out, f"{fingerprint} {rows_hash}")
    progress("predictions", len(cells), len(cells))
    return run


def _common_rows(run: BenchmarkRun) -> LabelTable:
    """The labelled rows that every encoder has: all are compared on the same ones."""
    common = set(run.data.labels.ids)
    for entrant in run.entrants.values():
        for store in entrant.stores.values():
            common &= set(store.ids)
    rows = [row for row, identifier in enumerate(run.data.labels.ids) if identifier in common]
    lost = len(run.data.labels) - len(rows)
    if not rows:
        raise RecipeError("no scan has features of every encoder: look at failures.csv.")
    if lost:
        run.notes.append(
            f"{lost} of {len(run.data.labels)} rows lack features of some encoder and were left out for all"
        )
    return run.data.labels.take(rows)


def _fill_cell(
    run: BenchmarkRun, entrant: Entrant, task: TaskRecipe, seed: int, labels: LabelTable, out: Path, data_hash: str
) -> None:
    """Predictions of one cell, from its file or computed."""
    if (entrant.name, task.title) in run.failures or (entrant.tuned and task.fits_nothing):
        return
    if task.uses_patches and not entrant.gives_patches:
        note = f"{entrant.name} gives no patches and is left out of {task.title}"
        if note not in run.notes:
            run.notes.append(note)
        return
    path = cell_path(out, entrant.name, task.title, seed)
    source = _source(run, entrant, task)
    if source is None:
        return
    what = [data_hash, entrant.fingerprint, source.fingerprint, to_values(task), run.recipe.fractions_of(task), seed]
    key = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
    table = _kept(path, key)
    if table is None:
        start = time.perf_counter()
        try:
            data = read_task(task, source.store(seed), run.data, labels)
            change = (
                partial(with_reference, task=task, labels=labels, kind=entrant.name, seed=seed)
                if entrant.kind == "reference"
                else lambda same: same
            )
            fit = entrant.tuned.fit if entrant.tuned else None
            maps = partial(_save_map, run, labels, entrant.name, task, out) if seed == run.recipe.seeds[0] else None
            table = fit_cell(data, task, run.recipe, seed=seed, change=change, save_map=maps, fit=fit)
        except VoxelFMError as error:
            run.failures[entrant.name, task.title] = str(error)
            return
        table = table.replace_schema_metadata({KEY: key, SECONDS: f"{time.perf_counter() - start:.3f}"})
        with written_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    entrant.fit_seconds += float(table.schema.metadata[SECONDS])
    run.predictions.setdefault((entrant.name, task.title), {})[seed] = table


def _source(run: BenchmarkRun, entrant: Entrant, task: TaskRecipe) -> Entrant | None:
    """Whose task data a cell works on: its own, or for ceiling and floor those of the first encoder that has them."""
    if entrant.kind != "reference":
        return entrant
    usable = [e for e in run.entrants.values() if e.stores and (e.gives_patches or not task.uses_patches)]
    return usable[0] if usable else None


def _kept(path: Path, key: str) -> pa.Table | None:
    """A finished cell, if it was made from the same things."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None
    return table if (table.schema.metadata or {}).get(KEY) == key.encode() else None


def _save_map(
    run: BenchmarkRun, labels: LabelTable, encoder: str, task: TaskRecipe, out: Path, identifier: str, found: Any
) -> None:
    """A predicted label map as NIfTI on the grid of its mask's file."""
    import nibabel

    column = task.read.get("masks") or labels.first_of(MASK_COLUMNS)
    if column is None:
        return
    mask = run.data.folder / str(labels.column(column)[labels.ids.index(identifier)])
    with written_file(label_map_path(out, encoder, task.title, identifier)) as path:
        nibabel.save(read_mask(mask, num_classes=int(1e6)).restore(found), path)
