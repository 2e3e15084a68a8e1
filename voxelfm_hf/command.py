"""How every command of the package ends: exit codes, and what a user can fix as one sentence on stderr."""

import functools
from collections.abc import Callable
from typing import ParamSpec

from voxelfm_hf.volumes.errors import VoxelFMError

EXIT_BAD_INPUT = 2
EXIT_PARTLY_FAILED = 3

_Arguments = ParamSpec("_Arguments")


def one_sentence_errors(main: Callable[_Arguments, int | None]) -> Callable[_Arguments, int]:
    """Lets the main function of a command end a `VoxelFMError` without a traceback.

    Args:
        main: Returns an exit code, or nothing when all went well.

    Returns:
        The same function; errors that a user can fix are said and become the exit code 2.
    """

    @functools.wraps(main)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except VoxelFMError as error:
            say_error(error)
            return EXIT_BAD_INPUT

    return run


def say_error(error: VoxelFMError) -> None:
    """Prints the sentence of an error on stderr, after the name of the package."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble(("voxelfm:", "bold red"), f" {error}"), soft_wrap=True)
