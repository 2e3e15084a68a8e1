"""What a release is checked for before it goes to the Hub; every finding is one sentence."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import voxelfm_hf
from voxelfm_hf.cards import NO_LICENSE
from voxelfm_hf.hub import ADAPTER_CONFIG, EMBEDDED, resolve_model
from voxelfm_hf.release import clean_load
from voxelfm_hf.release.folder import ADAPTER, DATA, LICENSED_HERE, PLACEHOLDER, Kind, build_release, read_json
from voxelfm_hf.volumes.errors import ReleaseError, VoxelFMError
from voxelfm_hf.volumes.formats import DICOM, ENDINGS, HEADERS, VOXELS

PICKLES = (".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
# Scans, voxels beside a header, archives; what may hold a pickle is refused as that.
SCANS = tuple({*ENDINGS, *DICOM.endings, *HEADERS, *VOXELS, ".raw", ".zraw", ".gz", ".zip"}.difference(PICKLES))
TEXTS = (".csv", ".jinja", ".json", ".md", ".txt", ".yaml")
# Folders of a person's machine; web addresses and names like user/name are none.
LOCAL_PATH = re.compile(
    r"(?<![\w.:/])(?:/(?:home|Users|root|mnt|media|data|scratch|tmp|var|work|workspace|private|nfs|gpfs|lustre)/[^\s\"')`]+"
    r"|[A-Za-z]:\\\\?[^\s\"')`]+)"
)
# DICOM unique identifiers lead back to a study.
UNIQUE_ID = re.compile(r"(?<![\d.])[12]\.\d+(?:\.\d+){6,}(?![\d.])")
IDENTIFYING = re.compile(r"\b(?:patient[ _]?name|birth[ _]?date|date[ _]of[ _]birth|accession[ _]?number|mrn)\b", re.I)
# What a card says, by words of its headings.
SECTIONS = {
    "how to load it": ("use", "how to"),
    "limits": ("limit", "intended"),
    "licence": ("licen",),
}
TEXT_COLUMNS = ("id", "source", "notes")
_NAME_ONE = "write one there, or make it again with --license"


def find_problems(folder: Path, kind: Kind, *, allow_head: bool = False, load: bool = True) -> list[str]:
    """Everything that speaks against uploading a release folder, the quick checks first.

    Args:
        folder: From `build_release`.
        kind: What it is.
        allow_head: Accept prepared scans that cover the head, which can show a face.
        load: Whether to load it, the slow check, if nothing else speaks against it.

    Returns:
        Sentences; none when it may go.
    """
    problems = [*_file_problems(folder), *_card_problems(folder)]
    if kind is DATA:
        problems += [*_data_problems(folder), *([] if allow_head else _head_problems(folder))]
    elif not list(folder.glob("*.safetensors")):
        problems.append("there are no weights (*.safetensors): save the model with save_pretrained")
    if problems or kind is DATA or not load:
        return problems
    try:
        return _load_problems(folder, kind, _bases(folder, kind))
    except VoxelFMError as error:
        return [str(error)]


def find_pickles(source: Path) -> list[str]:
    """Files of a source folder that a release may never hold, whatever else is left out."""
    return [
        f"{path.relative_to(source)} may hold a pickle: releases are safetensors only; remove it"
        for path in sorted(source.rglob("*"))
        if path.is_file()
        and (path.suffix.lower() in PICKLES or path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05"))
    ]


def _file_problems(folder: Path) -> list[str]:
    problems = []
    if not (folder / "LICENSE").is_file():
        problems.append(
            f"there is no LICENSE file: only the text of {LICENSED_HERE} comes with this package, save that of the "
            "licence that the card names as LICENSE in the folder"
        )
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        with open(path, "rb") as file:
            head = file.read(132)
        if path.name.lower().endswith(SCANS) or head[128:132] == b"DICM" or head[:4] == b"PK\x03\x04":
            problems.append(f"{name} is a scan or an archive: a release holds none")
        if path.suffix not in TEXTS:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for pattern, what in (
            (LOCAL_PATH, "a path of your machine"),
            (UNIQUE_ID, "what looks like a DICOM identifier"),
            (IDENTIFYING, "a field that identifies a patient"),
        ):
            found = pattern.search(text)
            if found:
                shown = found.group() if pattern is not UNIQUE_ID else found.group()[:8] + "..."
                problems.append(f"{name} holds {what} ({shown}): take it out")
    return problems


def _card_problems(folder: Path) -> list[str]:
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.is_file():
        return [
            "there is no README.md: a release needs a card (of a probe with its backbone, `voxelfm_hf.save_classifier` "
            "writes it)"
        ]
    try:
        card = ModelCard.load(path)
    except Exception as error:  # YAML errors and the card's own checks have no common class
        return [f"README.md has a header that cannot be read ({str(error).splitlines()[0]})"]
    problems = []
    if not card.data.license:
        problems.append(f"README.md names no license in its header: {_NAME_ONE}")
    elif card.data.license == NO_LICENSE:
        problems.append(f"README.md says license: {NO_LICENSE} in its header, which is no license: {_NAME_ONE}")
    if PLACEHOLDER in card.text:
        problems.append(f"README.md still says {PLACEHOLDER}")
    unfinished = re.search(r"\b(?:TODO|TBD|FIXME|More Information Needed)\b", card.text)
    if unfinished:
        problems.append(f"README.md is unfinished: it says {unfinished.group()}")
    headings = [line for line in card.text.splitlines() if line.startswith("#")]
    for what, words in SECTIONS.items():
        if what == "licence" and card.data.license:
            continue
        if not any(word in heading.lower() for heading in headings for word in words) and what not in card.text.lower():
            problems.append(f"README.md has no section on {what}")
    return problems + [f"README.md has an empty section: {title}" for title in empty_sections(card.text)]


def empty_sections(markdown: str) -> list[str]:
    """Headings with nothing below them before the next heading of the same or a higher level."""
    lines, fenced = [], False
    for line in markdown.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        is_heading = not fenced and re.match(r"#{1,6} ", line)
        lines.append((len(line.split(" ")[0]) if is_heading else 0, line))
    empty = []
    for position, (level, line) in enumerate(lines):
        if not level:
            continue
        following = next((entry for entry in lines[position + 1 :] if entry[0] or entry[1].strip()), None)
        if following is None or 0 < following[0] <= level:
            empty.append(line.lstrip("# "))
    return empty


def _data_problems(folder: Path) -> list[str]:
    import pyarrow.parquet as pq

    problems = []
    for path in sorted(folder.rglob("*.parquet")):
        table = pq.ParquetFile(path)
        named = [name for name in table.schema_arrow.names if IDENTIFYING.search(name)]
        problems += [f"{path.name} has a column {name}, which identifies patients: take it out" for name in named]
        kept = [name for name in TEXT_COLUMNS if name in table.schema_arrow.names]
        for batch in table.iter_batches(columns=kept):
            text = " ".join(str(value) for column in batch.columns for value in column.to_pylist())
            found = LOCAL_PATH.search(text) or UNIQUE_ID.search(text)
            if found:
                problems.append(
                    f"{path.name} holds a path of your machine or a DICOM identifier in {', '.join(kept)}: prepare the "
                    "scans again with ids of your own (a CSV with the columns path and id)"
                )
                break
    return problems


def _head_problems(folder: Path) -> list[str]:
    regions = read_json(folder / "description.json").get("region") or {}
    heads = sum(number for name, number in regions.items() if "head" in name.split("+") or name == "unknown")
    if not heads:
        return []
    return [
        f"{heads} scans cover the head or an unknown region: a head CT can show a face; remove or deface them, or say "
        "--allow-head"
    ]


def _bases(folder: Path, kind: Kind) -> dict[str, Path | str]:
    """The models that a release names and does not hold.

    Raises:
        ReleaseError: one of them lies in a local folder, where nobody else finds it.
    """
    if kind is ADAPTER:
        named = {"base_model_name_or_path": read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")}
        where, remedy = ADAPTER_CONFIG, "push that model first"
    else:
        config = read_json(folder / "config.json")
        if config.get("model_type") != "voxelfm_report" or config.get("merged"):
            return {}
        named = {name: config.get(name) for name in ("base_vision_model", "base_text_model")}
        where, remedy = "config.json", "or write the model whole with `voxelfm report --merge`"
    bases: dict[str, Path | str] = {}
    for field, name in named.items():
        if not name or (name != EMBEDDED and not re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
            raise ReleaseError(
                f"{where} names {name or 'no model'} as {field}, a folder that only you have: name its repository on "
                f"the Hub (user/name) there, {remedy}"
            )
        bases[field] = name if field == "base_text_model" else resolve_model(name)
    return bases


def _load_problems(folder: Path, kind: Kind, bases: Mapping[str, Path | str]) -> list[str]:
    """The folder loads in a clean process, with this package and with its own code only, and both compute the same."""
    from safetensors.numpy import load_file

    outputs = {}
    root = Path(voxelfm_hf.__file__).parents[1]
    with tempfile.TemporaryDirectory() as work:
        named = {}
        for number, (field, base) in enumerate(bases.items()):
            named[field] = str(base)
            if isinstance(base, Path):  # with the code that the package has for it
                named[field] = str(Path(work) / f"base{number}")
                build_release(base, Path(named[field]), repo_id=base.name)
        for package in ("with", "without"):
            out = Path(work) / f"{package}.safetensors"
            script = str(clean_load.__file__)
            words = [script, str(folder), str(kind.auto_class), str(out), package, str(root), json.dumps(named)]
            done = subprocess.run([sys.executable, "-I", *words], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                return [f"it does not load in a process {package} this package: {reason}"]
            outputs[package] = load_file(out)
    return [
        f"with and without this package it computes different {name}"
        for name, value in outputs["with"].items()
        if not np.allclose(value, outputs["without"][name], atol=1e-5)
    ]
