"""Encoders x tasks x targets x label fractions x seeds, on the same scans, splits, heads, seeds and budget.

    OUT/state.json             what the folder was made with; another recipe or other data are refused
    OUT/stores/…               one feature store an encoder (and seed, for random weights)
    OUT/predictions/ENCODER/TASK/seed-N.parquet   a finished cell, never computed twice (`benchmark_cells`)
    OUT/results.csv …          made again from the predictions on every run (`benchmark_scores`, `benchmark_report`)

An encoder that cannot be made, or data it cannot read, is a failure with its sentence; the rest goes on.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from voxelfm_hf.eval.benchmark.cells import fit_cell, label_map_path, read_task
from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe, EncoderRecipe, TaskRecipe
from voxelfm_hf.eval.benchmark.references import CEILING, FLOOR, SENTENCES, with_reference
from voxelfm_hf.eval.benchmark.tuning import TunedEncoder, TuningInputs, tuning_fingerprint
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.encoders import Encoder, EncoderSetup, make_encoder
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.tasks.segmentation import read_mask
from voxelfm_hf.files import written_file
from voxelfm_hf.recipes import to_values
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes.errors import RecipeError, VoxelFMError

# what, steps done, steps in all
Progress = Callable[[str, int, int], None]
# Fields of a recipe that may differ between runs into one folder: what they change is checked cell by cell.
MAY_CHANGE = ("encoders", "quick", "title", "folder")
KEY, SECONDS = b"voxelfm_key", b"voxelfm_seconds"


@dataclass
class Entrant:
    """An encoder with what became of it.

    Attributes:
        name: In tables.
        kind: "model", "baseline" or "reference".
        preprocessing: One sentence.
        stores: By seed; None is the store of an encoder without random weights.
        gives_patches: Whether it can localise and segment.
        fingerprint: Of the encoder, over all its seeds.
        seconds: Embedding, all runs together.
        fit_seconds: Fits and predictions.
        scans: Rows embedded.
        failures: Reason by id.
        tuned: For a fine-tuned encoder, how it is fitted.
    """

    name: str
    kind: str
    preprocessing: str = ""
    stores: dict[int | None, FeatureStore] = field(default_factory=dict)
    gives_patches: bool = False
    fingerprint: str = ""
    seconds: float = 0.0
    fit_seconds: float = 0.0
    scans: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    tuned: TunedEncoder | None = None

    def store(self, seed: int) -> FeatureStore:
        """The features that a seed works on."""
        return self.stores[seed if seed in self.stores else None]


@dataclass
class BenchmarkRun:
    """A finished benchmark.

    Attributes:
        recipe: What was asked for.
        data: What it ran on.
        entrants: Encoders that have features, ceiling and floor included.
        predictions: (encoder, task) -> seed -> predictions.
        failures: (encoder, task or "" or an id) -> sentence.
        notes: What a reader has to know.
        labels: Rows of the label table that every encoder has.
    """

    recipe: BenchmarkRecipe
    data: BenchmarkData
    entrants: dict[str, Entrant] = field(default_factory=dict)
    predictions: dict[tuple[str, str], dict[int, pa.Table]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    labels: LabelTable | None = None


def run_benchmark(
    recipe: BenchmarkRecipe, data: BenchmarkData, out: Path, *, progress: Progress = lambda what, done, total: None
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
    _claim(out, recipe, fingerprint)
    run = BenchmarkRun(recipe, data, notes=list(data.notes))
    for entry in [*recipe.encoders, *_baselines(recipe, data)]:
        _embed(run, entry, out, progress)
    if not run.entrants:
        raise RecipeError("no encoder could be used: " + "; ".join([*run.failures.values(), *run.notes]))
    labels = _common_rows(run)
    run.labels = labels
    _tune(run, out, progress)
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


def _tune(run: BenchmarkRun, out: Path, progress: Progress) -> None:
    """Adds every mode of fine-tuning of the encoders that can be fine-tuned."""
    done, total = 0, len(run.data.tasks)

    def advance(_: Any) -> None:
        nonlocal done
        done += 1
        progress("inputs of fine-tuning", done, total)

    inputs = TuningInputs(run.recipe, run.data, out, advance)
    for entry in run.recipe.encoders:
        base = run.entrants.get(entry.title)
        if base is None:
            continue
        try:
            added = inputs.tuned(entry)
        except VoxelFMError as error:
            run.failures[f"{entry.title}+{run.recipe.fine_tuning[0]}", ""] = str(error)
            continue
        for name, tuned in added.items():
            run.entrants[name] = replace(
                base,
                name=name,
                tuned=tuned,
                seconds=0.0,
                scans=0,
                failures={},
                fingerprint=f"{base.fingerprint} {tuning_fingerprint(run.recipe, tuned.mode)}",
            )


def data_fingerprint(data: BenchmarkData) -> str:
    """SHA-256 of the label table, and of the names and sizes of scan files."""
    digest = hashlib.sha256(json.dumps([data.labels.ids, data.labels.columns], sort_keys=True, default=str).encode())
    for task in data.tasks:
        size = task.scan.path.stat().st_size if task.scan.path.is_file() else 0
        digest.update(f"{task.scan.identifier} {task.regions} {size}\n".encode())
    return digest.hexdigest()


def slug(name: str) -> str:
    """A name as a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "encoder"


def cell_path(out: Path, encoder: str, task: str, seed: int) -> Path:
    """Where the predictions of a cell lie."""
    return out / "predictions" / slug(encoder) / slug(task) / f"seed-{seed}.parquet"


def _claim(out: Path, recipe: BenchmarkRecipe, fingerprint: str) -> None:
    """Writes state.json into a new folder, or refuses one that was made otherwise; encoders may be added or changed."""
    values = {
        key: value for key, value in to_values(recipe).items() if key not in ("encoders", "quick", "title", "folder")
    }
    state = json.loads(json.dumps({"recipe": values, "data": fingerprint}))
    path = out / "state.json"
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise RecipeError(f"{out} exists and is no benchmark folder: name a new or empty one.")
        with written_file(path) as temporary:
            temporary.write_text(json.dumps(state, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text())
        before = found["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RecipeError(f"{path} cannot be read: name a new folder.") from None
    changed = sorted(key for key in {*before, *values} if before.get(key) != state["recipe"].get(key))
    if changed:
        raise RecipeError(f"{out} was made with another recipe ({', '.join(changed)} differ): name a new folder.")
    if found.get("data") != fingerprint:
        raise RecipeError(f"{out} was made with other data (labels or scans differ): name a new folder.")


def _baselines(recipe: BenchmarkRecipe, data: BenchmarkData) -> list[EncoderRecipe]:
    """The data set's own baselines, under names that no encoder has."""
    taken = {entry.title for entry in recipe.encoders}
    found = []
    for baseline, columns in data.baselines.items() if recipe.baselines else ():
        name = f"{baseline} only" if f"{baseline} only" not in taken else f"{baseline} columns"
        found.append(EncoderRecipe("columns", name, options={"columns": list(columns)}))
    return found


def _embed(run: BenchmarkRun, entry: EncoderRecipe, out: Path, progress: Progress) -> None:
    """Fills the stores of one encoder; one that cannot be made is a failure."""
    recipe, name = run.recipe, entry.title
    needs_patches = any(task.uses_patches for task in recipe.tasks)
    kind = "baseline" if entry.kind in ("columns", "spacing", "intensity", "radiomics", "untrained") else "model"
    entrant = Entrant(name, kind)
    try:
        seeds: list[int | None] = [None]
        for position, seed in enumerate(recipe.seeds):
            setup = EncoderSetup(
                out / "models",
                entry.model,
                seed,
                recipe.region_size,
                recipe.max_patches,
                recipe.dtype,
                voxel_mm=recipe.voxel_mm,
                tile=recipe.tile,
            )
            encoder = make_encoder(entry.kind, setup, entry.options)
            if position == 0:
                if not encoder.gives_patches and all(task.uses_patches for task in recipe.tasks):
                    run.notes.append(f"{name} gives no patches, which every task here needs, and is left out")
                    return
                seeds = list(recipe.seeds) if encoder.seeded else [None]
                entrant.preprocessing, entrant.gives_patches = encoder.preprocessing, encoder.gives_patches
            _fill_store(run, entrant, encoder, seeds[position], out, needs_patches, progress)
            if not encoder.seeded:
                break
    except VoxelFMError as error:
        run.failures[name, ""] = str(error)
        return
    run.failures.update({(name, identifier): reason for identifier, reason in entrant.failures.items()})
    if not all(store.table.num_rows for store in entrant.stores.values()):
        reason = next(iter(entrant.failures.values()), "no scan has features")
        run.failures[name, ""] = f"none of the scans could be embedded: {reason}"
        return
    entrant.scans = sum(store.table.num_rows for store in entrant.stores.values())
    run.entrants[name] = entrant


def _fill_store(
    run: BenchmarkRun,
    entrant: Entrant,
    encoder: Encoder,
    seed: int | None,
    out: Path,
    needs_patches: bool,
    progress: Progress,
) -> None:
    short = hashlib.sha256(f"{encoder.fingerprint} {needs_patches}".encode()).hexdigest()[:8]
    store = out / "stores" / f"{slug(entrant.name)}-{short}"
    done, total = 0, len(run.data.tasks)
    what = f"{entrant.name}: features" if seed is None else f"{entrant.name}: features, seed {seed}"

    def advance(_: Any) -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    progress(what, 0, total)
    start = time.perf_counter()
    patches = needs_patches and encoder.gives_patches
    summary = encoder.fill(run.data, store, patches=patches, on_scan=advance)
    entrant.seconds += _spent(store, time.perf_counter() - start if summary.added else 0.0)
    entrant.fingerprint += encoder.fingerprint
    entrant.failures.update(summary.failures)
    entrant.stores[seed] = FeatureStore(store)


def _spent(store: Path, seconds: float) -> float:
    """Seconds of all runs that wrote to a store, kept beside it."""
    path = store.with_name(f"{store.name}.seconds")
    before = float(path.read_text()) if path.is_file() else 0.0
    if seconds:
        with written_file(path) as temporary:
            temporary.write_text(f"{before + seconds:.3f}\n")
    return before + seconds


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
            maps = partial(_save_map, run, labels, task, path.parent) if seed == run.recipe.seeds[0] else None
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
    run: BenchmarkRun, labels: LabelTable, task: TaskRecipe, folder: Path, identifier: str, found: Any
) -> None:
    """A predicted label map as NIfTI on the grid of its mask's file."""
    import nibabel

    column = task.read.get("masks") or labels.first_of(("mask", "mask_file", "label_file", "segmentation"))
    if column is None:
        return
    mask = run.data.folder / str(labels.column(column)[labels.ids.index(identifier)])
    with written_file(label_map_path(folder, identifier)) as path:
        nibabel.save(read_mask(mask, num_classes=int(1e6)).restore(found), path)


def failure_rows(failures: Mapping[tuple[str, str], str]) -> list[dict[str, str]]:
    """Failures as rows of failures.csv."""
    return [{"encoder": encoder, "what": what, "reason": reason} for (encoder, what), reason in failures.items()]
