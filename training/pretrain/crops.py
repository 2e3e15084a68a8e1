"""Random views of a CT volume: crop, axis permutation, flips, HU window, normalisation.

The draw of a view is apart from its application: a draw is a few numbers that follow from (seed, epoch, sample, view)
alone, so views do not depend on which worker makes them or when.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from voxelfm_hf.modeling.resampling_voxelfm import HU_RANGE, IMAGE_MEAN, IMAGE_STD
from voxelfm_hf.training.run_settings import require

Shape = tuple[int, int, int]

WINDOW_BINS = 512
# Streams of draws that must not coincide for equal other numbers.
_VIEW_STREAM, _SIZE_STREAM = 1, 2


@dataclass(frozen=True)
class CropSettings:
    """How the views of pre-training are drawn; the defaults are the published ones.

    Args:
        global_size: edge in voxels of the two global crops, or several edges for a multi-resolution run.
        local_size: edge of the local crops; as many as `global_size`, paired by position.
        size_probabilities: chance of each pair of sizes, one pair a micro-batch; equal chances when left out.
        num_locals: local crops of a volume.
        global_scale: range of the crop edge as a share of the shortest side of the volume, global crops.
        local_scale: the same for local crops.
        flip_probability: chance of a flip, for each axis of a global crop.
        window_probability: chance of a random HU window on the first global crop.
        hu_range: values are clipped to this range before normalisation.
        image_mean: HU taken off.
        image_std: HU divided by.
    """

    global_size: int | list[int] = 112
    local_size: int | list[int] = 56
    size_probabilities: list[float] | None = None
    num_locals: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    flip_probability: float = 0.5
    window_probability: float = 0.5
    hu_range: tuple[float, float] = HU_RANGE
    image_mean: float = IMAGE_MEAN
    image_std: float = IMAGE_STD

    @property
    def size_pairs(self) -> list[tuple[int, int]]:
        """The (global, local) edges to choose from."""
        global_sizes = [self.global_size] if isinstance(self.global_size, int) else list(self.global_size)
        local_sizes = [self.local_size] if isinstance(self.local_size, int) else list(self.local_size)
        return list(zip(global_sizes, local_sizes, strict=True))

    def check(self, patch_size: int) -> None:
        """RecipeError where the fields contradict each other or the patches."""
        sizes = (self.global_size, self.local_size)
        counts = {1 if isinstance(size, int) else len(size) for size in sizes}
        require(len(counts) == 1, "crops.global_size and crops.local_size must list equally many edges")
        pairs = self.size_pairs
        for edge in (edge for pair in pairs for edge in pair):
            require(
                edge > 0 and edge % patch_size == 0,
                f"the crop edge {edge} is not a multiple of model.patch_size {patch_size}",
            )
        if self.size_probabilities is not None:
            require(
                len(self.size_probabilities) == len(pairs) and math.isclose(sum(self.size_probabilities), 1.0),
                "crops.size_probabilities must hold one number a size, adding up to 1",
            )
        for name, (low, high) in (("global_scale", self.global_scale), ("local_scale", self.local_scale)):
            require(0 < low <= high <= 1, f"crops.{name} must be two numbers with 0 < low <= high <= 1")


@dataclass(frozen=True)
class WindowDraw:
    """A random HU window, relative to the histogram of the image it will meet.

    Args:
        level_shift: standard normal; the level moves by this times a fifth of the spread of the HU values.
        width_factor: width of the window as a multiple of that spread.
    """

    level_shift: float
    width_factor: float


@dataclass(frozen=True)
class ViewDraw:
    """One view of a volume, fully determined.

    Args:
        permutation: axis i of the volume becomes axis `permutation[i]` of the view.
        start: first voxel of the crop on each axis of the volume.
        size: voxels of the crop on each axis of the volume.
        target: shape of the view.
        flips: whether each axis of the view is reversed.
        window: HU window, if any.
    """

    permutation: Shape
    start: Shape
    size: Shape
    target: Shape
    flips: tuple[bool, bool, bool] = (False, False, False)
    window: WindowDraw | None = None


@dataclass(frozen=True)
class Views:
    """The views of one volume: `global_crops` (2, 1, g, g, g) and `local_crops` (L, 1, l, l, l), fp32, normalised."""

    global_crops: Tensor
    local_crops: Tensor


def crop_size(shape: Shape, permutation: Shape, target: Shape, scale: float) -> Shape:
    """Size of a crop on the axes of the volume.

    The crop has the proportions of the view; its shortest edge is `scale` times the shortest side of the volume, made
    smaller where it would not fit. Halves round to even and no edge is below one voxel.
    """
    wanted = [target[axis] for axis in permutation]
    factor = scale * min(shape) / min(target)
    factor = min(factor, *(n / edge for n, edge in zip(shape, wanted, strict=True)))
    sizes = [min(n, max(1, round(factor * edge))) for n, edge in zip(shape, wanted, strict=True)]
    return sizes[0], sizes[1], sizes[2]


def draw_view(
    generator: np.random.Generator,
    shape: Shape,
    target: Shape,
    scale: tuple[float, float],
    *,
    flip_probability: float = 0.0,
    window_probability: float = 0.0,
) -> ViewDraw:
    """Draw a view of a volume of a given shape.

    Args:
        generator: source of all draws.
        shape: shape (D, H, W) of the volume.
        target: shape of the view.
        scale: range of the crop edge as a share of the shortest side.
        flip_probability: chance of a flip on each axis.
        window_probability: chance of a random HU window.

    Returns:
        The view.
    """
    permutation: Shape = tuple(generator.permutation(3).tolist())
    size = crop_size(shape, permutation, target, float(generator.uniform(*scale)))
    start: Shape = tuple(generator.integers(0, np.subtract(shape, size) + 1).tolist())
    flips: tuple[bool, bool, bool] = tuple((generator.random(3) < flip_probability).tolist())
    window = None
    if generator.random() < window_probability:
        window = WindowDraw(float(generator.standard_normal()), float(generator.uniform(0.5, 2.0)))
    return ViewDraw(permutation, start, size, target, flips, window)


def crop(hu: np.ndarray, draw: ViewDraw) -> Tensor:
    """Cut a view out of a volume: permuted, resampled (trilinear, align_corners False), flipped.

    Args:
        hu: (D, H, W) HU values.
        draw: the view.

    Returns:
        fp32 HU values of shape `draw.target`.
    """
    box = tuple(slice(first, first + edge) for first, edge in zip(draw.start, draw.size, strict=True))
    cut = np.ascontiguousarray(hu[box].transpose(np.argsort(draw.permutation)), dtype=np.float32)
    image = torch.from_numpy(cut)
    if image.shape != draw.target:
        image = nn.functional.interpolate(image[None, None], size=draw.target, mode="trilinear", align_corners=False)
        image = image[0, 0]
    flipped = [axis for axis, flip in enumerate(draw.flips) if flip]
    return image.flip(flipped) if flipped else image


def apply_window(hu: Tensor, window: WindowDraw, *, hu_range: tuple[float, float] = HU_RANGE) -> Tensor:
    """Clip an image to a random HU window placed by its own histogram.

    Percentiles are lower edges of a 512-bin histogram of the values inside `hu_range`. Level = median + a fifth of the
    interquartile range times the draw; width = that range times the draw, at least 10 HU. When the interquartile range
    is below 1 HU the 1-99 % range stands in, itself at least 1 HU. An image without a value in range stays as it is.

    Args:
        hu: HU values of any shape.
        window: the draw.
        hu_range: range of the histogram.

    Returns:
        The image clipped to [level - width / 2, level + width / 2].
    """
    low, high = hu_range
    counts = torch.histc(hu, bins=WINDOW_BINS, min=low, max=high).numpy().astype(np.float64)
    if counts.sum() == 0:
        return hu
    cumulated = np.cumsum(counts) / counts.sum()
    bins = np.searchsorted(cumulated, (0.01, 0.25, 0.5, 0.75, 0.99))
    first, lower, median, upper, last = low + bins * (high - low) / WINDOW_BINS
    spread = upper - lower
    if spread < 1:
        spread = max(last - first, 1.0)
    level = median + window.level_shift * 0.2 * spread
    width = max(window.width_factor * spread, 10.0)
    return hu.clamp(level - width / 2, level + width / 2)


def normalise(hu: Tensor, settings: CropSettings) -> Tensor:
    """Clip to the HU range, take off the mean, divide by the standard deviation."""
    return (hu.clamp(*settings.hu_range) - settings.image_mean) / settings.image_std


def draw_size_pair(settings: CropSettings, *, seed: int, micro_batch: int) -> tuple[int, int]:
    """Edges of the global and local crops of a micro-batch; the same on every rank, a function of its arguments."""
    pairs = settings.size_pairs
    if len(pairs) == 1:
        return pairs[0]
    generator = np.random.default_rng([seed, _SIZE_STREAM, micro_batch])
    return pairs[int(generator.choice(len(pairs), p=settings.size_probabilities))]


def view_generator(*, seed: int, epoch: int, sample_id: str, view: int) -> np.random.Generator:
    """Generator of the draws of one view, the same in whichever process it is made."""
    digest = int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng([seed, _VIEW_STREAM, epoch, digest, view])


def draw_views(
    shape: Shape, settings: CropSettings, size_pair: tuple[int, int], *, seed: int, epoch: int, sample_id: str
) -> list[ViewDraw]:
    """Draw all views of a volume: two global ones (the first with the random window), then the local ones."""
    global_size, local_size = size_pair
    draws = []
    for view in range(2 + settings.num_locals):
        generator = view_generator(seed=seed, epoch=epoch, sample_id=sample_id, view=view)
        if view < 2:
            draws.append(
                draw_view(
                    generator,
                    shape,
                    (global_size,) * 3,
                    settings.global_scale,
                    flip_probability=settings.flip_probability,
                    window_probability=settings.window_probability if view == 0 else 0.0,
                )
            )
        else:
            draws.append(draw_view(generator, shape, (local_size,) * 3, settings.local_scale))
    return draws


def make_views(
    hu: np.ndarray, settings: CropSettings, size_pair: tuple[int, int], *, seed: int, epoch: int, sample_id: str
) -> Views:
    """Make the views of one volume.

    Args:
        hu: (D, H, W) HU values; sides may be smaller than a crop, which is then resampled up.
        settings: how views are drawn.
        size_pair: edges of the global and local crops.
        seed: seed of the run.
        epoch: pass over the data.
        sample_id: stable name of the volume.

    Returns:
        Normalised views.
    """
    draws = draw_views(hu.shape, settings, size_pair, seed=seed, epoch=epoch, sample_id=sample_id)
    views = []
    for draw in draws:
        image = crop(hu, draw)
        if draw.window is not None:
            image = apply_window(image, draw.window, hu_range=settings.hu_range)
        views.append(normalise(image, settings)[None])
    local_size = size_pair[1]
    local_crops = torch.stack(views[2:]) if len(views) > 2 else torch.zeros(0, 1, local_size, local_size, local_size)
    return Views(torch.stack(views[:2]), local_crops)
