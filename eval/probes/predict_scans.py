"""A probe over many scans: answers, pictures and label maps in a folder that a rerun completes.

OUT/run.json              the probe and its settings; answers of another one are refused
OUT/predictions.csv       one row a scan or region
OUT/ID/answer.json        what the probe says
OUT/ID/picture.png        the scan under the answer, with the label map, at the point that was found, or at the region
OUT/ID/labels.nii.gz      segmentation: the label map on the scan's own grid
OUT/failures.csv          what could not be answered, and why
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.probes.apply import ProbeReader
from voxelfm_hf.eval.result_files import write_csv
from voxelfm_hf.eval.tasks.answer import Answer
from voxelfm_hf.failures import write_failures
from voxelfm_hf.features import BatchSummary, Task, failure_reason
from voxelfm_hf.features.identity import input_hashes, is_other, other_input
from voxelfm_hf.files import written_file
from voxelfm_hf.pictures import save_picture
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import VoxelFMError


def predict_scans(
    tasks: Sequence[Task],
    reader: ProbeReader,
    out: str | Path | None = None,
    *,
    on_answer: Callable[[Task, str, dict[str, Any]], None] | None = None,
    on_failure: Callable[[str], None] | None = None,
    on_scan: Callable[[Task], None] | None = None,
    assume_hu: bool = False,
    spacing: tuple[float, float, float] | None = None,
) -> BatchSummary:
    """Answers for scans, whole or by regions; one that fails does not stop the others.

    Args:
        tasks: Scans with unique ids (see `scan_list.list_scans`), with the regions to look at.
        reader: The probe.
        out: Folder for answers, pictures, label maps and failures; what it holds already is not made again.
        on_answer: Called with the task, the id and the facts of every answer, old ones too.
        on_failure: Called with the sentence of every failure.
        on_scan: Called after each scan.
        assume_hu, spacing: As in `read_volume`.

    Raises:
        VoxelFMError: `out` holds answers of another probe or other things, or cannot be written.
    """
    folder = None if out is None else Path(out)
    summary = BatchSummary()
    if folder is not None:
        _claim(folder, reader)
    for task in tasks:
        volume: Volume | None = None
        hashes = {} if folder is None else input_hashes(task, assume_hu=assume_hu, spacing=spacing)
        for identifier, region in zip(task.identifiers, task.regions or (None,), strict=True):
            facts = taken = None
            if folder is not None:
                facts, made_of = _stored(folder / identifier)
                taken = hashes[identifier]
                if is_other(made_of, taken):
                    summary.failures[identifier] = other_input(identifier, folder, is_region=region is not None)
                    if on_failure:
                        on_failure(summary.failures[identifier])
                    continue
            if facts is not None:
                summary.present += 1
            else:
                try:
                    if volume is None:
                        volume = read_volume(task.scan.path, assume_hu=assume_hu, spacing=spacing)
                    answer = reader.answer(volume, region=region)
                except Exception as error:
                    reason = failure_reason(task.scan, error)
                    summary.failures[identifier] = reason
                    if on_failure:
                        on_failure(reason)
                    continue
                facts = answer.facts()
                if folder is not None:
                    _write_answer(folder / identifier, volume, answer, taken)
                summary.added += 1
            if on_answer:
                on_answer(task, identifier, facts)
        if on_scan:
            on_scan(task)
    if folder is not None:
        _write_tables(folder, (identifier for task in tasks for identifier in task.identifiers), summary.failures)
    return summary


def _claim(folder: Path, reader: ProbeReader) -> None:
    """Writes run.json, or refuses a folder of another probe."""
    config = reader.probe.config
    digest = hashlib.sha256()
    for name, tensor in sorted(reader.probe.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    facts = {
        "probe_hash": digest.hexdigest(),
        "base_model_hash": config.base_model_hash,
        "task": config.task,
        "processor": config.processor,
    }
    path = folder / "run.json"
    if path.is_file():
        try:
            same = json.loads(path.read_text()) == json.loads(json.dumps(facts))
        except ValueError:
            same = False
        if not same:
            raise VoxelFMError(f"{folder} holds answers of another probe: name a new folder")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise VoxelFMError(f"{folder} exists and holds no answers of a probe: name a new or empty folder")
    with written_file(path) as part:
        part.write_text(json.dumps(facts, indent=1) + "\n")


def _stored(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The facts of an answer that is there already, and the hash of what it was made of."""
    try:
        facts = json.loads((folder / "answer.json").read_text())
    except (OSError, ValueError):
        return None, None
    return facts, facts.pop("input_hash", None)


def _write_answer(folder: Path, volume: Volume, answer: Answer, made_of: str | None) -> None:
    # A picture is passed on without its table: what limits the answer stands in its heading.
    title = "; ".join(part for part in (answer.text(), *answer.notes) if part)
    layers: dict[str, Any] = {"title": title, "region": answer.region}
    if answer.label_map is not None:
        layers.update(labels=answer.label_map, label_names={k: name for k, name in answer.label_names.items() if k})
        with written_file(folder / "labels.nii.gz") as part:
            part.write_bytes(gzip.compress(volume.restore(answer.label_map).to_bytes(), mtime=0))
    place = None if answer.region is None else np.mean(answer.region, axis=0) - 0.5
    if answer.points_lps is not None:
        place = np.linalg.solve(volume.affine, [*answer.points_lps.mean(0), 1.0])[:3]
    if place is not None:
        layers["position"] = np.clip(place, 0, np.array(volume.hu.shape) - 1)
    save_picture(volume, folder / "picture.png", **layers)
    # Last: it says that the others are there.
    with written_file(folder / "answer.json") as part:
        part.write_text(json.dumps({**answer.facts(), "input_hash": made_of}, indent=1) + "\n")


def _write_tables(folder: Path, identifiers: Iterable[str], failures: dict[str, str]) -> None:
    stored = ((name, _stored(folder / name)[0]) for name in identifiers if name not in failures)
    rows = [{"id": name, **_flat(facts)} for name, facts in stored if facts is not None]
    write_csv(folder / "predictions.csv", rows, fields=None if rows else ("id",))
    write_failures(folder, failures)


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts as columns: values by name, then what belongs to them."""
    row = dict(facts.get("values", {}))
    row |= {f"{name}_positive": int(value) for name, value in facts.get("positive", {}).items()}
    for name, (low, high) in facts.get("intervals", {}).items():
        row |= {f"{name}_low": low, f"{name}_high": high}
    for number, point in enumerate(facts.get("points_lps_mm", [])):
        row |= {f"{axis}{number or ''}_lps_mm": value for axis, value in zip("xyz", point, strict=True)}
    return row | {f"voxels_{name}": count for name, count in facts.get("voxels", {}).items()}
