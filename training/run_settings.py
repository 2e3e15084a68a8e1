"""What the recipes of all runs have in common: precision and bookkeeping."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from voxelfm_hf.volumes.errors import RecipeError

# Fields that may change when a run goes on: they touch neither the weights nor the order of the data.
FREE_FIELDS = (
    "output_dir", "run.log_every", "run.checkpoint_every", "run.keep_last", "run.keep_every", "run.trackers",
)  # fmt: skip


@dataclass(frozen=True)
class RunSettings:
    """Precision and bookkeeping of a run.

    Args:
        mixed_precision: of the forward passes.
        num_workers: processes of each process that read ahead.
        log_every: steps between log entries.
        checkpoint_every: steps between checkpoints.
        keep_last: newest checkpoints kept.
        keep_every: checkpoints at multiples of this many steps are kept for good; 0 keeps none.
        trackers: experiment trackers of Accelerate; one that is not installed is left out with a warning.
    """

    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    num_workers: int = 0
    log_every: int = 10
    checkpoint_every: int = 100
    keep_last: int = 1
    keep_every: int = 0
    trackers: list[str] = field(default_factory=list)


def require(condition: bool, sentence: str) -> None:
    """RecipeError where a recipe's fields cannot hold, with what must be, without a full stop."""
    if not condition:
        raise RecipeError(f"The recipe cannot run: {sentence}.")


class Recipe(Protocol):
    """What the machinery of a run asks of its recipe, a frozen dataclass."""

    @property
    def output_dir(self) -> str:
        """The run folder."""

    @property
    def run(self) -> RunSettings:
        """Precision and bookkeeping."""
