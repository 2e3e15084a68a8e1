"""How every command of the package ends: exit codes, and what a user can fix as one sentence on stderr."""

import argparse
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, ParamSpec

from voxelfm_hf.volumes.errors import VoxelFMError

if TYPE_CHECKING:
    from typer import Typer

EXIT_BAD_INPUT = 2
EXIT_PARTLY_FAILED = 3
EXIT_STOPPED = 130  # by Ctrl-C, as shells have it

_Arguments = ParamSpec("_Arguments")


def one_sentence_errors(main: Callable[_Arguments, int | None]) -> Callable[_Arguments, int]:
    """Lets the main function of a command end a `VoxelFMError` without a traceback.

    Args:
        main: Returns an exit code, or nothing when all went well.

    Returns:
        The same function; errors that a user can fix are said and become the exit code 2, Ctrl-C becomes 130.
    """

    @functools.wraps(main)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except VoxelFMError as error:
            say_error(error)
            return EXIT_BAD_INPUT
        except KeyboardInterrupt:
            say_error(VoxelFMError("stopped; run the command again to finish it"))
            return EXIT_STOPPED

    return run


def typer_main(app: "Typer", name: str) -> Callable[[], int]:
    """The main function of a typer app, called as `name`, which says wrong options as `one_sentence_errors` does."""
    import typer

    @one_sentence_errors
    def main() -> int | None:
        try:
            code: int | None = app(prog_name=name, standalone_mode=False)
            if code == EXIT_STOPPED:
                raise KeyboardInterrupt
            return code
        except typer.TyperException as error:
            if isinstance(error, typer.BadParameter) and error.param is None:  # a sentence of our own
                raise VoxelFMError(error.message) from None
            sentence = error.format_message().rstrip(".")
            if not sentence:  # no arguments at all: the help has been printed
                return EXIT_BAD_INPUT
            context = getattr(error, "ctx", None)
            command = context.command_path if context else name
            raise VoxelFMError(f"{sentence}; see {command} --help") from None

    return main


class ModuleParser(argparse.ArgumentParser):
    """The command line of a module that `python -m` runs under `one_sentence_errors`.

    Args:
        module: Its name.
        description: Of the help, as it is written; usually the module's docstring.
        epilog: What the help ends with.
    """

    def __init__(self, module: str, description: str | None, epilog: str | None = None):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Ends with the sentence, without the usage."""
        raise VoxelFMError(f"{message}; see {self.prog} --help")


def say_error(error: VoxelFMError) -> None:
    """Prints the sentence of an error on stderr, after the name of the package."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble(("voxelfm:", "bold red"), f" {error}"), soft_wrap=True)
