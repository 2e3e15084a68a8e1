"""Backbone and probe head as one module, which of its parameters are trained, and how fast."""

import re
from collections.abc import Sequence

import torch
from torch import nn

from voxelfm_hf.hub import quiet_peft
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.training.finetune.settings import FinetuneSettings, blocks_of_mode
from voxelfm_hf.training.layer_rates import multipliers
from voxelfm_hf.training.network_options import recompute_activations
from voxelfm_hf.training.probe.stacks import PatchStack, State, make_stack
from voxelfm_hf.volumes.errors import RecipeError

HEAD = "head."


class TunableModel(nn.Module):
    """Volumes in, logits of the head out; features are standardised as the probe's were.

    Args:
        backbone: The encoder, a VoxelFMModel or one with adapters.
        probe: Gives head, task, and mean and scale of the features.
        head_state: Weights of the head in place of the probe's.
    """

    feature_mean: torch.Tensor
    feature_scale: torch.Tensor

    def __init__(self, backbone: nn.Module, probe: VoxelFMProbe, head_state: State):
        super().__init__()
        self.backbone = backbone
        self.uses_patches = probe.config.uses_patches
        self.head = make_stack(probe.config, [head_state], "cpu")
        self.register_buffer("feature_mean", probe.feature_mean.detach().clone())
        self.register_buffer("feature_scale", probe.feature_scale.detach().clone())

    def forward(
        self,
        volumes: Sequence[torch.Tensor],
        *,
        noise: float = 0.0,
        noise_seeds: Sequence[int] = (),
        sizes: Sequence[tuple[int, int, int]] | None = None,
    ) -> torch.Tensor:
        """Logits (1, b, o), or (1, all voxels, classes) for the sizes of label maps.

        Args:
            volumes: b volumes (1, D, H, W) of any sizes; equal ones go through the backbone together.
            noise: Standard deviation of the noise on standardised features.
            noise_seeds: Of each volume, so that a row has its noise whatever is computed beside it.
            sizes: Sizes (D, H, W) of the label maps of a segmentation.
        """
        features = encode(self.backbone, volumes, patches=self.uses_patches)
        # Heads are small and losses sensitive: fp32 also under autocast.
        with torch.autocast(features[0].device.type, enabled=False):
            features = [(part.float() - self.feature_mean) / self.feature_scale for part in features]
            if noise:
                features = [
                    part + noise * torch.randn(part.shape, generator=generator(seed)).to(part.device)
                    for part, seed in zip(features, noise_seeds, strict=True)
                ]
            if isinstance(self.head, PatchStack):
                return self.head(features, sizes)
            return self.head(torch.stack(features))


def encode(backbone: nn.Module, volumes: Sequence[torch.Tensor], *, patches: bool) -> list[torch.Tensor]:
    """CLS vectors (C,) or patch grids (d, h, w, C) of volumes (1, D, H, W), those of one size together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, volume in enumerate(volumes):
        groups.setdefault(tuple(volume.shape), []).append(index)
    found: dict[int, torch.Tensor] = {}
    for members in groups.values():
        together = torch.stack([volumes[index] for index in members])
        outputs = backbone(together)
        features = outputs.pooler_output
        if patches:
            features = backbone.patch_features(outputs, backbone.patch_grid(together))  # type: ignore[operator]
        found.update(zip(members, features, strict=True))
    return [found[index] for index in range(len(volumes))]


def generator(seed: int) -> torch.Generator:
    """A random generator of its own, on the CPU."""
    return torch.Generator().manual_seed(seed)


def make_trainable(backbone: VoxelFMModel, mode: str, settings: FinetuneSettings) -> nn.Module:
    """Chooses what of a backbone is trained; it is changed in place, and for LoRA wrapped.

    Args:
        backbone: The encoder.
        mode: frozen, lora, last_K or full.
        settings: Of the fine-tuning.

    Returns:
        The backbone, or a `PeftModel` round it.

    Raises:
        RecipeError: a mode that does not exist, or more blocks or other layers than the backbone has.
    """
    blocks = blocks_of_mode(mode, backbone.config.num_hidden_layers)
    backbone.requires_grad_(False)
    if settings.gradient_checkpointing:
        recompute_activations(backbone)
    if blocks is None:
        from peft import get_peft_model  # slow to import

        # A plain list of names would also match layers of other parts.
        targets = rf".*layers\.\d+\.(?:attention|mlp)\.(?:{'|'.join(settings.lora.layers)})"
        if not any(re.fullmatch(targets, name) for name, _ in backbone.named_modules()):
            raise RecipeError(f"lora.layers names {', '.join(settings.lora.layers)}, none of which the backbone has")
        with quiet_peft():
            return get_peft_model(backbone, settings.lora.config(target_modules=targets))
    if blocks > backbone.config.num_hidden_layers:
        backbone.requires_grad_(True)
        if backbone.embeddings.mask_token is not None:
            # No step uses it: it would stop distributed training.
            backbone.embeddings.mask_token.requires_grad_(False)
    elif blocks:
        backbone.layers[-blocks:].requires_grad_(True)
        backbone.norm.requires_grad_(True)
    return backbone


def parameter_groups(model: TunableModel, mode: str, settings: FinetuneSettings, num_layers: int) -> list[dict]:
    """Groups for an optimiser, each with its peak rate as `peak` and its weight decay."""
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith(HEAD):
            rate, decayed = settings.head_learning_rate, "bias" not in name
        else:
            layer_decay = 1.0 if mode == "lora" else settings.layer_decay
            factor, decay, _ = multipliers(name, num_layers=num_layers, layer_decay=layer_decay)
            rate = factor * (settings.lora.learning_rate if mode == "lora" else settings.learning_rate)
            decayed = decay > 0
        key = (rate, settings.weight_decay if decayed else 0.0)
        group = groups.setdefault(key, {"params": [], "peak": key[0], "lr": key[0], "weight_decay": key[1]})
        group["params"].append(parameter)
    return list(groups.values())


def trained_state(model: nn.Module) -> State:
    """Copies of the trainable parameters by name, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def load_trained_state(model: nn.Module, state: State) -> None:
    """Puts parameters from `trained_state` back."""
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        parameters[name].copy_(value)
