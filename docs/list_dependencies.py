"""Dependencies and their licences: `python docs/list_dependencies.py` writes docs/dependencies.md from what is there.

Run it where every extra is installed; a package that is not there keeps an empty licence.
"""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from voxelfm_hf.markdown import table

DOCS = Path(__file__).parent
NAME = re.compile(r"[A-Za-z0-9._-]+")


def licence(package: str) -> str:
    """What the package says of its licence: an SPDX expression, else its classifiers, else the first line of a text."""
    try:
        about = metadata(package)
    except PackageNotFoundError:
        return ""
    classifiers = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License")]
    said = (about.get("License") or "").strip().splitlines()
    return about.get("License-Expression") or ", ".join(classifiers) or (said[0] if said else "")


def main() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    rows = [
        (name, group, requirement.removeprefix(name), licence(name))
        for group, requirements in groups.items()
        for requirement in requirements
        if (name := NAME.match(requirement).group()) != project["name"]
    ]
    lines = [
        "# Dependencies",
        "",
        "Written by `python docs/list_dependencies.py`; licences as the packages state them.",
        "",
    ]
    (DOCS / "dependencies.md").write_text(
        "\n".join([*lines, *table(("package", "for", "version", "licence"), rows), ""]), "utf-8"
    )


if __name__ == "__main__":
    main()
