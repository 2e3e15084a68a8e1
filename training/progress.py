"""Counts and speed of a run."""

import time

MAX_OVERFLOWS = 30  # in a row; by then the loss scale has fallen by 2 ** 30


class Tally:
    """Counts of a run that survive in its checkpoints.

    Attributes:
        bad_steps: steps skipped because the loss was not finite.
        bad_in_row: of these, the ones since the last good step.
        overflows_in_row: fp16 overflows since the last good step.
        seconds: time spent training, over all starts.
    """

    def __init__(self) -> None:
        self.bad_steps = 0
        self.bad_in_row = 0
        self.overflows_in_row = 0
        self.seconds = 0.0

    def count(self, *, is_bad: bool, is_overflow: bool) -> None:
        """Count a step."""
        self.bad_steps += is_bad
        self.bad_in_row = self.bad_in_row + 1 if is_bad else 0
        self.overflows_in_row = self.overflows_in_row + 1 if is_overflow else 0

    def hopeless_steps(self, max_bad_steps: int) -> int:
        """Steps in a row without a finite loss or gradient, once they are too many; otherwise 0."""
        is_hopeless = self.bad_in_row >= max_bad_steps or self.overflows_in_row >= MAX_OVERFLOWS
        return max(self.bad_in_row, self.overflows_in_row) if is_hopeless else 0

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


class Clock:
    """Time of a step and the share of it spent waiting for data, since the last look."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._waited = self._total = 0.0
        self._steps = 0

    def start_wait(self) -> None:
        self._step_start = time.perf_counter()

    def end_wait(self) -> None:
        self._waited += time.perf_counter() - self._step_start

    def end_step(self) -> float:
        seconds = time.perf_counter() - self._step_start
        self._total += seconds
        self._steps += 1
        return seconds

    def speed(self, volumes_per_step: int) -> dict[str, float]:
        speed = {
            "volumes_per_second": self._steps * volumes_per_step / self._total,
            "data_wait_share": self._waited / self._total,
        }
        self._waited = self._total = 0.0
        self._steps = 0
        return speed
