"""Imports run one way: command, page and examples, then eval, training, the library, volumes; modeling stands alone."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FACES = {"cli", "space", "examples", "pipelines", "demo"}
# Registration with transformers names the pipelines it registers.
REGISTRATION = "voxelfm_hf.auto"
LEVELS = {"modeling": 0, "volumes": 0, "training": 2, "eval": 3, **dict.fromkeys(FACES, 4)}
LIBRARY = 1
# transformers' own configurations take `strict` from huggingface_hub.
REMOTE_CODE = {"torch", "transformers", "huggingface_hub", "numpy", *sys.stdlib_module_names}


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("voxelfm_hf", "modeling", "training", "eval"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            full = name if name.startswith("voxelfm_hf") else f"voxelfm_hf.{name}"
            yield full, ast.parse(path.read_text("utf-8"))


def _imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a file imports anywhere, inside functions too; relative ones are left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _level(module: str) -> int:
    return LEVELS.get(module.split(".")[1], LIBRARY)


MODULES = dict(_modules())


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"voxelfm_hf", REGISTRATION}))
def test_nothing_imports_upward(module) -> None:
    for imported in _imports(MODULES[module]):
        if imported.startswith("voxelfm_hf.") and not imported.startswith("voxelfm_hf.__version__"):
            assert _level(imported) <= _level(module), f"{module} imports {imported}"


def test_what_travels_with_the_weights_needs_nothing_else() -> None:
    found = {name: set(_imports(tree)) for name, tree in MODULES.items() if name.startswith("voxelfm_hf.modeling")}
    assert found
    for name, imported in found.items():
        foreign = {module.split(".")[0] for module in imported} - REMOTE_CODE
        assert not foreign, f"{name} imports {foreign}"


def test_readers_do_without_torch() -> None:
    for name, tree in MODULES.items():
        if name.startswith("voxelfm_hf.volumes"):
            assert not {module.split(".")[0] for module in _imports(tree)} & {"torch", "transformers"}, name
