"""Low-rank adapters, of the encoder in fine-tuning and of the language model in report training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021) on the linear layers of every block.

    Attributes:
        rank: Of the two factors.
        alpha: The adapter's output is scaled by alpha / rank.
        dropout: On the adapter's input.
        layers: Names of the linear layers.
    """

    rank: int
    alpha: int
    dropout: float
    layers: list[str]

    def config(self, **options: Any) -> "LoraConfig":
        """The settings as peft takes them; `options` are further ones of peft, such as `task_type`."""
        from peft import LoraConfig  # slow to import

        named = {"target_modules": list(self.layers), **options}
        return LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, **named)
