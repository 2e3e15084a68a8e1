"""The documentation says what the repository does: numbers come from kept results, commands and options exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from voxelfm_hf.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/results.md",
    "training/recipes/README.md",
    "voxelfm_hf/assets/tiny/README.md",
)
CODE = re.compile(r"```\w*\n(.*?)```|`([^`\n]+)`", re.DOTALL)
COMMANDS = typer.main.get_command(app).commands


def _commands(text: str) -> list[list[str]]:
    """Words of every shell command in the code of a page, comments and continuations gone."""
    found = []
    for block, inline in CODE.findall(text):
        for line in (block or inline).splitlines():
            for command in line.split("  #")[0].split("&&"):
                words = shlex.split(command, posix=False) if command.count("'") % 2 == 0 else command.split()
                if words and words[0] in ("voxelfm", "python", "accelerate", ".venv/bin/voxelfm"):
                    found.append(words)
    return found


def _check(words: list[str]) -> None:
    if "-m" in words:
        module = words[words.index("-m") + 1]
        if module.startswith("voxelfm_hf"):
            assert importlib.util.find_spec(module), f"{' '.join(words)}: no module {module}"
        return
    if not words[0].endswith("voxelfm") or len(words) < 2 or words[1].startswith(("-", "…")):
        return
    command = COMMANDS.get(words[1])
    assert command, f"{' '.join(words)}: no such command"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words[2:]:
        if word.startswith("-"):
            assert word.split("=")[0] in known | {"--help"}, f"{' '.join(words)}: no option {word}"


def test_numbers_on_the_pages_are_those_that_were_kept() -> None:
    if not (ROOT / "docs" / "make_tables.py").is_file():
        pytest.skip("an installed package has no docs/")
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    make_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_tables)
    for page, text in make_tables.pages().items():
        assert page.read_text("utf-8") == text, f"{page.name} was edited by hand: run python docs/make_tables.py"


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_the_pages_exist(page) -> None:
    commands = _commands((ROOT / page).read_text("utf-8"))
    assert commands
    for words in commands:
        _check(words)


def test_examples_in_the_help_exist_and_every_command_has_one() -> None:
    for name, command in COMMANDS.items():
        examples = re.findall(r"^\s*(?:Examples?:)?\s*(voxelfm .+)$", command.help, re.MULTILINE)
        assert any(example.startswith(f"voxelfm {name}") for example in examples), f"{name} has no example"
        for example in examples:
            _check(example.split())


def test_arguments_are_named_in_capitals() -> None:
    shown = [CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "120"}).output for name in COMMANDS]
    usages = [next(line for line in text.splitlines() if "Usage: " in line) for text in shown]
    named = re.findall(r"[{\[]+(\S+?)[}\]]", " ".join(usages).replace("[OPTIONS]", ""))
    assert len(named) > 12 and all(name.replace("_", "").isalpha() and name.isupper() for name in named), named


def test_a_wrong_command_is_found() -> None:
    for wrong in ("voxelfm embedd scans", "voxelfm embed scans --outt x", "python -m voxelfm_hf.eval.speeed"):
        with pytest.raises(AssertionError):
            _check(wrong.split())
