"""Fine-tuned encoders in a benchmark: every mode is a competitor beside the frozen encoder, at equal labels.

A recipe says `fine_tuning: [frozen, lora, last_2, full]`. Each mode enters as ENCODER+MODE with its seconds, memory and
trainable parameters; `frozen` repeats the frozen probe through the very inputs the others train on, with its own cost.
Retrieval fits no labels and is left out.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.benchmark.folder import slug
from voxelfm_hf.eval.benchmark.recipe import BenchmarkRecipe, EncoderRecipe, TaskRecipe
from voxelfm_hf.eval.datasets import BenchmarkData
from voxelfm_hf.eval.probes.finetune import Tuner
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.failures import FAILURES_FILE, failures_in_a_sentence
from voxelfm_hf.features import EmbedOptions
from voxelfm_hf.hub import EMBEDDED
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.progress import Counter, Progress, unwatched
from voxelfm_hf.recipes import to_values
from voxelfm_hf.training.finetune.input_cache import prepare_inputs
from voxelfm_hf.volumes.errors import VoxelFMError


@dataclass(frozen=True, eq=False)
class TunedEncoder:
    """One encoder in one mode.

    Attributes:
        tuner: Of the encoder, shared by its modes.
        mode: frozen, lora, last_K or full.
        folder: Of checkpoints.
    """

    tuner: Tuner
    mode: str
    folder: Path

    def fit(
        self, data: TaskData, task: TaskRecipe, train: np.ndarray, seed: int
    ) -> tuple[VoxelFMProbe, TaskData, dict[str, Any]]:
        """A probe, the data with the features it is for, and what it took."""
        tuned = self.tuner.fit(
            data,
            mode=self.mode,
            head=task.probe_head,
            seed=seed,
            train=train,
            probe_settings=task.probe_settings,
            folder=self.folder / slug(task.title) / f"seed-{seed}-{len(train)}-rows",
        )
        return tuned.probe, tuned.data, asdict(tuned.cost)


@dataclass
class TuningInputs:
    """Prepares the inputs of an encoder once, when the first fit asks for them.

    Attributes:
        recipe: The benchmark.
        data: Its scans.
        out: Its folder.
        progress: Told how far it is.
    """

    recipe: BenchmarkRecipe
    data: BenchmarkData
    out: Path
    progress: Progress = unwatched
    failures: dict[str, str] = field(default_factory=dict)

    def tuned(self, entry: EncoderRecipe) -> dict[str, TunedEncoder]:
        """The competitors that an encoder adds, by name."""
        if entry.kind != "voxelfm" or not self.recipe.fine_tuning:
            return {}
        model, folder = entry.model or EMBEDDED, self.out / "tuning" / slug(entry.title)
        options = EmbedOptions(
            max_patches=self.recipe.max_patches,
            region_size=self.recipe.region_size,
            voxel_mm=self.recipe.voxel_mm,
            tile=self.recipe.tile,
            pad=True,
        )
        counter = Counter(self.progress, f"{entry.title}: inputs of fine-tuning")
        inputs, failures = prepare_inputs(
            self.data.tasks, model, folder / "inputs", options, on_start=counter.start, on_scan=counter.step
        )
        if failures:
            listed = failures_in_a_sentence(failures, inputs.folder / FAILURES_FILE)
            raise VoxelFMError(f"{len(failures)} inputs cannot be prepared: {listed}")
        tuner = Tuner(model, inputs, self.recipe.tuning)
        return {f"{entry.title}+{mode}": TunedEncoder(tuner, mode, folder / mode) for mode in self.recipe.fine_tuning}


def tuning_fingerprint(recipe: BenchmarkRecipe, mode: str) -> str:
    """Changes whenever fine-tuned predictions would."""
    return f"{mode} {json.dumps(to_values(recipe.tuning), sort_keys=True)}"
