"""Recipe files: YAML on disk, dataclasses in code.

A recipe is a dataclass whose fields are numbers, text, lists or further dataclasses (sections). It is read from a path
or from the name of a packaged file, changed by `--section.field value` on the command line, and saved as it was used.
Every mistake is a `RecipeError` of one sentence that names the field.
"""

import dataclasses
import difflib
import importlib.resources
import reprlib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from voxelfm_hf.files import written_file
from voxelfm_hf.volumes.errors import RecipeError, VoxelFMError

Recipe = TypeVar("Recipe")


@dataclasses.dataclass(frozen=True)
class _Word:
    """A value from the command line: as typed, and as YAML reads it."""

    text: str
    value: Any


def load_recipe(
    name: str | Path, recipe_class: type[Recipe], *, package: str = "voxelfm_hf.training", overrides: Sequence[str] = ()
) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name: path of a YAML file, or the name of one packaged in `package` (`base` or `base.yaml`).
        recipe_class: dataclass the file describes; fields left out keep their defaults.
        package: package whose `recipes/` folder holds the named ones.
        overrides: command line words such as `["--optimizer.learning_rate", "1e-4"]`; also `--field=value`.

    Returns:
        The recipe.

    Raises:
        RecipeError: no such file, not YAML, an unknown field, or a value of the wrong type.
    """
    source, text = find_recipe(name, package=package)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{source} is not valid YAML{where}; check its indentation and quotes.") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(f"{source} must hold `field: value` lines, not a {type(values).__name__}.")
    for field, word in _words(overrides).items():
        _set_field(values, field, word)
    return to_recipe(values, recipe_class, source=source)


def to_recipe(values: dict, recipe_class: type[Recipe], *, source: str = "the recipe") -> Recipe:
    """Turn plain values into a recipe, checking every name and type.

    Args:
        values: nested dictionary, as YAML gives it.
        recipe_class: dataclass to make.
        source: where the values come from, for messages.

    Returns:
        The recipe.

    Raises:
        RecipeError: an unknown field, a missing one without a default, or a value of the wrong type.
    """
    return _to_dataclass(values, recipe_class, field="", source=source)


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Read `--section.field value` pairs from command line words.

    Args:
        words: what is left of the command line after the recipe.

    Returns:
        Dotted field name -> value, parsed as YAML.

    Raises:
        RecipeError: a word that is not an option, or an option without a value.
    """
    return {name: word.value for name, word in _words(words).items()}


def _words(words: Sequence[str]) -> dict[str, _Word]:
    """Dotted field name -> word of the command line."""
    overrides: dict[str, _Word] = {}
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("--") or len(word) == 2:
            raise RecipeError(f"{word!r} is not an option; change a field of the recipe with --section.field value.")
        name, equals, text = word[2:].partition("=")
        if not equals:
            position += 1
            if position == len(words):
                raise RecipeError(f"--{name} has no value; write --{name} VALUE.")
            text = words[position]
        try:
            overrides[name.replace("-", "_")] = _Word(text, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise RecipeError(f"--{name} {text!r} cannot be read as a value; quote it as in YAML.") from error
        position += 1
    return overrides


def _shown(value: Any) -> str:
    """A value for a message, shortened: aliases of YAML can make a few lines of it endless."""
    if not isinstance(value, (dict, list)):
        return repr(value)
    shortened = reprlib.Repr()
    shortened.maxlevel = 2
    return shortened.repr(value)


def to_values(recipe: Any) -> dict:
    """The recipe as nested plain values, every field written out."""
    return _plain(dataclasses.asdict(recipe))


def flat_values(recipe: Any) -> dict[str, Any]:
    """The plain values of a recipe under their dotted names, as `--section.field` has them."""
    return _flat(to_values(recipe))


def save_recipe(recipe: Any, path: str | Path) -> None:
    """Write a recipe as YAML, atomically, with every field resolved."""
    with written_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(to_values(recipe), sort_keys=False, allow_unicode=True))


def field_lines(recipe_class: type, *, prefix: str = "") -> list[str]:
    """One line a field, `--section.field TYPE (default)`, for the help of a command."""
    lines = []
    for field, kind in _fields(recipe_class):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            lines += field_lines(kind, prefix=f"{prefix}{field.name}.")
        else:
            default = "required" if _is_required(field) else f"default {_default(field)!r}"
            lines.append(f"--{prefix}{field.name} {_type_name(kind)} ({default})")
    return lines


def find_recipe(name: str | Path, *, package: str = "voxelfm_hf.training") -> tuple[str, str]:
    """Name for messages and text of a recipe file; RecipeError with the names there are when there is none."""
    path = Path(name)
    if path.is_file():
        return str(path), path.read_text()
    folder = importlib.resources.files(package) / "recipes"
    packaged = {file.name: file for file in folder.iterdir() if file.name.endswith(".yaml")}
    wanted = path.name if path.suffix == ".yaml" else f"{path.name}.yaml"
    if str(path.parent) == "." and wanted in packaged:
        return wanted, packaged[wanted].read_text()
    known = ", ".join(sorted(file.removesuffix(".yaml") for file in packaged))
    raise RecipeError(f"There is no recipe {str(name)!r}; give the path of a YAML file or one of: {known}.")


def _set_field(values: dict, field: str, value: Any) -> None:
    """Put a value at a dotted place in nested dictionaries."""
    *sections, last = field.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}  # an empty section of a file is None
        values = values[section]
    values[last] = value


def _to_dataclass(values: Any, kind: type, *, field: str, source: str) -> Any:
    """A dataclass from a dictionary; `field` is its dotted name with a dot behind it, or empty at the top."""
    if not isinstance(values, dict):
        raise RecipeError(f"{source}: {field.rstrip('.')} must be a section of fields, got {_shown(values)}.")
    known = dict(_named_fields(kind))
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known fields: {', '.join(known)}."
            raise RecipeError(f"{source}: there is no field {field}{name}; {hint}")
    made = {}
    for name, (declared, wanted) in known.items():
        if name in values:
            made[name] = _convert(values[name], wanted, field=f"{field}{name}", source=source)
        elif _is_required(declared):
            raise RecipeError(f"{source}: {field}{name} is missing; set it or pass --{field}{name} VALUE.")
    try:
        return kind(**made)
    except (ValueError, VoxelFMError) as error:
        raise RecipeError(f"{source}: {error}") from error


def _convert(value: Any, kind: Any, *, field: str, source: str) -> Any:
    """A value as the declared type, or a RecipeError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, _Word):
        value = _as_typed(value, kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, field=field, source=source, kind=kind)
    if origin is typing.Literal:
        if value is False and "no" in arguments:  # how YAML 1.1 reads the word
            return "no"
        if value in arguments:
            return value
        raise RecipeError(f"{source}: {field} must be one of {', '.join(map(str, arguments))}, got {_shown(value)}.")
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _to_dataclass(value, kind, field=f"{field}.", source=source)
    if origin is list and isinstance(value, list):
        return [
            _convert(item, arguments[0], field=f"{field}[{position}]", source=source)
            for position, item in enumerate(value)
        ]
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            pairs = zip(value, kinds, strict=True)
            return tuple(_convert(item, part, field=field, source=source) for item, part in pairs)
    if origin is dict and isinstance(value, dict):
        return {
            _convert(key, arguments[0], field=field, source=source): _convert(
                item, arguments[1], field=f"{field}.{key}", source=source
            )
            for key, item in value.items()
        }
    converted = _convert_plain(value, kind)
    if converted is None:
        raise RecipeError(f"{source}: {field} must be {_type_name(kind)}, got {_shown(value)}.")
    return converted


def _as_typed(word: _Word, kind: Any) -> Any:
    """What a command line word means for a field: `2024` is text where text is wanted."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    takes_text = any(part is str or typing.get_origin(part) is typing.Literal for part in kinds)
    is_scalar = not isinstance(word.value, list | dict | str)
    if takes_text and is_scalar and not (word.value is None and type(None) in kinds):
        return word.text
    return word.value


def _convert_plain(value: Any, kind: Any) -> Any:
    """A number, text or flag as the declared type; None where it is not one."""
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 as text; a person means a number.
        try:
            return float(value)
        except ValueError:
            return None
    if isinstance(value, bool):
        return value if kind is bool else None
    if kind is float and isinstance(value, int | float):
        return float(value)
    if kind is int and isinstance(value, int):
        return value
    if kind is str and isinstance(value, str):
        return value
    return None


def _convert_union(value: Any, kinds: tuple, *, field: str, source: str, kind: Any) -> Any:
    """The first of several types that takes the value."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(part for part in kinds if part is not type(None))
    # With one real type its own message is the better one.
    if len(kinds) == 1:
        return _convert(value, kinds[0], field=field, source=source)
    for part in kinds:
        try:
            return _convert(value, part, field=field, source=source)
        except RecipeError:
            continue
    raise RecipeError(f"{source}: {field} must be {_type_name(kind)}, got {_shown(value)}.")


def _fields(kind: type) -> list[tuple[dataclasses.Field, Any]]:
    """Fields of a dataclass with their resolved types."""
    hints = typing.get_type_hints(kind)
    return [(field, hints[field.name]) for field in dataclasses.fields(kind) if field.init]


def _named_fields(kind: type) -> list[tuple[str, tuple[dataclasses.Field, Any]]]:
    return [(field.name, (field, wanted)) for field, wanted in _fields(kind)]


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _type_name(kind: Any) -> str:
    """A type in words a user knows."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in arguments)
    if origin is list:
        return f"a list of {_type_name(arguments[0]).removeprefix('a ')}s"
    if origin is tuple:
        return f"a list of {len(arguments)} values"
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is dict:
        return "a mapping"
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML and JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
