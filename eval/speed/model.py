"""Speed and memory of the base model: against an eager twin, by kind of operation, and by number of tokens."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from voxelfm_hf.eval.speed.timing import in_fresh_process, interleaved_seconds
from voxelfm_hf.memory import peak_memory_bytes
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Operators that multiply matrices or attend; everything else is overhead to keep small.
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "linear", "mkldnn_linear", "scaled_dot_product", "convolution")


def base_model(dtype: torch.dtype, *, layers: int | None = None, device: str = "cpu") -> VoxelFMModel:
    """The published base model with random weights, or its first `layers` blocks."""
    torch.manual_seed(0)
    config = VoxelFMConfig() if layers is None else VoxelFMConfig(num_hidden_layers=layers)
    return VoxelFMModel._from_config(config, dtype=dtype).to(device).eval()


def eager_twin(model: VoxelFMModel) -> VoxelFMModel:
    """The same weights as a plain implementation has them: eager attention and a Conv3d for the patches."""
    twin = VoxelFMModel._from_config(copy.deepcopy(model.config), attn_implementation="eager", dtype=model.dtype)
    twin.load_state_dict(model.state_dict())
    patches = twin.embeddings.patch_embeddings
    convolution = nn.Conv3d(patches.in_channels, patches.out_channels, patches.kernel_size, stride=patches.stride)
    convolution.weight, convolution.bias = patches.weight, patches.bias
    twin.embeddings.patch_embeddings = convolution
    return twin.to(model.device).eval()


def patch_grid(patches: int) -> tuple[int, int, int]:
    """The most cubic grid (d, h, w) with exactly that many patches."""
    best = (1, 1, patches)
    for d in range(1, round(patches ** (1 / 3)) + 1):
        for h in range(d, round((patches / d) ** 0.5) + 1):
            if patches % (d * h) == 0:
                best = min(best, (d, h, patches // (d * h)), key=sum)
    return best


def volume_of(patches: int, model: VoxelFMModel, dtype: torch.dtype) -> torch.Tensor:
    """A random volume (1, 1, D, H, W) of that many patches, where the model is."""
    edge = model.config.patch_size
    sides = (n * edge for n in patch_grid(patches))
    return torch.randn(1, 1, *sides, generator=torch.Generator().manual_seed(0)).to(model.device, dtype)


@dataclass(frozen=True)
class TwinSpeed:
    """Median seconds of one forward of the model and of its eager twin."""

    dtype: str
    patches: int
    seconds: float
    twin_seconds: float

    def __str__(self) -> str:
        return (
            f"forward, {self.dtype}, {self.patches} patches: {self.seconds:.3g} s, eager twin "
            f"{self.twin_seconds:.3g} s, ratio {self.twin_seconds / self.seconds:.2f}"
        )


@torch.inference_mode()
def against_twin(dtype: str, patches: int, *, rounds: int = 3, device: str = "cpu") -> TwinSpeed:
    """Time a forward against the eager twin.

    Args:
        dtype: "bf16" or "fp32", of weights and volume.
        patches: Patch tokens.
        rounds: Alternating repetitions; the medians count.
        device: Where to compute: "cpu" or "cuda".
    """
    model = base_model(DTYPES[dtype], device=device)
    twin = eager_twin(model)
    volume = volume_of(patches, model, DTYPES[dtype])
    seconds = interleaved_seconds({"model": lambda: model(volume), "twin": lambda: twin(volume)}, rounds=rounds)
    return TwinSpeed(dtype, patches, seconds["model"], seconds["twin"])


@torch.inference_mode()
def time_by_operator(dtype: str, patches: int) -> dict[str, float]:
    """Share of the CPU time of one forward by operator, largest first; the shares sum to 1."""
    model = base_model(DTYPES[dtype])
    volume = volume_of(patches, model, DTYPES[dtype])
    model(volume)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(volume)
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    return {name: t / total for name, t in sorted(times.items(), key=lambda item: -item[1])}


def share_outside_products(shares: dict[str, float]) -> float:
    """The part of `time_by_operator` outside matrix products and attention."""
    return sum(share for name, share in shares.items() if not any(product in name for product in PRODUCTS))


@torch.inference_mode()
def _forward_peak(patches: int, dtype: str, layers: int | None, device: str) -> tuple[int, int]:
    """Peak bytes of this process, or of the GPU's memory it took, before and after one forward."""
    peak = torch.cuda.max_memory_allocated if device == "cuda" else peak_memory_bytes
    model = base_model(DTYPES[dtype], layers=layers, device=device)
    before = peak()
    # fp32, as the image processor hands it over
    tokens = model(volume_of(patches, model, torch.float32)).last_hidden_state
    assert tokens.isfinite().all()
    return before, peak()


def forward_memory(
    patches: int, *, dtype: str = "bf16", layers: int | None = None, device: str = "cpu"
) -> tuple[int, int]:
    """Peak memory of a new process that encodes one volume: of all of it, or on "cuda" of its tensors on the GPU.

    Args:
        patches: Patch tokens of the volume.
        dtype: Of the weights.
        layers: Encode with that many blocks only; the activations of a block are freed before the next one's.
        device: Where to compute: "cpu" or "cuda".

    Returns:
        Peak bytes before the forward (weights, and on the CPU libraries) and after it.
    """
    return in_fresh_process(_forward_peak, patches, dtype, layers, device)
