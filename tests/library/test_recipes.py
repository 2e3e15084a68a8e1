"""Recipes: files and dataclasses say the same, and every mistake is one sentence that names the field."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from voxelfm_hf.recipes import field_lines, load_recipe, parse_overrides, save_recipe, to_recipe, to_values
from voxelfm_hf.volumes.errors import RecipeError


@dataclass(frozen=True)
class Optimiser:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    kind: Literal["adamw", "sgd"] = "adamw"


@dataclass(frozen=True)
class Source:
    path: str
    weight: float = 1.0


@dataclass(frozen=True)
class Example:
    steps: int
    size: int | list[int] = 8
    name: str | None = None
    fast: bool = False
    precision: Literal["no", "bf16"] = "bf16"
    optimiser: Optimiser = field(default_factory=Optimiser)
    sources: list[Source] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_file_becomes_the_dataclass_and_back(tmp_path: Path):
    path = write(
        tmp_path,
        "steps: 5\nsize: [4, 8]\noptimiser:\n  learning_rate: 1e-4\n  betas: [0.5, 1]\n"
        "sources:\n- path: a\n- {path: b, weight: 2}\n",
    )
    recipe = load_recipe(path, Example)
    expected = Example(
        steps=5, size=[4, 8], optimiser=Optimiser(1e-4, (0.5, 1.0)), sources=[Source("a"), Source("b", 2.0)]
    )
    assert recipe == expected
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml", Example) == recipe
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text()) == to_values(recipe)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["recipe.yaml", "saved.yaml"]


def test_overrides_reach_into_sections(tmp_path: Path):
    path = write(tmp_path, "steps: 5\n")
    words = [
        "--optimiser.learning_rate",
        "3e-4",
        "--size=[1, 2]",
        "--name",
        "x",
        "--columns.hu",
        "volume",
        "--fast=true",
    ]
    recipe = load_recipe(path, Example, overrides=words)
    assert recipe == Example(
        5, size=[1, 2], name="x", fast=True, optimiser=Optimiser(learning_rate=3e-4), columns={"hu": "volume"}
    )


def test_words_are_read_as_the_field_wants_them(tmp_path: Path):
    path = write(tmp_path, "steps: 5\n")
    assert load_recipe(path, Example, overrides=["--name", "2024"]).name == "2024"
    assert load_recipe(path, Example, overrides=["--name", "no"]).name == "no"
    assert load_recipe(path, Example, overrides=["--name", "null"]).name is None
    assert load_recipe(path, Example, overrides=["--precision", "no"]).precision == "no"
    assert load_recipe(write(tmp_path, "steps: 5\nprecision: no\n"), Example).precision == "no"


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("steps: 5\nsise: 3\n", [], "no field sise; did you mean size"),
        ("steps: 5\noptimiser: {learning_rat: 1}\n", [], "optimiser.learning_rat; did you mean learning_rate"),
        ("steps: many\n", [], "steps must be a whole number, got 'many'"),
        ("steps: 1.5\n", [], "steps must be a whole number, got 1.5"),
        ("steps: true\n", [], "steps must be a whole number, got True"),
        ("steps: 5\nfast: 1\n", [], "fast must be true or false, got 1"),
        ("steps: 5\nsize: x\n", [], "size must be a whole number or a list of whole numbers, got 'x'"),
        ("steps: 5\noptimiser: 3\n", [], "optimiser must be a section"),
        ("steps: 5\noptimiser: {kind: adam}\n", [], "optimiser.kind must be one of adamw, sgd"),
        ("steps: 5\noptimiser: {betas: [1, 2, 3]}\n", [], "optimiser.betas must be a list of 2 values"),
        ("steps: 5\nsources: [{weight: 2}]\n", [], r"sources\[0\].path is missing"),
        ("steps: 5\nsources: [{path: 3}]\n", [], r"sources\[0\].path must be text"),
        ("{}", [], "steps is missing"),
        ("steps: 0\n", [], "steps must be at least 1, got 0"),
        ("- 1\n", [], "must hold"),
        ("a: [1\n", [], "not valid YAML"),
        ("steps: 5\n", ["--size"], "--size has no value"),
        ("steps: 5\n", ["size", "3"], "'size' is not an option"),
        ("steps: 5\n", ["--optimiser.rate", "3"], "no field optimiser.rate"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, text, words, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(tmp_path, text), Example, overrides=words)
    assert "\n" not in str(caught.value)


def test_hostile_yaml_is_refused_and_runs_nothing(tmp_path: Path):
    owned = tmp_path / "owned"
    call = f"!!python/object/apply:os.system ['touch {owned}']"
    with pytest.raises(RecipeError, match="not valid YAML at line 1"):
        load_recipe(write(tmp_path, f"steps: {call}\n"), Example)
    with pytest.raises(RecipeError, match="cannot be read as a value"):
        load_recipe(write(tmp_path, "steps: 5\n"), Example, overrides=["--size", call])
    assert not owned.exists()
    # Aliases that would be 9^12 words written out, and one that holds itself.
    levels = ["&a0 [lol]"] + [f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 13)]
    for text in (f"steps: [{', '.join(levels)}]\n", "steps: &a [*a]\n"):
        with pytest.raises(RecipeError, match="steps must be a whole number, got ") as caught:
            load_recipe(write(tmp_path, text), Example)
        assert len(str(caught.value)) < 5000


def test_a_missing_recipe_names_the_packaged_ones():
    with pytest.raises(RecipeError, match="no recipe 'nowhere'; give the path of a YAML file or one of"):
        load_recipe("nowhere", Example)


def test_helpers_for_commands():
    assert parse_overrides(["--a-b.c", "null"]) == {"a_b.c": None}
    lines = field_lines(Example)
    assert "--steps a whole number (required)" in lines
    assert "--optimiser.learning_rate a number (default 0.001)" in lines
    assert to_recipe({"steps": 2}, Example) == Example(2)
