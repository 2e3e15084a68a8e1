"""Speed of a pre-training step against the published step built plainly, of masks, and of the loader."""

import itertools
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from voxelfm_hf.eval.speed.model import eager_twin
from voxelfm_hf.eval.speed.timing import finish_gpu_work, interleaved_seconds
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMAttention, VoxelFMModel, eager_attention_forward
from voxelfm_hf.recipes import load_recipe
from voxelfm_hf.training.network_options import MATMUL_ATTENTION
from voxelfm_hf.training.pretrain.heads import HeadSettings
from voxelfm_hf.training.pretrain.losses import koleo_loss
from voxelfm_hf.training.pretrain.masking import MIN_ASPECT, MIN_BLOCK_PATCHES, MaskSource
from voxelfm_hf.training.pretrain.optimizer import make_adamw, parameter_groups, set_rates
from voxelfm_hf.training.pretrain.recipe import ModelSettings, PretrainRecipe, PretrainRunSettings
from voxelfm_hf.training.pretrain.self_distillation import Student, Teacher
from voxelfm_hf.training.pretrain.targets import teacher_targets

TEMPERATURE, MOMENTUM, CLIP_NORM = 0.05, 0.994, 3.0


@dataclass(frozen=True)
class Speed:
    """Median seconds of two ways to do the same, measured in turns in one process."""

    name: str
    seconds: float
    plain_seconds: float

    @property
    def ratio(self) -> float:
        return self.plain_seconds / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.name}: {1000 * self.seconds:.2f} ms, built plainly {1000 * self.plain_seconds:.2f} ms, "
            f"ratio {self.ratio:.1f}"
        )


def reduced_recipe(
    *, hidden_size: int = 216, num_layers: int = 4, batch_size: int = 2, num_prototypes: int = 8192
) -> PretrainRecipe:
    """The published recipe with a narrower backbone and head; crops, masks and losses as published."""
    return PretrainRecipe(
        data="",
        output_dir="",
        model=ModelSettings(
            hidden_size=hidden_size, num_hidden_layers=num_layers, num_attention_heads=hidden_size // 72 or 1
        ),
        head=HeadSettings(hidden_size=512, bottleneck_size=128, num_prototypes=num_prototypes),
        run=PretrainRunSettings(batch_size=batch_size, total_batch=batch_size),
    )


def published_recipe(*, batch_size: int = 2, num_prototypes: int = 65536) -> PretrainRecipe:
    """The packaged recipe `base` in micro-batches of that many volumes."""
    sizes = {"head.num_prototypes": num_prototypes, "run.batch_size": batch_size, "run.total_batch": batch_size}
    overrides = [f"--{name}={value}" for name, value in sizes.items()]
    return load_recipe("base", PretrainRecipe, overrides=["--data=unused", "--output_dir=unused", *overrides])


class Step:
    """One optimiser step on fixed random crops, as the package does it."""

    def __init__(self, recipe: PretrainRecipe, *, autocast: bool = True, device: str = "cpu"):
        torch.manual_seed(0)
        self.recipe, self.autocast, self.number, self.device = recipe, autocast, 0, torch.device(device)
        self.student = Student(recipe.model_config(), recipe.head, recipe.loss).to(device)
        self.teacher = Teacher(self.student).to(device)
        if autocast and device == "cpu":
            for backbone in (self.student.backbone, self.teacher.backbone):
                backbone.set_attn_implementation(MATMUL_ATTENTION)
        self._make_optimizer()
        batch, crops = recipe.run.batch_size, recipe.crops
        global_size, local_size = crops.size_pairs[0]
        self.global_crops = torch.randn(2 * batch, 1, *(global_size,) * 3).to(device)
        self.local_crops = torch.randn(crops.num_locals * batch, 1, *(local_size,) * 3).to(device)
        self.grid = (global_size // recipe.model.patch_size,) * 3
        self.source = MaskSource(0, 2 * batch, ratio_range=recipe.masks.ratio_range)

    def _make_optimizer(self) -> None:
        self.optimizer = self._adamw(parameter_groups(self.student, num_layers=self.recipe.model.num_hidden_layers))
        set_rates(self.optimizer, learning_rate=1e-4, last_layer_learning_rate=1e-4, weight_decay=0.04)

    def _adamw(self, groups: list[dict]) -> torch.optim.Optimizer:
        return make_adamw(groups, device=self.device)

    def masks(self) -> Tensor:
        """Masks of the next micro-batch."""
        self.number += 1
        return torch.from_numpy(self.source.masks(self.number, self.grid)).to(self.device)

    def loss(self, masks: Tensor) -> Tensor:
        """Total loss of the fixed crops with given masks."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            output = self.teacher(self.global_crops, masks, temperature=TEMPERATURE)
            return self.student(self.global_crops, self.local_crops, masks, output)["total"]

    def move(self) -> None:
        """Optimiser, teacher and centres."""
        nn.utils.clip_grad_norm_(self.student.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.teacher.update(self.student, momentum=MOMENTUM)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss(self.masks()).backward()
        self.move()

    def parts(self) -> dict[str, float]:
        """Seconds of the parts of one step."""
        marks: list[float] = []

        def mark() -> None:
            finish_gpu_work()
            marks.append(time.perf_counter())

        mark()
        masks = self.masks()
        mark()
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            output = self.teacher(self.global_crops, masks, temperature=TEMPERATURE)
            mark()
            loss = self.student(self.global_crops, self.local_crops, masks, output)["total"]
        mark()
        loss.backward()
        mark()
        self.move()
        mark()
        names = ("masks", "teacher", "student and losses", "backward", "optimiser and teacher update")
        return {name: stop - start for name, (start, stop) in zip(names, itertools.pairwise(marks), strict=True)}


class PlainAttention(VoxelFMAttention):
    """Eager attention with the rotary formula written out, on the patch tokens alone:
    even' = even cos - odd sin, odd' = even sin + odd cos, in fp32."""

    def forward(self, hidden_states: Tensor, position_embeddings: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        prefix = 1 + self.config.num_register_tokens
        cos, sin = position_embeddings.real[prefix:, None], position_embeddings.imag[prefix:, None]

        def rotated(states: Tensor) -> Tensor:
            patches = states[:, prefix:].float()
            even, odd = patches[..., 0::2], patches[..., 1::2]
            turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
            return torch.cat((states[:, :prefix], turned.to(states.dtype)), dim=1).transpose(1, 2)

        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        query, key = rotated(self.q_proj(hidden_states).view(shape)), rotated(self.k_proj(hidden_states).view(shape))
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        output, weights = eager_attention_forward(self, query, key, value, None, scaling=self.scaling)
        return self.o_proj(output.flatten(2)), weights


def plain_twin(backbone: VoxelFMModel) -> VoxelFMModel:
    """The backbone with a Conv3d for the patches and `PlainAttention`, in the same weights."""
    twin = eager_twin(backbone)
    for module in twin.modules():
        if isinstance(module, VoxelFMAttention):
            module.__class__ = PlainAttention
    return twin


class PlainStep(Step):
    """The same step, built plainly from what is known of the published one.

    Published facts: patches by a Conv3d; eager attention (softmax in fp32), the rotary formula on patch tokens only;
    masks by Python loops over patches; one pass of each backbone a crop size; one cross entropy for each pair of a
    student view and a teacher view; the iBOT mean taken image by image; the teacher updated and sent to all ranks at
    every step, here as a copy of each parameter within the process (no wire is timed). Plain choices where the facts
    are silent, none of them slow on purpose: all logits and targets at once, targets by `teacher_targets`, torch's
    default AdamW, a loop over the parameters for the teacher. As in the package's step, heads see only CLS and masked
    tokens, targets are computed once for both crops, and autocast is on.
    """

    def __init__(self, recipe: PretrainRecipe, *, autocast: bool = True, device: str = "cpu"):
        super().__init__(recipe, autocast=autocast, device=device)
        self.student.backbone = plain_twin(self.student.backbone).train()
        self.teacher.backbone = plain_twin(self.teacher.backbone).requires_grad_(False)
        self._make_optimizer()
        self.generator = np.random.default_rng(0)

    def _adamw(self, groups: list[dict]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups)

    def masks(self) -> Tensor:
        count, patches = 2 * self.recipe.run.batch_size, math.prod(self.grid)
        low, high = self.recipe.masks.ratio_range
        edges = np.linspace(low, high, count // 2 + 1)
        drawn = [
            plain_mask(self.generator, int(self.generator.uniform(*pair) * patches), self.grid)
            for pair in itertools.pairwise(edges)
        ]
        drawn += [np.zeros(self.grid, bool)] * (count - len(drawn))
        return torch.from_numpy(np.stack(drawn).reshape(count, patches)).to(self.device)

    def loss(self, masks: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self._plain_loss(masks)

    def _plain_loss(self, masks: Tensor) -> Tensor:
        batch, num_locals = self.recipe.run.batch_size, self.recipe.crops.num_locals
        prefix = self.student.backbone.num_prefix_tokens
        with torch.no_grad():
            tokens = self.teacher.backbone(self.global_crops).last_hidden_state
            head = self.teacher.dino_head
            cls_logits = nn.functional.linear(head(tokens[:, 0]), head.prototypes()).float()
            patch_logits = nn.functional.linear(head(tokens[:, prefix:][masks]), head.prototypes()).float()
            cls_targets = teacher_targets(cls_logits, self.teacher.dino_centre.value, temperature=TEMPERATURE)
            patch_targets = teacher_targets(patch_logits, self.teacher.ibot_centre.value, temperature=TEMPERATURE)
            self.teacher.dino_centre.accumulate(cls_logits.mean(0))
            self.teacher.ibot_centre.accumulate(patch_logits.mean(0))
        tokens = self.student.backbone(self.global_crops, bool_masked_pos=masks).last_hidden_state
        local_cls = self.student.backbone(self.local_crops).pooler_output
        head = self.student.dino_head

        def log_probabilities(rows: Tensor) -> Tensor:
            return torch.log_softmax(nn.functional.linear(head(rows), head.prototypes()).float() / 0.1, dim=-1)

        def cross_entropy(student: Tensor, target: Tensor) -> Tensor:
            return -(target * student).sum(-1).mean()

        global_rows, local_rows = log_probabilities(tokens[:, 0]), log_probabilities(local_cls)
        total = torch.zeros((), device=self.device)
        for target in cls_targets.split(batch):
            for local in local_rows.split(batch):
                total = total + cross_entropy(local, target)
        first, second = cls_targets.split(batch)
        total = total + 2 * cross_entropy(global_rows, torch.cat((second, first)))
        total = total / (2 + 2 * num_locals)
        per_patch = -(patch_targets * log_probabilities(tokens[:, prefix:][masks])).sum(-1)
        start = 0
        for image in masks:
            count = int(image.sum())
            if count:
                total = total + per_patch[start : start + count].mean() / len(masks)
            start += count
        for cls_rows in tokens[:, 0].split(batch):
            total = total + 0.1 * koleo_loss(cls_rows)
        return total

    def move(self) -> None:
        nn.utils.clip_grad_norm_(self.student.parameters(), CLIP_NORM)
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for own, other in pairs:
                own.mul_(MOMENTUM).add_(other * (1 - MOMENTUM))
                own.copy_(own.clone())  # what a broadcast moves, without the wire
        self.teacher.dino_centre.update()
        self.teacher.ibot_centre.update()


def plain_mask(generator: np.random.Generator, count: int, grid: tuple[int, int, int]) -> np.ndarray:
    """The masks of `block_masks`, one patch after the other."""
    mask = np.zeros(grid, bool)
    done = 0
    limit = math.log(1 / MIN_ASPECT)
    while done < count:
        gained = 0
        for _ in range(10):
            volume = MIN_BLOCK_PATCHES + (count - done - MIN_BLOCK_PATCHES) * generator.random()
            first, second = math.exp(generator.uniform(-limit, limit)), math.exp(generator.uniform(-limit, limit))
            depth = (volume * first * second) ** (1 / 3)
            size = [round(depth), round(depth / first), round(depth / second)]
            if not all(0 < edge < n for edge, n in zip(size, grid, strict=True)):
                continue
            start = [int(generator.integers(0, n - edge + 1)) for edge, n in zip(size, grid, strict=True)]
            spans = [range(begin, begin + edge) for begin, edge in zip(start, size, strict=True)]
            free = [place for place in itertools.product(*spans) if not mask[place]]
            if 0 < len(free) <= count - done:
                for place in free:
                    mask[place] = True
                gained = len(free)
                break
        if not gained:
            break
        done += gained
    free = [place for place in np.ndindex(*grid) if not mask[place]]
    for index in generator.choice(len(free), count - done, replace=False):
        mask[free[index]] = True
    return mask


def masking_speed(*, num_images: int = 32, grid: tuple[int, int, int] = (8, 8, 8), rounds: int = 5) -> Speed:
    """Masks of 64 micro-batches against loops over patches."""
    batches = 64
    source = MaskSource(0, num_images)
    generator, step = np.random.default_rng(0), iter(range(10**9))
    edges = np.linspace(0.1, 0.5, num_images // 2 + 1)

    def ours() -> None:
        for _ in range(batches):
            source.masks(next(step), grid)

    def plain() -> None:
        for _ in range(batches):
            for low, high in itertools.pairwise(edges):
                plain_mask(generator, int(generator.uniform(low, high) * math.prod(grid)), grid)

    seconds = interleaved_seconds({"ours": ours, "plain": plain}, rounds=rounds)
    name = f"masks of a micro-batch, {num_images} crops of {'x'.join(map(str, grid))} patches"
    return Speed(name, seconds["ours"] / batches, seconds["plain"] / batches)


def step_speed(
    recipe: PretrainRecipe | None = None, *, rounds: int = 3, device: str = "cpu"
) -> tuple[Speed, dict[str, float]]:
    """A whole step on "cpu" or "cuda" against the plain one, and the shares of its parts (they sum to 1)."""
    recipe = recipe or reduced_recipe()
    ours, plain = Step(recipe, device=device), PlainStep(recipe, device=device)
    seconds = interleaved_seconds({"ours": ours, "plain": plain}, rounds=rounds)
    parts = ours.parts()
    total = sum(parts.values())
    prototypes = recipe.head.num_prototypes
    name = f"step, width {recipe.model.hidden_size}, {recipe.run.batch_size} volumes, {prototypes} prototypes"
    return Speed(name, seconds["ours"], seconds["plain"]), {part: value / total for part, value in parts.items()}


def loader_speed(
    recipe: PretrainRecipe | None = None, *, shape: tuple[int, int, int] = (200, 280, 280), num_workers: int = 0
) -> float:
    """Volumes a second that the loader turns into views, from Parquet shards of prepared noise."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from voxelfm_hf.data.stream import SampleStream
    from voxelfm_hf.training.pretrain.loader import make_loader

    recipe = recipe or reduced_recipe()
    volume = np.random.default_rng(0).normal(0, 300, shape).astype(np.int16)
    row = {"volume": volume.tobytes(), "shape": list(shape), "spacing": [1.0] * 3, "original_spacing": [1.0] * 3}
    with tempfile.TemporaryDirectory() as name:
        table = pa.Table.from_pylist([{"id": str(number), **row} for number in range(4)])
        pq.write_table(table, Path(name) / "shard.parquet", row_group_size=1, compression="zstd")
        stream = SampleStream(name, seed=0)
        batch_size = recipe.run.batch_size
        loader = make_loader(stream, recipe.crops, batch_size=batch_size, seed=0, num_workers=num_workers)
        batches = iter(loader)
        next(batches)
        start, number = time.perf_counter(), 4
        for _ in range(number):
            next(batches)
        seconds = time.perf_counter() - start
        del batches  # ends the readers before their data go
        return number * batch_size / seconds
