"""Values that change over a run, one number per optimiser step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from `start` to `peak`, cosine to `end`, then constant.

    The warm-up takes `warmup_steps` steps and excludes the peak; the cosine takes `cosine_steps` steps and includes
    both of its ends (the published curves).

    Args:
        start: value at step 0 when there is a warm-up.
        peak: value at step `warmup_steps`.
        end: value of the last cosine step and after it.
        warmup_steps: length of the warm-up.
        cosine_steps: length of the cosine.
        frozen_steps: at the beginning the value is 0 for this many steps, whatever the curve says (the learning rate
            of the last head layer).
    """

    start: float
    peak: float
    end: float
    warmup_steps: int
    cosine_steps: int
    frozen_steps: int = 0

    def __call__(self, step: int) -> float:
        """Value at a step, counted from 0."""
        if step < self.frozen_steps:
            return 0.0
        if step < self.warmup_steps:
            # The published curve is linspace without its end point.
            return self.start + (self.peak - self.start) * step / self.warmup_steps
        cosine_step = step - self.warmup_steps
        if cosine_step >= self.cosine_steps:
            return self.end
        progress = cosine_step / (self.cosine_steps - 1) if self.cosine_steps > 1 else 1.0
        return self.end + 0.5 * (self.peak - self.end) * (1 + math.cos(math.pi * progress))


def learning_rate(
    *, peak: float, end: float, warmup_steps: int, total_steps: int, start: float = 0.0, frozen_steps: int = 0
) -> Schedule:
    """Warm up linearly, then follow a cosine to the last step; 0 during `frozen_steps`."""
    return Schedule(start, peak, end, warmup_steps, max(0, total_steps - warmup_steps), frozen_steps)


def cosine(*, start: float, end: float, total_steps: int) -> Schedule:
    """A cosine from `start` to `end` over the whole run (weight decay, EMA momentum)."""
    return Schedule(start, start, end, 0, total_steps)


def linear_then_constant(*, start: float, end: float, warmup_steps: int) -> Schedule:
    """A straight line from `start` to `end`, then `end` (teacher temperature)."""
    return Schedule(start, end, end, warmup_steps, 0)
