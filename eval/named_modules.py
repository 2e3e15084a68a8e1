"""Folders whose files are chosen by name: tasks, data sets, encoders. A new one is a new file there."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from voxelfm_hf.volumes.errors import RecipeError


@dataclass(frozen=True)
class NamedModules:
    """The modules of a package that are one of a kind.

    Attributes:
        package: Its full name.
        kind: What they are, in the singular.
        helpers: Modules there that are something else.
    """

    package: str
    kind: str
    helpers: Sequence[str]

    def names(self) -> list[str]:
        """The names there are."""
        files = Path(str(sys.modules[self.package].__file__)).parent.glob("*.py")
        return sorted(path.stem for path in files if not path.stem.startswith("_") and path.stem not in self.helpers)

    def load(self, name: str) -> ModuleType:
        """The module of a name; RecipeError with the names there are for an unknown one."""
        if name not in self.names():
            raise RecipeError(f"there is no {self.kind} {name}: choose one of {', '.join(self.names())}")
        return importlib.import_module(f"{self.package}.{name}")
