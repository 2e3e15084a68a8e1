"""Fitting probes on frozen features: one loop for all task families, many small fits side by side.

Fits of one seed share batches, noise and dropout masks, and their parameters are stacked, so that one matrix product
moves them all; every parameter is optimised by itself, so a fit comes out the same whatever runs beside it. Early
stopping looks at each fit's own validation rows. Scores other than the loss come in as callables.

Linear heads take accelerated gradient steps (Nesterov) on all rows: with few labels and many features, stopping such a
descent early acts like a ridge penalty, while Adam moves every useless direction as fast as the useful ones.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.modeling.probe_losses_voxelfm import binary_loss, class_loss, cox_loss, point_loss, squared_loss
from voxelfm_hf.training.probe_data import ProbeFeatures, ProbeJob, prepared_targets, row_weights
from voxelfm_hf.training.probe_stacks import ClsStack, PatchStack, State, initial_state

logger = logging.getLogger(__name__)

# Higher is better; takes the logits (v, o) and targets (v, k) of the validation rows of one fit.
Score = Callable[[np.ndarray, np.ndarray], float]

MAX_STACKED_PARAMETERS = 32_000_000
LAST_BIAS = {"linear": "bias", "mlp": "bias", "pooler": "classifier.bias"}


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
    noise: float = 0.1
    noise_probability: float = 1.0
    balance: bool = True


DEFAULT_SETTINGS = {
    # A tenth of the safe step: with few correlated features the first full step may be past the best stop already.
    "linear": ProbeSettings(
        epochs=400, optimizer="nesterov", learning_rate=0.1, weight_decay=0.0, evaluate_every=1, patience=30
    ),
    "mlp": ProbeSettings(epochs=100, batch_size=64, evaluate_every=1, patience=10),
    "pooler": ProbeSettings(epochs=50, batch_size=16, evaluate_every=1, patience=8),
    "position": ProbeSettings(epochs=40, batch_size=4, accumulate=4, learning_rate=1e-4, evaluate_every=1, patience=10),
    "decoder": ProbeSettings(
        epochs=120, batch_size=1, accumulate=4, evaluate_every=2, patience=10, noise_probability=0.2
    ),
}


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """The weights of one fit and how it went; `score` is higher for better, minus the validation loss by default."""

    name: str
    seed: int
    state: State
    score: float
    best_epoch: int
    epochs: int
    target_mean: list[float] | None = None
    target_scale: list[float] | None = None
    notes: tuple[str, ...] = field(default=())


def fit_probes(
    features: ProbeFeatures,
    jobs: Sequence[ProbeJob],
    config: VoxelFMProbeConfig,
    *,
    settings: ProbeSettings | None = None,
    score: Score | None = None,
    device: str = "cpu",
) -> list[FittedProbe]:
    """Fits every job with a head of the given configuration.

    Args:
        features: Features of all rows.
        jobs: The fits; any mix of labels, training rows and seeds, all with targets of the shape the head has.
        config: Task, head and sizes; one output for each job that fits a single label.
        settings: How to fit; by default what suits the head.
        score: Judges validation outputs, higher is better; by default minus the validation loss. Where it is NaN (one
            class only) the loss decides.
        device: Where to compute.

    Returns:
        One fit a job, in the order of the jobs.
    """
    settings = settings or DEFAULT_SETTINGS[config.head]
    if config.task == "survival" and settings.batch_size is not None:
        settings = replace(settings, batch_size=None)
    found: dict[int, FittedProbe] = {}
    for group in _groups(jobs, config, settings):
        chosen = [jobs[index] for index in group]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chosen[0].seed)
            fits = _Group(features, chosen, config, settings, score, device).fit()
        found.update(zip(group, fits, strict=True))
        logger.debug("fitted %d probes of seed %d", len(group), chosen[0].seed)
    return [found[index] for index in range(len(jobs))]


@torch.no_grad()
def probe_logits(
    features: ProbeFeatures,
    fits: Sequence[FittedProbe],
    config: VoxelFMProbeConfig,
    rows: np.ndarray,
    *,
    device: str = "cpu",
) -> np.ndarray:
    """Outputs (F, rows, o) of fitted probes on some rows, in the unit of the loss (not for segmentation)."""
    chosen = torch.as_tensor(rows, dtype=torch.long)
    outputs = []
    size = max(1, MAX_STACKED_PARAMETERS // sum(value.numel() for value in fits[0].state.values()))
    size = 1 if config.uses_patches else size
    for start in range(0, len(fits), size):
        stack = _stack(config, [fit.state for fit in fits[start : start + size]], device)
        if config.uses_patches:
            parts = [
                stack([grid.to(device) for grid in features.patch_rows(part.tolist())]) for part in chosen.split(8)
            ]
        else:
            parts = [stack(features.cls_rows(part).to(device)) for part in chosen.split(256)]
        outputs.append(torch.cat(parts, dim=1).cpu())
    return torch.cat(outputs).numpy()


def make_probe(config: VoxelFMProbeConfig, fits: Sequence[FittedProbe], features: ProbeFeatures) -> VoxelFMProbe:
    """One probe model out of one fit, or out of one single-output fit for each label of the configuration.

    Args:
        config: Of the whole probe, all labels together; regression fits add their target mean and scale to it.
        fits: One fit, or one for each label in the order of `id2label` (linear and mlp heads).
        features: The features they were fitted on, for their standardisation.

    Returns:
        VoxelFMProbe: in evaluation mode.
    """
    states = [fit.state for fit in fits]
    joined = states[0] if len(fits) == 1 else {key: torch.cat([s[key] for s in states]) for key in states[0]}
    if fits[0].target_mean is not None:
        config.target_mean = [mean for fit in fits for mean in fit.target_mean or []]
        config.target_scale = [scale for fit in fits for scale in fit.target_scale or []]
    probe = VoxelFMProbe(config)
    probe.head.load_state_dict(joined)
    if features.mean is not None and features.scale is not None:
        probe.feature_mean.copy_(features.mean)
        probe.feature_scale.copy_(features.scale)
    return probe.eval()


class _Group:
    """Jobs of one seed, fitted together."""

    def __init__(
        self,
        features: ProbeFeatures,
        jobs: Sequence[ProbeJob],
        config: VoxelFMProbeConfig,
        settings: ProbeSettings,
        score: Score | None,
        device: str,
    ):
        self.features, self.jobs, self.config = features, jobs, config
        self.settings, self.score, self.device = settings, score, device
        self.voxels = config.task == "segmentation"
        self.stack: ClsStack | PatchStack = _stack(config, [initial_state(config, job.seed) for job in jobs], device)
        self.objective = _objective(config)
        self.train = torch.as_tensor(np.unique(np.concatenate([job.train for job in jobs])), dtype=torch.long)
        self.validation = torch.as_tensor(np.unique(np.concatenate([job.validation for job in jobs])), dtype=torch.long)
        self.cls = None if config.uses_patches else features.cls_rows(torch.arange(len(features)))
        self.loss_factor = torch.ones(())
        self.class_weights: torch.Tensor | None = None
        self.means: list = []
        self.scales: list = []
        if not self.voxels:
            self.targets, self.means, self.scales = prepared_targets(jobs, config)
            balance = {"balance": settings.balance}
            self.train_weights = row_weights(self.targets, [job.train for job in jobs], config, **balance)
            self.validation_weights = row_weights(self.targets, [job.validation for job in jobs], config, **balance)

    def fit(self) -> list[FittedProbe]:
        """Runs the loop and gives back the best weights of every job."""
        settings, count = self.settings, len(self.jobs)
        parameters = list(self.stack.parameters())
        decayed = [p for name, p in self.stack.named_parameters() if "bias" not in name]
        others = [p for name, p in self.stack.named_parameters() if "bias" in name]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer: torch.optim.Optimizer
        if settings.optimizer == "nesterov":
            self.loss_factor = self._safe_steps()
            optimizer = torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.5, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
        best = [parameter.detach().clone() for parameter in parameters]
        best_score, best_epoch = torch.full((count,), -torch.inf, dtype=torch.float64), torch.zeros(count)
        stalled = torch.zeros(count, dtype=torch.long)
        unwatched = torch.tensor([len(job.validation) == 0 for job in self.jobs])
        epoch = 0
        for epoch in range(1, settings.epochs + 1):
            if settings.optimizer == "nesterov":
                for parameter_group in optimizer.param_groups:
                    parameter_group["momentum"] = max(epoch - 1, 1e-3) / (epoch + 2)
            self._train_one_epoch(optimizer)
            if epoch % settings.evaluate_every and epoch != settings.epochs:
                continue
            current = torch.where(unwatched, float(epoch), self._validate())
            better = current > best_score
            if better.any():
                chosen = better.to(self.device)
                for kept, parameter in zip(best, parameters, strict=True):
                    # A patch head has no axis of fits: there is one.
                    places = chosen if count > 1 else slice(None)
                    kept[places] = parameter.detach()[places]
            best_score, best_epoch = torch.where(better, current, best_score), torch.where(better, epoch, best_epoch)
            stalled = torch.where(better, 0, stalled + 1)
            if (stalled >= settings.patience).all():
                break
        with torch.no_grad():
            for kept, parameter in zip(best, parameters, strict=True):
                parameter.copy_(kept)
        best_score = best_score.masked_fill(unwatched, torch.nan)
        return [self._fitted(i, s, best_score, best_epoch, epoch) for i, s in enumerate(self.stack.states())]

    def _fitted(self, index: int, state: State, scores: torch.Tensor, epochs: torch.Tensor, last: int) -> FittedProbe:
        job, config = self.jobs[index], self.config
        notes = ("no validation rows: fitted for all epochs",) if len(job.validation) == 0 else ()
        if config.task == "classification" and self.settings.balance:
            state[LAST_BIAS[config.head]] += _prevalence_shift(self.targets[index][job.train], config).view_as(
                state[LAST_BIAS[config.head]]
            )
        return FittedProbe(
            name=job.name,
            seed=job.seed,
            state={name: value.cpu() for name, value in state.items()},
            score=float(scores[index]),
            best_epoch=int(epochs[index]),
            epochs=last,
            target_mean=self.means[index] if self.means else None,
            target_scale=self.scales[index] if self.scales else None,
            notes=notes,
        )

    def _train_one_epoch(self, optimizer: torch.optim.Optimizer) -> None:
        self.stack.train()
        settings = self.settings
        if settings.batch_size is None:
            optimizer.zero_grad()
            self._backward_full_batch()
            optimizer.step()
            return
        batches = self.train[torch.randperm(len(self.train))].split(settings.batch_size)
        for start in range(0, len(batches), settings.accumulate):
            optimizer.zero_grad()
            together = batches[start : start + settings.accumulate]
            for rows in together:
                (self._losses(rows, training=True).sum() / len(together)).backward()
            optimizer.step()

    def _backward_full_batch(self) -> None:
        """Gradients of a loss over all rows; patch heads run twice, scan by scan, to keep memory small."""
        if not self.config.uses_patches:
            (self.loss_factor * self._losses(self.train, training=True)).sum().backward()
            return
        chunks = self.train.split(8)
        outputs, random_states = [], []
        with torch.no_grad():
            for rows in chunks:
                random_states.append(torch.get_rng_state())
                outputs.append(self._forward(rows, training=True))
        together = torch.cat(outputs, dim=1).requires_grad_()
        loss = self._objective_of(together, self.train, self.train_weights).sum()
        (gradient,) = torch.autograd.grad(loss, together)
        after = torch.get_rng_state()
        for rows, state, part in zip(chunks, random_states, gradient.split(8, dim=1), strict=True):
            torch.set_rng_state(state)
            self._forward(rows, training=True).backward(part)
        torch.set_rng_state(after)

    @torch.no_grad()
    def _validate(self) -> torch.Tensor:
        """The score of each fit on its own validation rows, in float64."""
        self.stack.eval()
        if not len(self.validation):
            return torch.full((len(self.jobs),), -torch.inf, dtype=torch.float64)
        if self.voxels:
            losses = torch.stack([self._losses(rows, training=False) for rows in self.validation.split(1)]).mean(0)
            return -losses.double().cpu()
        outputs = torch.cat([self._forward(rows, training=False) for rows in self.validation.split(256)], dim=1)
        scores = -self._objective_of(outputs, self.validation, self.validation_weights).double().cpu()
        if self.score is None:
            return scores
        place = {int(row): index for index, row in enumerate(self.validation)}
        for index, job in enumerate(self.jobs):
            if len(job.validation):
                inside = [place[int(row)] for row in job.validation]
                value = self.score(
                    outputs[index, inside].cpu().numpy(), self.targets[index][torch.as_tensor(job.validation)].numpy()
                )
                scores[index] = value if np.isfinite(value) else scores[index]
        return scores

    def _losses(self, rows: torch.Tensor, *, training: bool) -> torch.Tensor:
        """The loss of each fit (F,) on some rows."""
        if self.voxels:
            (job,) = self.jobs
            if not callable(job.targets):
                raise TypeError("a segmentation takes its targets from a function of the row")
            maps = [torch.as_tensor(np.asarray(job.targets(int(row)))).long() for row in rows]
            sizes = [tuple(labels.shape) for labels in maps]
            targets = torch.cat([labels.flatten() for labels in maps]).to(self.device)[None, :, None]
            outputs = self._forward(rows, training=training, sizes=sizes)
            if job.annotated is not None:
                # A class nobody looked for leaves the softmax: it may well be in what is labelled background.
                absent = [
                    torch.from_numpy(~job.annotated(int(row))).expand(labels.numel(), -1)
                    for row, labels in zip(rows, maps, strict=True)
                ]
                outputs = outputs.masked_fill(torch.cat(absent)[None].to(self.device), -1e4)
            return self.objective(outputs, targets, self._class_weights()[targets[..., 0].clamp_min(0)])
        weights = self.train_weights if training else self.validation_weights
        return self._objective_of(self._forward(rows, training=training), rows, weights)

    def _class_weights(self) -> torch.Tensor:
        """Weight of each class of a segmentation, from the training maps."""
        if self.class_weights is None:
            classes = self.config.num_classes
            weights = torch.ones(classes)
            if self.settings.balance:
                (job,) = self.jobs
                counts = np.zeros(classes)
                for row in job.train:
                    labels = np.asarray(job.targets(int(row)))  # type: ignore[operator]
                    counts += np.bincount(labels[labels >= 0].ravel(), minlength=classes)[:classes]
                share = torch.from_numpy(counts / max(counts.sum(), 1)).float()
                weights = torch.where(share > 0, share.clamp_min(1e-12).rsqrt(), 0.0)
            self.class_weights = weights.to(self.device)
        return self.class_weights

    def _objective_of(self, outputs: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.objective(outputs, self.targets[:, rows].to(self.device), weights[:, rows].to(self.device))

    def _forward(self, rows: torch.Tensor, *, training: bool, sizes=None) -> torch.Tensor:
        noise = self.settings.noise if training else 0.0
        if noise and self.settings.noise_probability < 1 and float(torch.rand(())) >= self.settings.noise_probability:
            noise = 0.0
        if self.cls is None:
            grids = self.features.patch_rows(rows.tolist())
            if noise:
                grids = [grid + noise * torch.randn(grid.shape) for grid in grids]
            return self.stack([grid.to(self.device) for grid in grids], sizes)
        cls = self.cls[rows]
        if noise and self.settings.batch_size is None:
            # Drawn for every row there is: the noise of a row must not depend on which other rows are in use.
            cls = cls + noise * torch.randn(self.cls.shape)[rows]
        elif noise:
            cls = cls + noise * torch.randn(cls.shape)
        return self.stack(cls.to(self.device))

    @torch.no_grad()
    def _safe_steps(self) -> torch.Tensor:
        """For each fit (F,), one over the largest curvature its loss can have, found by power iteration."""
        if self.cls is None:
            raise ValueError("accelerated gradient descent is for linear heads on CLS vectors; use adamw")
        weights = self.train_weights if self.train_weights.ndim == 2 else self.train_weights.amax(-1)
        weights = (weights / weights.sum(1, keepdim=True).clamp_min(1e-12))[:, self.train]  # (F, rows)
        cls = torch.cat([self.cls[self.train], torch.ones(len(self.train), 1)], dim=1)  # the bias is a feature too
        vectors = torch.randn(cls.shape[1], generator=torch.Generator().manual_seed(0)).repeat(len(weights), 1)
        for _ in range(20):
            vectors = nn.functional.normalize(vectors, dim=1)
            vectors = (weights * (vectors @ cls.T)) @ cls
        # Bounds of the second derivative of each loss in its output; power iteration ends a little low, hence 1.1.
        bound = {"binary_loss": 0.25, "class_loss": 0.5, "squared_loss": 2.0, "cox_loss": 1.0}[self.objective.__name__]
        return (1 / (1.1 * bound * vectors.norm(dim=1))).to(self.device)


def _stack(config: VoxelFMProbeConfig, states: Sequence[State], device: str) -> ClsStack | PatchStack:
    stack = PatchStack(config, states) if config.uses_patches else ClsStack(config, states)
    return stack.to(device).eval()


def _groups(jobs: Sequence[ProbeJob], config: VoxelFMProbeConfig, settings: ProbeSettings) -> list[list[int]]:
    """Job numbers that may be fitted together: one seed, one set of training rows when those come in batches."""
    groups: dict = {}
    for index, job in enumerate(jobs):
        key = (job.seed, np.asarray(job.train).tobytes() if settings.batch_size is not None else None)
        groups.setdefault(key, []).append(index)
    with torch.device("meta"):
        per_fit = sum(parameter.numel() for parameter in VoxelFMProbe(config).head.parameters())
    size = 1 if config.uses_patches else max(1, MAX_STACKED_PARAMETERS // per_fit)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def _objective(config: VoxelFMProbeConfig) -> Callable[..., torch.Tensor]:
    if config.task == "segmentation" or (config.task == "classification" and config.is_single_label):
        return class_loss
    return {
        "classification": binary_loss,
        "regression": squared_loss,
        "survival": cox_loss,
        "localization": point_loss,
    }[config.task]


def _prevalence_shift(targets: torch.Tensor, config: VoxelFMProbeConfig) -> torch.Tensor:
    """What balanced weights took out of the logits: log odds of each label, or log share of each class."""
    if config.is_single_label:
        counts = torch.stack([(targets == value).sum() for value in range(config.num_classes)]).float()
        return (counts.clamp_min(0.5) / counts.sum().clamp_min(1)).log()
    positive, negative = (targets == 1).sum(0).float(), (targets == 0).sum(0).float()
    return (positive.clamp_min(0.5) / negative.clamp_min(0.5)).log()
