"""Fetch transformers' own model tests for the installed version: `python fetch_upstream_suite.py OUT`.

The wheel has no tests, the source distribution has the top level of them; what they import beyond that belongs to
other kinds of model and is replaced by empty classes. Then run `VOXELFM_UPSTREAM_TESTS=OUT pytest
tests/modeling/test_upstream_suite.py`.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

# Not named `tests`: that is what half of all projects call their own.
PACKAGE = "transformers_suite"
FILES = ("test_modeling_common.py", "test_configuration_common.py", "test_backbone_common.py")
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    # Options every configuration takes, at values that are not the defaults.
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        '    "return_dict": False,\n'
        '    "output_hidden_states": True,\n'
        '    "output_attentions": True,\n'
        '    "dtype": "float16",\n'
        '    "chunk_size_feed_forward": 3,\n'
        '    "architectures": ["VoxelFMModel"],\n'
        '    "id2label": {0: "first", 1: "second"},\n'
        '    "label2id": {"first": 0, "second": 1},\n'
        '    "problem_type": "regression",\n'
        "}\n"
    ),
}


def download(folder: Path) -> Path:
    """The source distribution of the installed transformers."""
    requirement = f"transformers=={version('transformers')}"
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options, requirement], check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def lay_out(archive: Path, out: Path) -> None:
    """The needed test files of `archive` and the stubs as the package OUT/transformers_suite."""
    package = out / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for name in FILES:
            member = tar.extractfile(f"{archive.name.removesuffix('.tar.gz')}/tests/{name}")
            assert member is not None, f"{archive.name} has no tests/{name}"
            (package / name).write_bytes(member.read())
    (package / "__init__.py").touch()
    for name, text in STUBS.items():
        path = package / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        lay_out(download(Path(folder)), out)


if __name__ == "__main__":
    main()
