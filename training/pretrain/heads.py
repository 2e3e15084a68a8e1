"""The projection head of student and teacher."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


@dataclass(frozen=True)
class HeadSettings:
    """Shape of the projection head.

    Args:
        hidden_size: width of the two hidden layers.
        bottleneck_size: width of the output that is compared with the prototypes.
        num_prototypes: K.
        separate_ibot_head: give masked patches a head of their own; by default they share that of the CLS token.
    """

    hidden_size: int = 2048
    bottleneck_size: int = 256
    num_prototypes: int = 65_536
    separate_ibot_head: bool = False


class DistillationHead(nn.Module):
    """Three-layer MLP, L2 normalisation, and a weight-normalised layer of prototypes.

    The two halves are separate calls, so that a loss can take the product with the prototypes a few rows at a time.

    Args:
        in_features: width C of the backbone.
        settings: shape of the head.
    """

    def __init__(self, in_features: int, settings: HeadSettings):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_features, settings.hidden_size),
            nn.GELU(),
            nn.Linear(settings.hidden_size, settings.hidden_size),
            nn.GELU(),
            nn.Linear(settings.hidden_size, settings.bottleneck_size),
        )
        last_layer = nn.Linear(settings.bottleneck_size, settings.num_prototypes, bias=False)
        for module in (*self.mlp, last_layer):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.last_layer = weight_norm(last_layer)
        nn.init.ones_(self.last_layer.parametrizations.weight.original0)

    def forward(self, features: Tensor) -> Tensor:
        """Unit vectors (rows, bottleneck_size), fp32, of features (rows, C)."""
        return nn.functional.normalize(self.mlp(features).float(), dim=-1)

    def prototypes(self) -> Tensor:
        """Prototypes (K, bottleneck_size): directions times their gains."""
        return self.last_layer.weight
