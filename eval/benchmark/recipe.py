"""What a benchmark recipe may say: data, encoders, tasks, label fractions, seeds."""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from voxelfm_hf.eval.tasks import grid, load_task, task_names
from voxelfm_hf.modeling.configuration_voxelfm_probe import HEADS_OF_TASK, PATCH_HEADS
from voxelfm_hf.recipes import load_recipe, to_recipe, to_values
from voxelfm_hf.training.finetune.settings import FinetuneSettings, check_mode
from voxelfm_hf.training.probe.settings import DEFAULT_SETTINGS, ProbeSettings
from voxelfm_hf.volumes.errors import RecipeError

# Of a task that fits nothing.
NO_HEAD = "none"


@dataclass(frozen=True)
class EncoderRecipe:
    """One encoder of a benchmark.

    Attributes:
        kind: A file of `eval/encoders`.
        name: In tables; by default the kind, or the model's own name.
        model: Model folder, Hub repository or "tiny"; for baselines the model whose preparation they share.
        options: Options of its kind.
    """

    kind: str
    name: str = ""
    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name in tables."""
        if self.name or self.kind not in ("voxelfm", "hub2d") or not self.model:
            return self.name or self.kind
        return self.model.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class TaskRecipe:
    """One task of a benchmark, on one or more targets.

    Attributes:
        task: Family, a file of `eval/tasks`.
        name: In tables; by default the family.
        targets: Label columns; x, y, z of each point for localization.
        head: By default linear, or the family's own.
        read: Further options of the family's `read`, such as classes, alike, time, horizons.
        evaluate: Options of its scores, such as surfaces and tolerance_mm of a segmentation.
        settings: Fields of `ProbeSettings` in place of the head's defaults.
        fractions: Label fractions in place of the benchmark's; heads on patches are fitted on all labels by default.
        seeds: Seeds in place of the benchmark's.
        ceiling: Label columns that know the answer, in place of the targets; the hazard of a simulated survival.
    """

    task: str
    name: str = ""
    targets: list[str] = field(default_factory=list)
    head: str = ""
    read: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    fractions: list[float] | None = None
    seeds: list[int] | None = None
    ceiling: list[str] = field(default_factory=list)

    def __post_init__(self):
        if self.task not in task_names():
            raise ValueError(f"there is no task {self.task}; choose one of {', '.join(task_names())}")
        heads = HEADS_OF_TASK.get(self.task, (NO_HEAD,))
        if self.probe_head not in heads:
            raise ValueError(f"head of {self.title} is one of {', '.join(heads)}, got {self.head}")
        scores = set(inspect.signature(self.module.columns).parameters) - {"predictions", "data", "rows", "probe"}
        settings = {entry.name for entry in dataclasses.fields(ProbeSettings)}
        for section, given, known in (("settings", self.settings, settings), ("evaluate", self.evaluate, scores)):
            unknown = sorted(set(given) - known)
            if unknown:
                has = f"known are {', '.join(sorted(known))}" if known else "it has none"
                raise ValueError(f"{section} of {self.title}: there is no {unknown[0]}; {has}")

    @property
    def module(self) -> ModuleType:
        """The file of the task."""
        return load_task(self.task)

    @property
    def title(self) -> str:
        """Name in tables."""
        return self.name or self.task

    @property
    def probe_head(self) -> str:
        """The head that is fitted, by default the first of the task; `NO_HEAD` for a task without any."""
        return self.head or HEADS_OF_TASK.get(self.task, (NO_HEAD,))[0]

    @property
    def uses_patches(self) -> bool:
        """Whether an encoder needs a patch grid for it."""
        return self.probe_head in PATCH_HEADS

    @property
    def fits_nothing(self) -> bool:
        """Whether features are compared as they are."""
        return self.task not in HEADS_OF_TASK

    @property
    def is_grid(self) -> bool:
        """Whether its fits can run side by side, and so get all label fractions."""
        return grid.has_grid(self.module) and self.probe_head in grid.HEADS and not self.read.get("exclusive")

    @property
    def probe_settings(self) -> ProbeSettings | None:
        """How to fit; None where nothing is trained."""
        defaults = DEFAULT_SETTINGS.get(self.probe_head)
        return defaults and dataclasses.replace(defaults, **self.settings)


@dataclass(frozen=True)
class BenchmarkRecipe:
    """Encoders x tasks x targets x label fractions x seeds on one data set.

    Attributes:
        data: A file of `eval/datasets`.
        encoders: What is compared; the first one is tested against all others.
        tasks: What they are compared on.
        title: Of the report.
        folder: Of the data set, where the command names none; relative to the working folder.
        data_options: Options of the data set's `read`.
        fractions: Shares of the training patients.
        seeds: Of training subsets, fits and untrained weights.
        replicates: Bootstrap replicates of each interval.
        baselines: Add the data set's own baselines (a diameter, the extent of a crop).
        references: Add the ceiling (features that are the answer) and the floor (noise).
        region_size: Edge in voxels of a region's cube; the model's training crop by default.
        max_patches: Patch budget of a whole scan; the processor's own by default.
        voxel_mm: Voxel size of every prepared scan; that of its finest axis by default.
        tile: Edge in voxels of the overlapping tiles that VoxelFM models take whole scans in; whole by default.
        dtype: Of the models' computation.
        fine_tuning: Ways of fine-tuning that enter beside every voxelfm encoder: frozen, lora, last_2, full.
        tuning: How they are trained.
        quick: Fields in place of those above for `--quick`.
    """

    data: str
    encoders: list[EncoderRecipe]
    tasks: list[TaskRecipe]
    title: str = ""
    folder: str = ""
    data_options: dict[str, Any] = field(default_factory=dict)
    fractions: list[float] = field(default_factory=lambda: [1.0])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    replicates: int = 1000
    baselines: bool = True
    references: bool = True
    region_size: int | None = None
    max_patches: int | None = None
    voxel_mm: float | None = None
    tile: int | None = None
    dtype: str = "float32"
    fine_tuning: list[str] = field(default_factory=list)
    tuning: FinetuneSettings = field(default_factory=FinetuneSettings)
    quick: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for what, names in (("encoders", [e.title for e in self.encoders]), ("tasks", [t.title for t in self.tasks])):
            if not names:
                raise ValueError(f"{what} is empty; name at least one")
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"two {what} are called {repeated[0]}; give each a name of its own")
        every = [*self.fractions, *(fraction for task in self.tasks for fraction in task.fractions or ())]
        if any(not 0 < fraction <= 1 for fraction in every):
            raise ValueError(f"fractions lie in (0, 1], got {', '.join(f'{f:g}' for f in every)}")
        for mode in self.fine_tuning:
            check_mode(mode)
        if not self.seeds:
            raise ValueError("seeds is empty; name at least one")

    def fractions_of(self, task: TaskRecipe) -> list[float]:
        """Label fractions of a task, growing."""
        if task.fits_nothing:
            return [1.0]
        chosen = task.fractions or (self.fractions if task.is_grid else [1.0])
        return sorted(set(chosen))

    def seeds_of(self, task: TaskRecipe, *, seeded: bool) -> list[int]:
        """Seeds of a task; where nothing is fitted, only an encoder with random weights has more than one."""
        chosen = task.seeds or self.seeds
        return chosen[:1] if task.fits_nothing and not seeded else chosen


def read_recipe(name: str | Path, *, quick: bool = False) -> BenchmarkRecipe:
    """A benchmark recipe from a path, or one that comes with the package by its name.

    Args:
        name: Path of a YAML file, or a name such as "lidc".
        quick: Apply the recipe's own `quick` section.
    """
    recipe = load_recipe(name, BenchmarkRecipe, package="voxelfm_hf.eval")
    if not quick:
        return recipe
    unknown = sorted(set(recipe.quick) - set(to_values(recipe)))
    if unknown:
        raise RecipeError(f"{name}: quick.{unknown[0]} is no field of a benchmark recipe.")
    values: Mapping[str, Any] = {**to_values(recipe), **recipe.quick, "quick": {}}
    return to_recipe(dict(values), BenchmarkRecipe, source=f"{name} (quick)")
