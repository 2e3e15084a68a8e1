"""Block masks for masked-patch prediction (iBOT), drawn for many images at once.

A mask is a row of bits. Every round draws one candidate block for each image still short of its count, counts the
patches it would add with bit operations, and keeps it where it fits. Nothing loops over patches or images; the number
of rounds grows with the number of blocks in a mask (some tens), so drawing the masks of many micro-batches together
costs little more than drawing one (`MaskSource`).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from voxelfm_hf.training.run_settings import require

MIN_BLOCK_PATCHES = 4
MIN_ASPECT = 0.3
CANDIDATES_PER_BLOCK = 10


@dataclass(frozen=True)
class MaskSettings:
    """Masks of the student's global crops.

    Args:
        masked_share: share of the global crops that are masked.
        ratio_range: smallest and largest share of their patches.
    """

    masked_share: float = 0.5
    ratio_range: tuple[float, float] = (0.1, 0.5)

    def check(self) -> None:
        """RecipeError where a field is out of its range."""
        low, high = self.ratio_range
        require(0 <= low <= high <= 0.5, "masks.ratio_range must be two numbers with 0 <= low <= high <= 0.5")
        require(0 <= self.masked_share <= 1, "masks.masked_share must lie in 0..1")


def block_masks(generator: np.random.Generator, counts: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Draw 3D block masks with exact numbers of masked patches.

    A block has a volume uniform between 4 patches and what is still missing, depth/height and depth/width ratios
    log-uniform in 0.3 .. 1/0.3, and never spans a whole axis. When ten candidates in a row do not fit, the rest of the
    count is filled with random patches.

    Args:
        generator: source of all draws.
        counts: (images,) patches to mask in each image; 0 gives an empty mask.
        grid: patch grid (d, h, w).

    Returns:
        (images, d * h * w) boolean, true = masked, w fastest; row i holds exactly `counts[i]` true values.

    Raises:
        ValueError: a count is negative or larger than the grid.
    """
    counts = np.asarray(counts, dtype=np.int64)
    num_patches = math.prod(grid)
    if counts.size and (counts.min() < 0 or counts.max() > num_patches):
        raise ValueError(f"counts must lie in 0..{num_patches} for a grid {grid}, got {counts.min()}..{counts.max()}")
    slabs = _slab_bits(grid)
    masks = np.zeros((len(counts), slabs[0].shape[-1]), dtype=np.uint64)
    missing = counts.copy()
    failures = np.zeros(len(counts), dtype=np.int64)
    active = np.flatnonzero(missing > 0)
    while active.size:
        start, size = _candidate_blocks(generator, missing[active], grid)
        possible = np.flatnonzero(((size > 0) & (size < np.array(grid)[:, None])).all(axis=0))
        images, start, size = active[possible], start[:, possible], size[:, possible]
        blocks = slabs[0][start[0], size[0]] & slabs[1][start[1], size[1]] & slabs[2][start[2], size[2]]
        gain = np.bitwise_count(blocks & ~masks[images]).sum(axis=1, dtype=np.int64)
        fits = np.flatnonzero((gain > 0) & (gain <= missing[images]))
        images = images[fits]
        masks[images] |= blocks[fits]
        missing[images] -= gain[fits]
        failures[active] += 1
        failures[images] = 0
        active = active[(missing[active] > 0) & (failures[active] < CANDIDATES_PER_BLOCK)]
    bits = np.unpackbits(masks.view(np.uint8), axis=1, count=num_patches, bitorder="little")
    return _fill_randomly(generator, bits.view(bool), missing)


def _candidate_blocks(
    generator: np.random.Generator, missing: np.ndarray, grid: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Start and size (3, images) of one random block an image; a size may be 0 or not fit its axis."""
    draws = generator.random((6, missing.size), dtype=np.float32)
    edge = np.cbrt(MIN_BLOCK_PATCHES + (missing - MIN_BLOCK_PATCHES) * draws[0])
    height_ratio, width_ratio = (2 * draws[1:3] - 1) * math.log(1 / MIN_ASPECT)  # logs of depth/height, depth/width
    depth = (height_ratio + width_ratio) / 3
    size = np.rint(edge * np.exp(np.stack((depth, depth - height_ratio, depth - width_ratio)))).astype(np.int64)
    start = (draws[3:] * (np.array(grid)[:, None] - size + 1)).astype(np.int64)
    return start, size


@lru_cache(maxsize=16)
def _slab_bits(grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each axis the bits of the slab [start, start + size): (n, n, words) uint64, indexed by start and size."""
    tables = []
    for axis, n in enumerate(grid):
        index = np.arange(n)
        start, size = index[:, None, None], index[None, :, None]
        along = (index >= start) & (index < start + size)
        shape = [n, n, 1, 1, 1]
        shape[2 + axis] = n
        bits = np.broadcast_to(along.reshape(shape), (n, n, *grid)).reshape(n, n, -1)
        padding = -bits.shape[-1] % 64
        packed = np.packbits(np.pad(bits, ((0, 0), (0, 0), (0, padding))), axis=-1, bitorder="little")
        tables.append(packed.view(np.uint64))
    return tables[0], tables[1], tables[2]


def _fill_randomly(generator: np.random.Generator, masks: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Mask `missing` more patches in each row, chosen uniformly among those still free; in place."""
    rows = np.flatnonzero(missing > 0)
    if rows.size:
        keys = generator.random((rows.size, masks.shape[1]))
        keys[masks[rows]] = 2.0  # already masked: last in the order
        rank = keys.argsort(axis=1).argsort(axis=1)
        masks[rows] |= rank < missing[rows, None]
    return masks


class MaskSource:
    """The masks of every micro-batch of a run, a function of the seed and the micro-batch number alone.

    Masks are drawn for `batches_at_once` micro-batches together and kept until the next block is asked for, so that a
    micro-batch pays for its share of one large draw.

    In a micro-batch a share of the images is masked. Their ratios are spread over `ratio_range` in equal bins, one
    image a bin, uniform inside it, so that every batch holds light and heavy masks; which image gets which is random.

    Args:
        seed: entropy of all draws; give each rank its own.
        num_images: global crops of a micro-batch (all views).
        masked_share: share of the images that get a mask (rounded down).
        ratio_range: smallest and largest masked share of a grid.
        batches_at_once: micro-batches drawn together.
    """

    def __init__(
        self,
        seed: int | tuple[int, ...],
        num_images: int,
        *,
        masked_share: float = MaskSettings.masked_share,
        ratio_range: tuple[float, float] = MaskSettings.ratio_range,
        batches_at_once: int = 64,
    ):
        self.seed = (seed,) if isinstance(seed, int) else tuple(seed)
        self.num_images = num_images
        self.num_masked = int(num_images * masked_share)
        self.bin_edges = np.linspace(*ratio_range, self.num_masked + 1)
        self.batches_at_once = batches_at_once
        self._drawn: dict[tuple[int, int, int], tuple[int, np.ndarray]] = {}

    def masks(self, micro_batch: int, grid: tuple[int, int, int]) -> np.ndarray:
        """Masks of one micro-batch.

        Args:
            micro_batch: number of the micro-batch in the run, from 0.
            grid: patch grid (d, h, w) of its global crops.

        Returns:
            (num_images, d * h * w) boolean, true = masked, w fastest.
        """
        block, place = divmod(micro_batch, self.batches_at_once)
        if self._drawn.get(grid, (-1,))[0] != block:
            self._drawn[grid] = (block, self._draw(block, grid))
        return self._drawn[grid][1][place]

    def _draw(self, block: int, grid: tuple[int, int, int]) -> np.ndarray:
        """Masks (batches_at_once, num_images, patches) of a block of micro-batches."""
        generator = np.random.default_rng([*self.seed, block, *grid])
        shape = (self.batches_at_once, self.num_masked)
        ratios = self.bin_edges[:-1] + np.diff(self.bin_edges) * generator.random(shape)
        counts = np.zeros((self.batches_at_once, self.num_images), dtype=np.int64)
        counts[:, : self.num_masked] = (ratios * math.prod(grid)).astype(np.int64)
        counts = generator.permuted(counts, axis=1)
        return block_masks(generator, counts.ravel(), grid).reshape(*counts.shape, -1)
