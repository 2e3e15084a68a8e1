"""Who takes part in a benchmark, and what became of it: encoders with their features, and their fine-tuned forms.

An encoder that cannot be made, or data it cannot read, is a failure with its sentence; the rest goes on.
"""

import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from voxelfm_hf.eval.benchmark.folder import slug
from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe, EncoderRecipe
from voxelfm_hf.eval.benchmark.tuning import TunedEncoder, TuningInputs, tuning_fingerprint
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.encoders import Encoder, EncoderSetup, make_encoder
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.files import written_file
from voxelfm_hf.progress import Counter, Progress
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes.errors import VoxelFMError


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


def own_baselines(recipe: BenchmarkRecipe, data: BenchmarkData) -> list[EncoderRecipe]:
    """The data set's own baselines, under names that no encoder has."""
    taken = {entry.title for entry in recipe.encoders}
    found = []
    for baseline, columns in data.baselines.items() if recipe.baselines else ():
        name = f"{baseline} only" if f"{baseline} only" not in taken else f"{baseline} columns"
        found.append(EncoderRecipe("columns", name, options={"columns": list(columns)}))
    return found


def enter_encoder(run: BenchmarkRun, entry: EncoderRecipe, out: Path, progress: Progress) -> None:
    """Fills the stores of one encoder; one that cannot be made is a failure."""
    recipe, name = run.recipe, entry.title
    needs_patches = any(task.uses_patches for task in recipe.tasks)
    entrant = Entrant(name, "model")
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
                entrant.kind = "baseline" if encoder.is_baseline else "model"
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
    what = f"{entrant.name}: features" if seed is None else f"{entrant.name}: features, seed {seed}"
    counter = Counter(progress, what)
    counter.start(len(run.data.tasks))
    start = time.perf_counter()
    patches = needs_patches and encoder.gives_patches
    summary = encoder.fill(run.data, store, patches=patches, on_scan=counter.step)
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


def enter_tuned(run: BenchmarkRun, out: Path, progress: Progress) -> None:
    """Adds every mode of fine-tuning of the encoders that can be fine-tuned."""
    inputs = TuningInputs(run.recipe, run.data, out, progress)
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
