"""How a probe is fitted, and what comes out of a fit."""

from dataclasses import dataclass, field

from voxelfm_hf.modeling.probe_heads_voxelfm import HEADS
from voxelfm_hf.training.probe.stacks import State


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is fitted.

    Args:
        epochs: Passes over the training rows at most.
        batch_size: Rows a step; None takes all rows at once (needed for survival on its full risk sets).
        accumulate: Batches whose gradients are added up for one step.
        optimizer: "adamw", or "nesterov": accelerated gradient descent on all rows, for linear heads.
        learning_rate: Of AdamW; for Nesterov in units of the largest step that is safe for the curvature of the fit.
        weight_decay: On weights, not on biases.
        evaluate_every: Epochs between looks at the validation rows.
        patience: Looks without improvement before a fit stops.
        noise: Standard deviation of the Gaussian noise added to standardised features in training.
        noise_probability: Chance that a batch gets that noise.
        schedule: "constant", or "cosine": the learning rate falls to 0 over the epochs.
        window: Segmentation: edge in patches of the random windows a scan is seen by; None takes whole scans.
        dice: Segmentation: weight of the soft Dice loss beside the cross entropy; with any, Dice decides when to stop.
        balance: Give both classes of a label the same total weight; outputs are moved back to the prevalence after. In
            segmentation a class weighs 1 / sqrt(its share of the voxels), so that small organs are not drowned.
    """

    epochs: int = 200
    batch_size: int | None = None
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    evaluate_every: int = 2
    patience: int = 20
    schedule: str = "constant"
    window: int | None = None
    dice: float = 0.0
    noise: float = 0.1
    noise_probability: float = 1.0
    balance: bool = True


_TRIED = {
    # A tenth of the safe step: with few correlated features the first full step may be past the best stop already.
    "linear": ProbeSettings(
        epochs=400, optimizer="nesterov", learning_rate=0.1, weight_decay=0.0, evaluate_every=1, patience=30
    ),
    "mlp": ProbeSettings(epochs=100, batch_size=64, evaluate_every=1, patience=10),
    "pooler": ProbeSettings(epochs=50, batch_size=16, evaluate_every=1, patience=8),
    # The published learning rate (1e-4) is for thousands of crops: on tens of scans it never leaves the start.
    "position": ProbeSettings(epochs=40, batch_size=4, evaluate_every=2, patience=10, schedule="cosine"),
    "decoder": ProbeSettings(
        epochs=120,
        batch_size=4,
        evaluate_every=5,
        patience=6,
        schedule="cosine",
        window=8,
        dice=1.0,
        noise_probability=0.2,
    ),
    "subpatch": ProbeSettings(
        epochs=80,
        batch_size=4,
        learning_rate=2e-3,
        evaluate_every=5,
        patience=6,
        schedule="cosine",
        window=8,
        dice=1.0,
    ),
}
# Of every head that is trained; those of a head without settings of its own are the defaults above.
DEFAULT_SETTINGS = {name: _TRIED.get(name, ProbeSettings()) for name, head in HEADS.items() if head.is_trained}


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """The weights of one fit and how it went; `score` is minus the validation loss."""

    name: str
    seed: int
    state: State
    score: float
    best_epoch: int
    epochs: int
    target_mean: list[float] | None = None
    target_scale: list[float] | None = None
    notes: tuple[str, ...] = field(default=())
