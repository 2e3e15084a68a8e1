"""The loop behind `fit_probes`: jobs of one seed, fitted together until each has stopped improving."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.probe_heads_voxelfm import HEADS
from voxelfm_hf.modeling.probe_losses_voxelfm import CURVATURES, dice_loss
from voxelfm_hf.training.probe.data import ProbeFeatures, ProbeJob, prepared_targets, row_weights
from voxelfm_hf.training.probe.settings import FittedProbe, ProbeSettings
from voxelfm_hf.training.probe.stacks import ClsStack, PatchStack, State, initial_state, make_stack
from voxelfm_hf.training.probe.voxel_windows import random_window

# Fixed windows of each validation scan that a segmentation is watched on.
VALIDATION_WINDOWS = 4


class FitGroup:
    """Jobs of one seed, fitted together."""

    def __init__(
        self,
        features: ProbeFeatures,
        jobs: Sequence[ProbeJob],
        config: VoxelFMProbeConfig,
        settings: ProbeSettings,
        device: str,
    ):
        self.features, self.jobs, self.config = features, jobs, config
        self.settings, self.device = settings, device
        self.voxels = config.family.is_map
        self.stack: ClsStack | PatchStack = make_stack(
            config, [initial_state(config, job.seed) for job in jobs], device
        )
        self.objective = config.family.loss
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

    def fit(self, on_epoch: Callable[[int], None] = lambda epoch: None) -> list[FittedProbe]:
        """Runs the loop and gives back the best weights of every job; `on_epoch` is called before it and after each."""
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
        on_epoch(epoch)
        for epoch in range(1, settings.epochs + 1):
            if settings.schedule == "cosine":
                share = (1 + np.cos(np.pi * (epoch - 1) / settings.epochs)) / 2
                for parameter_group in optimizer.param_groups:
                    parameter_group["lr"] = settings.learning_rate * share
            if settings.optimizer == "nesterov":
                for parameter_group in optimizer.param_groups:
                    parameter_group["momentum"] = max(epoch - 1, 1e-3) / (epoch + 2)
            self._train_one_epoch(optimizer)
            if epoch % settings.evaluate_every and epoch != settings.epochs:
                on_epoch(epoch)
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
            on_epoch(epoch)
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
        if config.family.balanced and self.settings.balance:
            state = shifted(state, config, prevalence_shift(self.targets[index][job.train], config))
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
        """Minus the loss of each fit on its own validation rows, in float64."""
        self.stack.eval()
        if not len(self.validation):
            return torch.full((len(self.jobs),), -torch.inf, dtype=torch.float64)
        if self.voxels:
            losses = torch.stack([self._losses(rows, training=False) for rows in self.validation.split(1)]).mean(0)
            return -losses.double().cpu()
        outputs = torch.cat([self._forward(rows, training=False) for rows in self.validation.split(256)], dim=1)
        return -self._objective_of(outputs, self.validation, self.validation_weights).double().cpu()

    def _losses(self, rows: torch.Tensor, *, training: bool) -> torch.Tensor:
        """The loss of each fit (F,) on some rows."""
        if self.voxels:
            return torch.stack([self._voxel_losses(row, training=training) for row in rows.tolist()]).mean(0)
        weights = self.train_weights if training else self.validation_weights
        return self._objective_of(self._forward(rows, training=training), rows, weights)

    def _voxel_losses(self, row: int, *, training: bool) -> torch.Tensor:
        """The loss (1,) of a segmentation on a random window of one scan; in validation on fixed ones."""
        (job,) = self.jobs
        if not callable(job.targets):
            raise TypeError("a segmentation takes its targets from a function of the row")
        (grid,) = self.features.patch_rows([row])
        labels = torch.as_tensor(np.asarray(job.targets(row)))
        fixed = None if training else torch.Generator().manual_seed(row)
        count = 1 if training or self.settings.window is None else VALIDATION_WINDOWS
        noise = self._noise() if training else 0.0
        classes = torch.ones(self.config.num_classes, dtype=torch.bool)
        if job.annotated is not None:
            classes = torch.as_tensor(np.asarray(job.annotated(row)))
        classes = classes.to(self.device)
        losses = []
        for _ in range(count):
            window = random_window(grid, labels, edge=self.settings.window, generator=fixed)
            features = window.features + noise * torch.randn(window.features.shape) if noise else window.features
            depth, height, width = window.labels.shape
            outputs = self.stack(
                [features.to(self.device)], [(depth, height, width)], [window.positions.to(self.device)]
            )
            # A class nobody looked for leaves the softmax: it may well be in what is labelled background.
            outputs = outputs.masked_fill(~classes, -1e4)
            targets = window.labels.flatten().to(self.device)[None, :, None]
            scored = classes & (torch.arange(len(classes), device=self.device) > 0)
            if self.settings.dice and not training:
                # The cross entropy of a few voxels that are surely wrong rises long before the maps get worse.
                losses.append(dice_loss(outputs, targets, scored))
                continue
            loss = self.objective(outputs, targets, self._class_weights()[targets[..., 0].clamp_min(0)])
            if self.settings.dice:
                loss = loss + self.settings.dice * dice_loss(outputs, targets, scored)
            losses.append(loss)
        return torch.stack(losses).mean(0)

    def _class_weights(self) -> torch.Tensor:
        """Weight of each class of a segmentation, from the training maps."""
        if self.class_weights is None:
            (job,) = self.jobs
            self.class_weights = class_weights(job, self.config, balance=self.settings.balance).to(self.device)
        return self.class_weights

    def _objective_of(self, outputs: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.objective(outputs, self.targets[:, rows].to(self.device), weights[:, rows].to(self.device))

    def _noise(self) -> float:
        """The noise of the next batch."""
        noise = self.settings.noise
        if noise and self.settings.noise_probability < 1 and float(torch.rand(())) >= self.settings.noise_probability:
            return 0.0
        return noise

    def _forward(self, rows: torch.Tensor, *, training: bool) -> torch.Tensor:
        noise = self._noise() if training else 0.0
        if self.cls is None:
            grids = self.features.patch_rows(rows.tolist())
            if noise:
                grids = [grid + noise * torch.randn(grid.shape) for grid in grids]
            return self.stack([grid.to(self.device) for grid in grids])
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
        # Power iteration ends a little low, hence 1.1.
        return (1 / (1.1 * CURVATURES[self.objective] * vectors.norm(dim=1))).to(self.device)


def class_weights(job: ProbeJob, config: VoxelFMProbeConfig, *, balance: bool) -> torch.Tensor:
    """Weight (classes,) of each class of a segmentation: 1 / sqrt(its share of the training voxels), or 1."""
    if not balance:
        return torch.ones(config.num_classes)
    counts = np.zeros(config.num_classes)
    for row in job.train:
        labels = np.asarray(job.targets(int(row)))  # type: ignore[operator]
        counts += np.bincount(labels[labels >= 0].ravel(), minlength=config.num_classes)[: config.num_classes]
    share = torch.from_numpy(counts / max(counts.sum(), 1)).float()
    return torch.where(share > 0, share.clamp_min(1e-12).rsqrt(), 0.0)


def shifted(state: State, config: VoxelFMProbeConfig, shift: torch.Tensor | None) -> State:
    """The weights of a head whose logits are higher by some numbers (outputs,); the same ones without numbers."""
    if shift is None:
        return state
    name = HEADS[config.head].last_bias
    if name is None:
        raise ValueError(f"a {config.head} head adds no bias to its logits")
    return {**state, name: state[name] + shift.to(state[name]).view_as(state[name])}


def prevalence_shift(targets: torch.Tensor, config: VoxelFMProbeConfig) -> torch.Tensor:
    """What balanced weights took out of the logits: log odds of each label, or log share of each class."""
    if config.is_single_label:
        counts = torch.stack([(targets == value).sum() for value in range(config.num_classes)]).float()
        return (counts.clamp_min(0.5) / counts.sum().clamp_min(1)).log()
    positive, negative = (targets == 1).sum(0).float(), (targets == 0).sum(0).float()
    return (positive.clamp_min(0.5) / negative.clamp_min(0.5)).log()
