"""Losses and gradients of fine-tuning over a batch that is larger than a forward, on one process or many.

A loss that is a weighted mean over rows is summed part by part with the weight of the whole batch. Cox's loss is not:
a row's part depends on all rows of its risk set. There the outputs of all rows are computed without gradients, the loss
gives the gradient of every output, and a second pass carries it into the weights part by part (as GradCache does, Gao
et al. 2021): exact gradients of full risk sets in the memory of a small batch, at the price of a second forward.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.probe_losses_voxelfm import class_loss
from voxelfm_hf.training.finetune.input_cache import InputCache
from voxelfm_hf.training.finetune.model import generator
from voxelfm_hf.training.finetune.settings import FinetuneSettings
from voxelfm_hf.training.probe.data import ProbeJob, prepared_targets, row_weights
from voxelfm_hf.training.probe.loop import class_weights
from voxelfm_hf.training.probe.settings import DEFAULT_SETTINGS


class TuningLoss:
    """The loss of one job through a model that is trained.

    Args:
        accelerator: Of the run.
        model: A `TunableModel`, prepared by the accelerator.
        inputs: Prepared inputs.
        ids: The id of each row of the job.
        job: Targets and rows.
        config: Of the probe.
        settings: Of the fine-tuning.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        inputs: InputCache,
        ids: Sequence[str],
        job: ProbeJob,
        config: VoxelFMProbeConfig,
        settings: FinetuneSettings,
    ):
        self.accelerator, self.model, self.inputs, self.ids = accelerator, model, inputs, ids
        self.job, self.config, self.settings = job, config, settings
        self.voxels = config.family.is_map
        self.objective = config.family.loss
        self.noise = DEFAULT_SETTINGS[config.head].noise if settings.noise is None else settings.noise
        if self.voxels:
            self.class_weights = class_weights(job, config, balance=settings.balance)
        else:
            self.targets, self.means, self.scales = prepared_targets([job], config)
            self.train_weights = row_weights(self.targets, [job.train], config, balance=settings.balance)
            self.validation_weights = row_weights(self.targets, [job.validation], config, balance=settings.balance)

    def backward(self, rows: np.ndarray, *, epoch: int, step: int) -> float:
        """Adds up the gradients of the mean loss over some training rows; a collective call.

        Args:
            rows: Rows of the whole batch, the same on all processes.
            epoch: Number of the epoch, for the noise.
            step: Number of the step in it, for dropout.

        Returns:
            The loss, equal on all processes.
        """
        self.model.train()
        torch.manual_seed(seed_of(self.job.seed, 1, epoch, step, self.accelerator.process_index))
        if self.config.family.risk_sets:
            return self._backward_cox(rows, epoch)
        total = float(len(rows)) if self.voxels else float(self._weight(rows))
        summed = torch.zeros((), device=self.accelerator.device)
        parts = self._parts(rows)
        for number, part in enumerate(parts):
            with nullcontext() if number == len(parts) - 1 else self.accelerator.no_sync(self.model):
                # A process without rows of its own takes part in the exchange of gradients with a loss of zero.
                share = 1.0 if len(part) else 0.0
                loss = self._summed_loss(part if len(part) else rows[:1], epoch) * share / max(total, 1e-12)
                # Processes average their gradients; the batch is the sum of their parts.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            summed = summed + loss.detach()
        return float(self.accelerator.reduce(summed, reduction="sum"))

    @torch.no_grad()
    def outputs(self, rows: np.ndarray) -> torch.Tensor:
        """Logits (1, rows, o) of the model in evaluation mode, computed by all processes together."""
        self.model.eval()
        own = self._own(rows)
        parts = [self._forward(part, epoch=None) for part in self._split(own)]
        return self._gathered(rows, parts)

    def validate(self) -> float:
        """The score of the validation rows, higher is better: minus the loss, as in probes."""
        rows = np.asarray(self.job.validation)
        if self.voxels:
            return self._validate_maps(rows)
        outputs = self.outputs(rows).cpu()
        loss = self.objective(outputs, self.targets[:, rows], self.validation_weights[:, rows])
        return -float(loss.double())

    def _backward_cox(self, rows: np.ndarray, epoch: int) -> float:
        parts = self._parts(rows)
        states, outputs = [], []
        with torch.no_grad():
            for part in parts:
                # The second pass has to draw the same dropout.
                states.append(self._random_state())
                outputs.append(self._forward(part if len(part) else rows[:1], epoch)[:, : len(part)])
        together = self._gathered(rows, outputs).requires_grad_()
        device = together.device
        loss = self.objective(together, self.targets[:, rows].to(device), self.train_weights[:, rows].to(device))[0]
        (gradient,) = torch.autograd.grad(loss, together)
        own = gradient[:, self.accelerator.process_index :: self.accelerator.num_processes]
        start = 0
        for number, (part, state) in enumerate(zip(parts, states, strict=True)):
            self._set_random_state(state)
            with nullcontext() if number == len(parts) - 1 else self.accelerator.no_sync(self.model):
                found = self._forward(part if len(part) else rows[:1], epoch)
                wanted = own[:, start : start + len(part)] if len(part) else torch.zeros_like(found)
                self.accelerator.backward((found * wanted).sum() * self.accelerator.num_processes)
            start += len(part)
        return float(loss.detach())

    @torch.no_grad()
    def _validate_maps(self, rows: np.ndarray) -> float:
        self.model.eval()
        summed = torch.zeros((), device=self.accelerator.device)
        for row in self._own(rows):
            summed = summed + self._summed_loss(np.array([row]), epoch=None)
        return -float(self.accelerator.reduce(summed, reduction="sum")) / max(len(rows), 1)

    def _summed_loss(self, part: np.ndarray, epoch: int | None) -> torch.Tensor:
        """The loss of some rows times their weight."""
        if self.voxels:
            return self._map_losses(part, epoch)
        outputs = self._forward(part, epoch)
        targets, weights = (values[:, part].to(outputs.device) for values in (self.targets, self.train_weights))
        return self.objective(outputs, targets, weights)[0] * self._weight(part)

    def _map_losses(self, part: np.ndarray, epoch: int | None) -> torch.Tensor:
        """Sum over scans of the weighted mean over their voxels, as the probe's batches of one scan have it."""
        maps = [torch.as_tensor(np.asarray(self.job.targets(int(row)))).long() for row in part]  # type: ignore[operator]
        sizes = [(int(m.shape[0]), int(m.shape[1]), int(m.shape[2])) for m in maps]
        outputs = self._forward(part, epoch, sizes=sizes)
        losses = []
        for row, labels, logits in zip(part, maps, outputs.split([m.numel() for m in maps], dim=1), strict=True):
            if self.job.annotated is not None:
                # A class nobody looked for leaves the softmax: it may well be in what is labelled background.
                absent = torch.from_numpy(~self.job.annotated(int(row))).to(logits.device)
                logits = logits.masked_fill(absent, -1e4)
            targets = labels.flatten()[None, :, None].to(logits.device)
            weights = self.class_weights.to(logits.device)[targets[..., 0].clamp_min(0)]
            losses.append(class_loss(logits, targets, weights)[0])
        return torch.stack(losses).sum()

    def _weight(self, rows: np.ndarray) -> torch.Tensor:
        """What the loss divides by: the total weight of the known labels of some rows."""
        targets, weights = self.targets[:, rows], self.train_weights[:, rows]
        known = targets >= 0 if self.objective is class_loss else ~targets.isnan()
        return (known * weights).sum()

    def _forward(
        self, part: np.ndarray, epoch: int | None, sizes: Sequence[tuple[int, int, int]] | None = None
    ) -> torch.Tensor:
        """Logits of some rows, with noise and flips of an epoch or, without one, as they are."""
        volumes, seeds = [], []
        for row in part:
            volume = self.inputs.read(self.ids[int(row)])
            seeds.append(seed_of(self.job.seed, 2, epoch or 0, int(row)))
            if epoch is not None:
                volume = self._augmented(volume, seed_of(self.job.seed, 3, epoch, int(row)))
            volumes.append(volume.to(self.accelerator.device))
        noise = self.noise if epoch is not None else 0.0
        return self.model(volumes, noise=noise, noise_seeds=seeds, sizes=sizes)

    def _augmented(self, volume: torch.Tensor, seed: int) -> torch.Tensor:
        settings, draw = self.settings, generator(seed)
        if settings.flip:
            volume = volume.flip([axis + 1 for axis in range(3) if float(torch.rand((), generator=draw)) < 0.5])
        if settings.input_noise:
            volume = volume + settings.input_noise * torch.randn(volume.shape, generator=draw)
        return volume

    def _own(self, rows: np.ndarray) -> np.ndarray:
        return rows[self.accelerator.process_index :: self.accelerator.num_processes]

    def _split(self, rows: np.ndarray) -> list[np.ndarray]:
        size = self.settings.micro_batch
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """This process's parts of a batch; an empty one where it has none."""
        return self._split(self._own(rows)) or [rows[:0]]

    def _gathered(self, rows: np.ndarray, own: Sequence[torch.Tensor]) -> torch.Tensor:
        """The outputs (1, rows, o) of all processes from those of each."""
        together = torch.zeros((1, len(rows), self.config.num_outputs), device=self.accelerator.device)
        if own:
            found = torch.cat(list(own), dim=1).float()
            together[:, self.accelerator.process_index :: self.accelerator.num_processes] = found
        return self.accelerator.reduce(together, reduction="sum")

    def _random_state(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state()] if self.accelerator.device.type == "cuda" else states

    def _set_random_state(self, states: Sequence[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1])


def seed_of(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
