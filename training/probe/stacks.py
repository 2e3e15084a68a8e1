"""Many heads of one shape as one module: F fits side by side on the same batch of rows."""

from collections.abc import Sequence

import torch
from torch import nn

from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe

State = dict[str, torch.Tensor]


class ClsStack(nn.Module):
    """Linear or MLP heads with their parameters stacked along a first axis F; one matrix product serves all fits."""

    weight: torch.Tensor
    bias: torch.Tensor
    hidden_weight: torch.Tensor
    hidden_bias: torch.Tensor

    def __init__(self, config: VoxelFMProbeConfig, states: Sequence[State]):
        super().__init__()
        self.kind = config.head
        self.dropout = config.dropout if config.head == "mlp" else 0.0
        self.names = list(states[0])
        for name in self.names:
            stacked = torch.stack([state[name] for state in states]).clone()
            self.register_parameter(name.replace(".", "_"), nn.Parameter(stacked))

    def forward(self, cls: torch.Tensor) -> torch.Tensor:
        """(b, C) -> (F, b, outputs)."""
        if self.kind == "linear":
            fits, outputs, width = self.weight.shape
            logits = (cls @ self.weight.reshape(-1, width).T).unflatten(1, (fits, outputs))
            return logits.movedim(1, 0) + self.bias[:, None]
        fits, hidden_width, width = self.hidden_weight.shape
        hidden = (cls @ self.hidden_weight.reshape(-1, width).T + self.hidden_bias.flatten()).relu()
        hidden = hidden.unflatten(1, (fits, hidden_width))
        if self.training and self.dropout:
            # One mask for all fits: a fit then comes out the same whatever is fitted beside it.
            keep = torch.rand((len(cls), 1, hidden_width), device=cls.device) >= self.dropout
            hidden = hidden * keep / (1 - self.dropout)
        members = self.weight.shape[1]
        hidden = hidden.unflatten(2, (members, -1)).permute(1, 2, 0, 3).flatten(0, 1)  # (F * members, b, hidden)
        logits = torch.bmm(hidden, self.weight.flatten(0, 1).transpose(1, 2))
        logits = logits.unflatten(0, (fits, members)) + self.bias[:, :, None]
        return logits.transpose(1, 2).flatten(2)

    def states(self) -> list[State]:
        """The head weights of each fit under their names in VoxelFMProbe."""
        stacked = [getattr(self, name.replace(".", "_")).detach() for name in self.names]
        return [
            {name: parameter[i].clone() for name, parameter in zip(self.names, stacked, strict=True)}
            for i in range(len(stacked[0]))
        ]


class PatchStack(nn.Module):
    """One patch head as a stack of a single fit; batches are lists of patch grids of any size."""

    def __init__(self, config: VoxelFMProbeConfig, states: Sequence[State]):
        super().__init__()
        (state,) = states
        self.head = VoxelFMProbe(config).head
        self.head.load_state_dict(state)

    def forward(
        self,
        patches: Sequence[torch.Tensor],
        sizes: Sequence[tuple[int, int, int]] | None = None,
        positions: Sequence[torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """Grids (d, h, w, C) -> (1, b, outputs); with the sizes of the label maps (1, all voxels, classes).

        `positions` (d, h, w, 3) of the patches, where a grid is only a window of its scan.
        """
        if sizes is not None:
            where = [None if place is None else place[None] for place in positions or [None] * len(patches)]
            maps = [self.head(grid[None], *rest)[0] for grid, *rest in zip(patches, sizes, where, strict=True)]
            return torch.cat([logits.flatten(1).T for logits in maps])[None]
        return self.head(*padded(patches))[None]

    def states(self) -> list[State]:
        """The head weights under their names in VoxelFMProbe."""
        return [{name: value.detach().clone() for name, value in self.head.state_dict().items()}]


def padded(patches: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Grids (d, h, w, C) as one (B, d, h, w, C) with zeros at the end of each axis, and the mask of real patches."""
    shapes = {tuple(grid.shape[:3]) for grid in patches}
    if len(shapes) == 1:
        return torch.stack(list(patches)), None
    largest = [max(shape[axis] for shape in shapes) for axis in range(3)]
    batch = patches[0].new_zeros((len(patches), *largest, patches[0].shape[-1]))
    mask = torch.zeros(batch.shape[:4], dtype=torch.bool, device=batch.device)
    for index, grid in enumerate(patches):
        d, h, w = grid.shape[:3]
        batch[index, :d, :h, :w], mask[index, :d, :h, :w] = grid, True
    return batch, mask


def initial_state(config: VoxelFMProbeConfig, seed: int) -> State:
    """Fresh head weights fixed by the seed; linear heads start at 0, so directions without data stay at 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = {name: value.detach().clone() for name, value in VoxelFMProbe(config).head.state_dict().items()}
    if config.head == "linear":
        state = {name: torch.zeros_like(value) for name, value in state.items()}
    return state


def make_stack(config: VoxelFMProbeConfig, states: Sequence[State], device: str) -> ClsStack | PatchStack:
    """The stack that suits the head, in evaluation mode."""
    stack = PatchStack(config, states) if config.uses_patches else ClsStack(config, states)
    return stack.to(device).eval()
