"""Memory and time a run will need, estimated from its recipe before it starts."""

import time
from dataclasses import dataclass

import torch

from voxelfm_hf.training.pretrain.losses import MAX_LOGITS_AT_ONCE
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe

# Share of the speed of a large matrix product that a whole step reaches; rough, and meant to be.
_EFFICIENCY = 0.4


@dataclass(frozen=True)
class Estimate:
    """What a run needs, per process.

    Args:
        parameters: of the backbone.
        head_parameters: of the heads.
        state_bytes: student, gradients, Adam's moments and teacher, fp32.
        activation_bytes: kept for the backward pass of one micro-batch.
        flops_per_step: of one optimiser step of one process.
        tokens: tokens a volume makes the student and the teacher read.
        accumulation_steps: micro-batches of a step.
    """

    parameters: int
    head_parameters: int
    state_bytes: int
    activation_bytes: int
    flops_per_step: float
    tokens: tuple[int, int]
    accumulation_steps: int

    def seconds_per_step(self, flops_per_second: float) -> float:
        """Time of a step at a measured speed of matrix products."""
        return self.flops_per_step / (flops_per_second * _EFFICIENCY)


def estimate(recipe: PretrainRecipe, *, num_processes: int) -> Estimate:
    """Estimate a run from sizes alone; the largest pair of crop sizes counts.

    Args:
        recipe: of the run.
        num_processes: processes that share the total batch.

    Returns:
        The estimate, for one process.
    """
    model, head, run, crops = recipe.model, recipe.head, recipe.run, recipe.crops
    width, hidden = model.hidden_size, int(model.mlp_ratio * model.hidden_size)
    mlp_weights = (3 if model.use_swiglu_ffn else 2) * width * hidden
    block = 4 * width * width + mlp_weights
    parameters = model.num_hidden_layers * block + width * model.patch_size**3
    head_mlp = width * head.hidden_size + head.hidden_size**2 + head.hidden_size * head.bottleneck_size
    prototypes = head.bottleneck_size * head.num_prototypes
    heads = (head_mlp + prototypes) * (2 if head.separate_ibot_head else 1)

    global_size, local_size = max(crops.size_pairs)
    prefix = 1 + model.num_register_tokens
    global_patches = (global_size // model.patch_size) ** 3
    sequences = [(2, global_patches + prefix), (crops.num_locals, (local_size // model.patch_size) ** 3 + prefix)]
    student_tokens = sum(number * length for number, length in sequences)
    teacher_tokens = 2 * (global_patches + prefix)
    low, high = recipe.masks.ratio_range
    masked = 2 * recipe.masks.masked_share * global_patches * (low + high) / 2

    def forward(pairs: list[tuple[int, int]]) -> float:
        tokens = sum(number * length for number, length in pairs)
        scores = sum(number * length**2 for number, length in pairs)
        return 2 * tokens * parameters + 4 * scores * width * model.num_hidden_layers

    head_rows = 2 + crops.num_locals + masked
    head_forward = 2 * head_rows * (head_mlp + prototypes)
    # Forward and twice that backward; recomputed blocks cost a forward more.
    backbone_factor = 4 if run.checkpoint_activations else 3
    per_volume = (
        backbone_factor * forward(sequences) + forward(sequences[:1]) + 3 * head_forward + 2 * (2 + masked) * prototypes
    )
    accumulation = recipe.accumulation_steps(num_processes)

    # Kept per token and block: both norms, q, k, v before and after rotation, attention, projections and LayerScale
    # (about 14 C) and the hidden layer before and after its activation.
    number_size = 4 if run.mixed_precision == "no" else 2.5
    per_token = (14 * width + (3 if model.use_swiglu_ffn else 2) * hidden) * number_size
    kept_blocks = model.num_hidden_layers if not run.checkpoint_activations else 1
    activations = run.batch_size * student_tokens * (per_token * kept_blocks + width * 4 * model.num_hidden_layers / 4)
    return Estimate(
        parameters=parameters,
        head_parameters=heads,
        state_bytes=5 * 4 * (parameters + heads),
        activation_bytes=int(activations),
        flops_per_step=per_volume * run.batch_size * accumulation,
        tokens=(student_tokens, teacher_tokens),
        accumulation_steps=accumulation,
    )


def measure_flops(device: torch.device, precision: str, *, seconds: float = 0.2) -> float:
    """Speed of a matrix product on this device in FLOP/s, measured for a moment."""
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size = 8192 if device.type == "cuda" else 1024  # what fills it
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    (left @ right).sum().item()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        result = left @ right
        done += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    del result
    return 2 * size**3 * done / (time.perf_counter() - start)


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:,.0f} days"


def describe(recipe: PretrainRecipe, *, num_processes: int, device: torch.device) -> str:
    """The estimate in words, with the speed of this device."""
    values = estimate(recipe, num_processes=num_processes)
    run = recipe.run
    speed = measure_flops(device, run.mixed_precision)
    seconds = values.seconds_per_step(speed)
    logits = min(MAX_LOGITS_AT_ONCE, recipe.head.num_prototypes * 4096) * 4 * 3
    memory = values.state_bytes + values.activation_bytes + logits
    return "\n".join(
        [
            f"backbone {values.parameters / 1e6:.1f} M parameters, heads {values.head_parameters / 1e6:.1f} M",
            f"a volume is {values.tokens[0]} tokens for the student and {values.tokens[1]} for the teacher",
            f"a step is {run.total_batch} volumes: {num_processes} process(es) x {values.accumulation_steps} "
            f"micro-batch(es) x {run.batch_size}",
            f"memory a process about {memory / 1e9:.1f} GB: {values.state_bytes / 1e9:.1f} weights, gradients, "
            f"optimiser and teacher, {values.activation_bytes / 1e9:.1f} activations, {logits / 1e9:.1f} logits",
            f"time at least {seconds:.3g} s a step, {_duration(seconds * run.total_steps)} for {run.total_steps} steps "
            f"(from {speed / 1e9:.0f} GFLOP/s measured here; only matrix products are counted)",
        ]
    )
