"""What a terminal shows of long work."""

import io
import sys

import pytest
from rich.console import Console

from voxelfm_hf.cli.app import bar_of_parts
from voxelfm_hf.progress import Counter


class Terminal:
    """A console with a clock that the test sets."""

    def __init__(self, *, is_terminal: bool = True):
        self.seconds, self.file = 0.0, io.StringIO()
        self.console = Console(
            file=self.file,
            force_terminal=is_terminal,
            force_interactive=is_terminal,
            width=120,
            color_system=None,
            get_time=lambda: self.seconds,
        )

    def last_line(self) -> str:
        return [line for line in self.file.getvalue().splitlines() if "/" in line][-1]


def show_on(terminal, monkeypatch):
    # `voxelfm_hf.cli.app` read as an attribute is the Typer app.
    monkeypatch.setattr(sys.modules["voxelfm_hf.cli.app"], "errors", terminal.console)


@pytest.fixture
def terminal(monkeypatch):
    shown = Terminal()
    show_on(shown, monkeypatch)
    return shown


def test_rate_and_time_left_are_those_of_the_part_under_way(terminal):
    """The first part takes 100 s for 10 steps, the second makes 50 steps a second of 600."""
    with bar_of_parts("steps/s") as progress:
        first = Counter(progress, "slow: features")
        first.start(10)
        for _ in range(10):
            terminal.seconds += 10
            first.step()
        second = Counter(progress, "fast: features")
        second.start(600)
        for _ in range(100):
            terminal.seconds += 1 / 50
            second.step()
    line = terminal.last_line()
    assert "fast: features" in line and "slow" not in line
    assert "100/600" in line and "50 steps/s" in line and "0:00:10" in line
    assert "0/1 " not in terminal.file.getvalue()


def test_a_fast_rate_is_a_plain_number(terminal):
    with bar_of_parts("steps/s") as progress:
        progress("frozen probe", 0, 400)
        terminal.seconds = 0.2
        progress("frozen probe", 50, 400)
    assert "250 steps/s" in terminal.last_line()


def test_nothing_is_shown_before_the_first_part_or_without_a_terminal(terminal, monkeypatch):
    with bar_of_parts("steps/s"):
        pass
    assert terminal.file.getvalue() == ""
    redirected = Terminal(is_terminal=False)
    show_on(redirected, monkeypatch)
    with bar_of_parts("steps/s") as progress:
        progress("features", 0, 2)
        progress("features", 2, 2)
    assert redirected.file.getvalue() == ""
