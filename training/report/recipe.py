"""The recipe of a report run: data, language model, resampler, and the two stages of training."""

from dataclasses import dataclass, field

from voxelfm_hf.modeling.configuration_voxelfm_report import FEATURE_TOKENS
from voxelfm_hf.modeling.processing_voxelfm_report import REQUEST
from voxelfm_hf.training.lora import Lora
from voxelfm_hf.training.run_settings import RunSettings, require


@dataclass(frozen=True)
class ReportDataSettings:
    """Pairs of a scan and its report.

    Args:
        reports: CSV, TSV or Parquet table with one report a row (CT-RATE, Merlin, any; see `voxelfm_hf.data.reports`).
        store: Feature store with patches; training then needs no encoder in memory.
        scans: In place of a store: folder of the scans, encoded again in every epoch.
        column: Column with the text; known layouts need none.
        id_column: Column that names the scan as the store does (or its path in `scans`).
        split_column: Column that says which rows to train on, where the table has it.
        split: Its value for rows to train on.
        reduce: Train on the abnormal findings per organ rather than on the text as it is.
        shuffle_features: Give every report the scan of another one: a language model that learns the text alone.
        limit: Train on the first so many pairs only.
    """

    reports: str
    store: str | None = None
    scans: str | None = None
    column: str | None = None
    id_column: str | None = None
    split_column: str = "split"
    split: str = "train"
    reduce: bool = True
    shuffle_features: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class ReportModelSettings:
    """Encoder, language model, and what lies between them.

    Args:
        vision_model: Folder or Hub repository of the encoder behind the features; tiny is the one in the package.
        language_model: Folder or Hub repository of a causal language model, or a .gguf file.
        language_model_revision: Branch, tag or commit on the Hub.
        feature_tokens: patches_and_cls, patches, or cls.
        position_features: Let the resampler know where a patch lies. Published: off.
        standardise: Centre and scale features by those of (at most 64) training scans.
        request: What the user's turn asks for.
        max_length: Most tokens of prompt and report together; longer pairs are left out and counted.
    """

    language_model: str
    vision_model: str = "tiny"
    vision_model_revision: str | None = None
    language_model_revision: str | None = None
    feature_tokens: str = "patches_and_cls"
    position_features: bool = False
    standardise: bool = True
    num_image_tokens: int = 128
    resampler_hidden_size: int = 2048
    resampler_num_heads: int = 8
    resampler_dropout: float = 0.1
    projector_hidden_size: int = 2048
    request: str = REQUEST
    max_length: int = 1024


@dataclass(frozen=True)
class LanguageLoraSettings(Lora):
    """Adapters of the language model, trained in stage 2."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    layers: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass(frozen=True)
class StageSettings:
    """One stage of training.

    Args:
        epochs: Passes over the pairs.
        batch_size: Pairs of a micro-batch on one process.
        total_batch: Pairs an optimiser step sees.
        learning_rate: Peak; warmed up linearly from `min_learning_rate`, then a cosine back to it.
        warmup_share: Share of the steps that the warm-up takes.
        projector_share: Share of the learning rate that resampler and projector get. Published: 1. After passes over
            words, a low one keeps image tokens where they are until the language model reads them.
        feature_noise: Standard deviation of the noise added to (standardised) features.
        system_prompt: System turn of the prompt.
        word_epochs: Stage 1 only: passes in which resampler and projector first learn, without the language model, to
            place image tokens at the embeddings of the words of the report (see `report_words`). Published: none.
        word_batch_size, word_learning_rate: Pairs of a step and peak learning rate in those passes.
    """

    epochs: float = 1
    batch_size: int = 1
    total_batch: int = 32
    learning_rate: float = 1e-4
    min_learning_rate: float = 1e-6
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    projector_share: float = 1.0
    feature_noise: float = 0.1
    feature_noise_probability: float = 1.0
    system_prompt: str | None = None
    word_epochs: float = 0
    word_batch_size: int = 16
    word_learning_rate: float = 1e-3


@dataclass(frozen=True)
class ReportRunSettings(RunSettings):
    """Precision and bookkeeping; the frozen language model is held in the precision of the forward passes too.

    Args:
        gradient_checkpointing: Recompute the language model's layers in the backward pass, for memory.
    """

    gradient_checkpointing: bool = True
    checkpoint_every: int = 200


@dataclass(frozen=True)
class ReportRecipe:
    """Both stages of a report model.

    Args:
        output_dir: Run folder; `stage1/model` and `stage2/model` in it are model folders. A run found there goes on.
        seed: Fixes every draw.
    """

    data: ReportDataSettings
    model: ReportModelSettings
    output_dir: str
    seed: int = 0
    lora: LanguageLoraSettings = field(default_factory=LanguageLoraSettings)
    stage1: StageSettings = field(default_factory=StageSettings)
    stage2: StageSettings = field(default_factory=lambda: StageSettings(epochs=10, total_batch=16, learning_rate=2e-5))
    run: ReportRunSettings = field(default_factory=ReportRunSettings)

    def stage(self, number: int) -> StageSettings:
        """Settings of stage 1 (resampler and projector) or 2 (and the LoRA adapter)."""
        return self.stage1 if number == 1 else self.stage2


def check(recipe: ReportRecipe) -> None:
    """Refuse a recipe whose fields contradict each other.

    Raises:
        RecipeError: one sentence that names the fields.
    """
    data = recipe.data
    require((data.store is None) != (data.scans is None), "set either data.store or data.scans")
    known = recipe.model.feature_tokens in FEATURE_TOKENS
    require(known, f"model.feature_tokens must be one of {', '.join(FEATURE_TOKENS)}")
    for name in ("stage1", "stage2"):
        stage = getattr(recipe, name)
        for field_name in ("epochs", "batch_size", "total_batch", "learning_rate"):
            require(getattr(stage, field_name) > 0, f"{name}.{field_name} must be above 0")
        falls = stage.min_learning_rate <= stage.learning_rate
        require(falls, f"{name}.min_learning_rate is above {name}.learning_rate")
