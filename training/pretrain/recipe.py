"""The recipe of a pre-training run: every number of it, in sections, with the published values as defaults."""

from dataclasses import dataclass, field, fields

from voxelfm_hf.data.stream import StreamSource
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.training.pretrain.crops import CropSettings
from voxelfm_hf.training.pretrain.heads import HeadSettings
from voxelfm_hf.training.pretrain.masking import MaskSettings
from voxelfm_hf.training.pretrain.rates import OptimizerSettings, TeacherSettings
from voxelfm_hf.training.pretrain.self_distillation import LossSettings
from voxelfm_hf.training.run_settings import RunSettings, require
from voxelfm_hf.volumes.errors import RecipeError

# What may change when a run goes on, beside the bookkeeping of every run.
FREE_FIELDS = ("run.max_bad_steps", "run.export_max_patches", "probe")


@dataclass(frozen=True)
class DataSource(StreamSource):
    """One data set of scans, as a recipe names it: by text alone."""

    data: str
    columns: dict[str, str] | None = None


@dataclass(frozen=True)
class ModelSettings:
    """Architecture of the backbone; the fields of `VoxelFMConfig` that matter for training.

    Args:
        pos_embed_rescale: the student's patch coordinates are scaled by a factor log-uniform in [1/r, r].
        drop_path_rate: stochastic depth of the student.
    """

    hidden_size: int = 864
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    patch_size: int = 14
    mlp_ratio: float = 4.0
    use_swiglu_ffn: bool = False
    num_register_tokens: int = 4
    layerscale_value: float = 1e-5
    rope_theta: float = 100.0
    pos_embed_rescale: float | None = None
    drop_path_rate: float = 0.1


@dataclass(frozen=True)
class PretrainRunSettings(RunSettings):
    """Size and bookkeeping of the run.

    Args:
        total_steps: optimiser steps.
        total_batch: volumes an optimiser step sees, over all processes and accumulated micro-batches.
        batch_size: volumes of a micro-batch on one process; KoLeo looks for neighbours among these.
        compile: compile the backbones with torch.compile.
        checkpoint_activations: recompute the student's blocks in the backward pass, for memory.
        max_bad_steps: the run stops after this many steps in a row with a loss that is not finite.
        export_max_patches: patch budget written into the processor of the exported teacher.
    """

    total_steps: int = 100_000
    total_batch: int = 2048
    batch_size: int = 16
    compile: bool = False
    checkpoint_activations: bool = False
    num_workers: int = 4
    keep_last: int = 3
    keep_every: int = 5000
    max_bad_steps: int = 10
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    export_max_patches: int = 25_000


@dataclass(frozen=True)
class OnlineProbeSettings:
    """Probe of the teacher while the run goes, on a few labelled scans; off without `labels`.

    Args:
        labels: CSV with the columns `path` (relative to the file), `label`, and optionally `split` (train, test) and
            `patient`.
        every: steps between probes.
        max_patches: patch budget of a scan.
        neighbours: k of the nearest neighbour probe.
    """

    labels: str | None = None
    every: int = 1000
    max_patches: int = 2000
    neighbours: int = 5


@dataclass(frozen=True)
class PretrainRecipe:
    """A pre-training run.

    Args:
        data: folder of shards or data set, or a list of sources mixed by weight.
        output_dir: run folder; a run found there is continued.
        seed: fixes every draw.
        min_side: volumes with a shorter side (voxels) are skipped; half the largest global crop by default.
    """

    data: str | list[DataSource]
    output_dir: str
    seed: int = 0
    min_side: int | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    crops: CropSettings = field(default_factory=CropSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: PretrainRunSettings = field(default_factory=PretrainRunSettings)
    probe: OnlineProbeSettings = field(default_factory=OnlineProbeSettings)

    @property
    def sources(self) -> list[DataSource]:
        """The data sets."""
        return [DataSource(self.data)] if isinstance(self.data, str) else list(self.data)

    @property
    def shortest_side(self) -> int:
        """Sides below this many voxels make a volume too small."""
        return self.min_side or max(global_size for global_size, _ in self.crops.size_pairs) // 2

    def accumulation_steps(self, num_processes: int) -> int:
        """Micro-batches of an optimiser step on one process.

        Raises:
            RecipeError: the total batch cannot be cut into equal micro-batches.
        """
        per_round = self.run.batch_size * num_processes
        if self.run.total_batch % per_round:
            raise RecipeError(
                f"run.total_batch {self.run.total_batch} is not a multiple of run.batch_size x processes = "
                f"{self.run.batch_size} x {num_processes}; choose numbers that divide it."
            )
        return self.run.total_batch // per_round

    def model_config(self) -> VoxelFMConfig:
        """Configuration of the student's backbone."""
        settings = {item.name: getattr(self.model, item.name) for item in fields(self.model)}
        image_size = max(global_size for global_size, _ in self.crops.size_pairs)
        return VoxelFMConfig(**settings, image_size=image_size)


def check(recipe: PretrainRecipe) -> None:
    """Refuse a recipe whose fields contradict each other.

    Raises:
        RecipeError: one sentence that names the fields.
    """
    run = recipe.run
    require(not isinstance(recipe.data, list) or len(recipe.data) > 0, "data lists no source")
    recipe.crops.check(recipe.model.patch_size)
    recipe.masks.check()
    positive = {
        "run.total_steps": run.total_steps,
        "run.batch_size": run.batch_size,
        "run.total_batch": run.total_batch,
        "run.log_every": run.log_every,
        "run.checkpoint_every": run.checkpoint_every,
        "run.keep_last": run.keep_last,
        "run.max_bad_steps": run.max_bad_steps,
        "probe.every": recipe.probe.every,
        "optimizer.learning_rate": recipe.optimizer.learning_rate,
        "teacher.temperature": recipe.teacher.temperature,
        "teacher.temperature_start": recipe.teacher.temperature_start,
        "loss.student_temperature": recipe.loss.student_temperature,
        "head.num_prototypes": recipe.head.num_prototypes,
    }
    for name, value in positive.items():
        require(value > 0, f"{name} must be above 0, got {value}")
    require(run.num_workers >= 0, f"run.num_workers must be 0 or more, got {run.num_workers}")
    try:
        recipe.model_config()
    except Exception as error:  # transformers wraps the ValueError of the config in its own classes
        raise RecipeError(f"model: {str(error).splitlines()[-1].strip()}") from error
