"""Options that commands share are declared once."""

import inspect
from typing import Annotated

import pytest
import typer

from voxelfm_hf.cli.shared_options import with_options

Edge = Annotated[int, typer.Option(help="Edge in voxels.")]


def first(edge: Edge = 1):
    return edge


def same(edge: Edge = 1, depth: int = 2):
    return edge + depth


def other_default(edge: Edge = 2):
    return edge


def other_help(edge: Annotated[int, typer.Option(help="Edge in mm.")] = 1):
    return edge


def test_one_option_is_given_to_all_that_declare_it():
    @with_options(one=first, two=same)
    def command(*, one: int, two: int):
        assert (one, two) == (5, 7)

    assert list(inspect.signature(command).parameters) == ["edge", "depth"]
    command(edge=5, depth=2)


@pytest.mark.parametrize("second", [other_default, other_help])
def test_functions_that_declare_one_option_differently_are_refused(second):
    def command(*, one: int, two: int):
        pass

    with pytest.raises(TypeError, match="two functions declare edge differently"):
        with_options(one=first, two=second)(command)


def test_the_command_has_the_last_word():
    @with_options(one=first, two=other_default)
    def command(*, one: int, two: int, edge: int = 9):
        assert one == two == edge

    assert inspect.signature(command).parameters["edge"].default == 9
    command(edge=9)
