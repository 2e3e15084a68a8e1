"""The release folder: what a model or data folder looks like on the Hub, and nothing else."""

import importlib.metadata
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxelfm_hf.volumes.errors import ReleaseError

# What cards and pages write where they do not know yet where they will lie.
PLACEHOLDER = "THIS_FOLDER_OR_REPOSITORY"
LICENSED_HERE = "apache-2.0"
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".md", ".png", ".py", ".txt", ".yaml")
DATA_SUFFIXES = (".parquet", ".json", ".md", ".png")
# Written beside a model or a data set for the person who made it; they name scans.
PRIVATE_FILES = ("predictions.csv", "failures.csv", "duplicates.csv", "prepare.json")


@dataclass(frozen=True)
class Kind:
    """What a release is.

    Attributes:
        name: In words.
        repo_type: "model" or "dataset".
        auto_class: The Auto class that loads it.
    """

    name: str
    repo_type: str
    auto_class: str | None = None


DATA = Kind("prepared data", "dataset")
ADAPTER = Kind("LoRA adapter", "model", "AutoModel")
MODELS = {  # by the class that config.json names
    "VoxelFMModel": Kind("backbone", "model", "AutoModel"),
    "VoxelFMProbe": Kind("probe", "model", "AutoModel"),
    "VoxelFMForImageClassification": Kind("classifier", "model", "AutoModelForImageClassification"),
    "VoxelFMForReportGeneration": Kind("report generator", "model", "AutoModelForImageTextToText"),
}


def kind_of(folder: Path) -> Kind:
    """What a folder holds.

    Raises:
        ReleaseError: it is no folder, or one of nothing that can be released.
    """
    from voxelfm_hf.data.shards import is_prepared_data

    if not folder.is_dir():
        raise ReleaseError(f"{folder} is not a folder: name the folder of a model, a probe or prepared data")
    if (folder / "config.json").is_file():
        named = (read_json(folder / "config.json").get("architectures") or ["model of no class"])[0]
        if named in MODELS:
            return MODELS[named]
        raise ReleaseError(f"{folder} holds a {named}: only VoxelFM models are released here")
    if (folder / "adapter_config.json").is_file():
        return ADAPTER
    if is_prepared_data(folder):
        return DATA
    raise ReleaseError(
        f"{folder} holds neither a model (config.json) nor prepared data (data/*.parquet): name the folder of one"
    )


def build_release(source: Path, out: Path, *, repo_id: str) -> list[str]:
    """Copies what belongs to a release, adds the code that loads it and the licence, and fills in its name.

    Args:
        source: Folder of a model, probe, adapter or prepared data.
        out: New folder.
        repo_id: "user/name", written into the card.

    Returns:
        Files of the source that were left out.
    """
    kind = kind_of(source)
    suffixes = DATA_SUFFIXES if kind is DATA else MODEL_SUFFIXES
    out.mkdir(parents=True)
    left_out = []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_dir():
            continue
        hidden = any(part.startswith(".") for part in name.parts[:1]) and name.parts[0] != ".eval_results"
        wanted = path.suffix in suffixes or path.name == "LICENSE"
        if hidden or path.is_symlink() or not wanted or path.name in PRIVATE_FILES:
            left_out.append(name.as_posix())
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(path, out / name)
    _forget_origins(out)
    _add_code(out)
    card = out / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8").replace(PLACEHOLDER, repo_id)
        card.unlink()  # it may be a link to the source
        card.write_text(text, encoding="utf-8")
        if not (out / "LICENSE").exists() and f"license: {LICENSED_HERE}" in text.split("\n---", 1)[0]:
            (out / "LICENSE").write_text(license_text(), encoding="utf-8")
    return left_out


def license_text() -> str:
    """The Apache licence as this package carries it."""
    checkout = Path(__file__).parents[2] / "LICENSE"
    if checkout.is_file():
        return checkout.read_text(encoding="utf-8")
    text = importlib.metadata.distribution("voxelfm-hf").read_text("licenses/LICENSE")
    if text is None:
        raise ReleaseError("the installed package has no licence text: install voxelfm-hf again, or add a LICENSE file")
    return text


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ReleaseError when it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise ReleaseError(f"{path} must hold an object, not a {type(value).__name__}")
    return value


def _forget_origins(out: Path) -> None:
    """Takes out where the parts of a model were loaded from: transformers writes these paths into configurations."""
    path = out / "config.json"
    if not path.is_file():
        return
    config = read_json(path)
    kept = _without(config, "_name_or_path")
    if kept != config:
        path.unlink()  # it may be a link to the source
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _without(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, name) for key, item in value.items() if key != name}
    return [_without(item, name) for item in value] if isinstance(value, list) else value


def _add_code(out: Path) -> None:
    """The files that `auto_map` names and what they import, so that the folder loads without this package."""
    from transformers.dynamic_module_utils import get_relative_import_files

    from voxelfm_hf import modeling

    here = Path(str(modeling.__file__)).parent
    named: set[str] = set()
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        if (out / name).is_file():
            classes = read_json(out / name).get("auto_map") or {}
            named |= {str(value).split("--")[-1].split(".")[0] for value in classes.values() if value}
    files = {here / f"{name}.py" for name in named}
    for file in list(files):
        if not file.is_file():
            raise ReleaseError(f"config.json names the code file {file.name}, which this package does not have")
        files |= {Path(found) for found in get_relative_import_files(file)}
    for file in files:
        (out / file.name).unlink(missing_ok=True)
        shutil.copyfile(file, out / file.name)


def _link_or_copy(source: Path, target: Path) -> None:
    """Hard links where the file system can: weights and shards are large, and are only read."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
