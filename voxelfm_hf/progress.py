"""How long work tells its caller how far it is; bars are the caller's."""

from collections.abc import Callable

# The part of the work, its steps done, and its steps in all; a part begins with 0 done.
Progress = Callable[[str, int, int], None]


def unwatched(part: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


class Counter:
    """Tells how far one part is that reports its steps one by one.

    Args:
        progress: Is told.
        part: Name of the part.
    """

    def __init__(self, progress: Progress, part: str):
        self.progress, self.part, self.done, self.total = progress, part, 0, 0

    def start(self, total: int) -> None:
        """The part begins."""
        self.done, self.total = 0, total
        self.progress(self.part, 0, total)

    def step(self, _: object = None) -> None:
        """One step is done."""
        self.done += 1
        self.progress(self.part, self.done, self.total)
