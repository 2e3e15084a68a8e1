"""Has pre-training taught a model anything? `python -m voxelfm_hf.eval.learned MODEL --ct CT --out OUT`.

Frozen features of regions, of patients that pre-training has not seen, under a linear probe: the given weights against
the same architecture at random initialisation and against intensity histograms of the same cubes.

- Tasks and their fields of view: `cases`. The probe and its cross-validation by patient: `linear_probe`.
- Readouts: the CLS vector, the mean of the patches, both (the one that counts, for all tasks), and the mean beside the
  central patch. The last is told where the thing to name lies; so is the histogram it is held against.
- Seed s draws the folds, and the weights of the untrained model: its scores are means over initialisations.
- A score is the mean over seeds. Its interval resamples patients, with the predictions of all seeds kept: it covers the
  choice of patients, not another fit on other patients. Differences are paired: both sides under the same draws.

`--curve` scores checkpoints instead, one number a task (2 seeds), and draws them against pre-training steps.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.encoders.untrained import untrained_model
from voxelfm_hf.eval.learned.cases import CaseSet, lesion_cases, nodule_cases, organ_cases
from voxelfm_hf.eval.learned.features import (
    HISTOGRAM,
    READOUT,
    READOUTS,
    histogram_features,
    model_features,
)
from voxelfm_hf.eval.learned.linear_probe import out_of_fold
from voxelfm_hf.eval.metrics.binary import auroc
from voxelfm_hf.eval.metrics.multiclass import balanced_accuracy
from voxelfm_hf.eval.statistics.bootstrap import bootstrap, paired_bootstrap
from voxelfm_hf.hub import load, resolve_model, weight_hash
from voxelfm_hf.read_ahead import cores
from voxelfm_hf.volumes.errors import ModelError

TRAINED, UNTRAINED = "trained", "untrained"
# The tasks that pre-training has to help with; the nodules are reported, win or lose.
DECISIVE = ("organ", "lesion")
# A curve is read for its shape.
CURVE_SEEDS = 2
CURVE_READOUTS = ("CLS", "patch mean", READOUT)


@dataclass(frozen=True)
class Settings:
    """How the comparison is made.

    Attributes:
        phantoms: Synthetic lesions; with fewer than some hundreds a probe on 384 features scores by chance.
        seeds: Draws of folds, and of untrained weights.
        splits: Splits of patients that pre-training has not seen.
        region_size: Edge of a cube in voxels; None takes the model's training crop.
        replicates: Of the bootstrap.
    """

    phantoms: int = 3000
    seeds: int = 5
    splits: tuple[str, ...] = ("val", "test")
    region_size: int | None = None
    replicates: int = 2000


QUICK = Settings(phantoms=300, seeds=2)


def read_cases(ct: Path, out: Path, settings: Settings) -> list[CaseSet]:
    """The three tasks; phantoms are written under `out`."""
    return [
        organ_cases(ct, splits=settings.splits),
        lesion_cases(out / "phantoms", count=settings.phantoms),
        nodule_cases(ct, splits=settings.splits),
    ]


def compare(model: str | Path, ct: Path, out: Path, settings: Settings) -> dict[str, Any]:
    """Scores a model and what it has to beat on all tasks.

    Args:
        model: Model folder or Hub repository.
        ct: Folder with lidc/ and openkbp/.
        out: Holds phantoms and feature stores, so that a second run is quick; delete it to start afresh.
        settings: How to compare.

    Returns:
        `rows` (one an encoder and task), `differences` (paired, trained minus another), `better` (the verdict), and
        what they rest on.
    """
    folder = resolve_model(model)
    network, processor = load(folder)
    region_size = settings.region_size or network.config.image_size
    rows, differences, tasks = [], [], {}
    for cases in read_cases(ct, out, settings):
        encoders = encode(folder, processor, cases, out, settings, region_size=region_size)
        probabilities = {name: probe(features, cases) for name, features in encoders.items()}
        for name, covariates in cases.baselines.items():
            probabilities[name] = probe([covariates] * settings.seeds, cases)
        if "diameter" in cases.baselines:
            for name in (f"{TRAINED} {READOUT}", f"{UNTRAINED} {READOUT}", HISTOGRAM):
                probabilities[f"diameter + {name}"] = probe(
                    encoders[name], cases, covariates=cases.baselines["diameter"]
                )
        rows += [row(cases, name, found, settings) for name, found in probabilities.items()]
        differences += compared(cases, probabilities, settings)
        tasks[cases.name] = {
            "target": cases.target,
            "edge_mm": cases.edge_mm,
            "regions": dict(zip(cases.classes, np.bincount(cases.labels).tolist(), strict=True)),
            "patients": len(np.unique(cases.patients)),
        }
    return {
        "model": Path(model).name if Path(model).is_dir() else str(model),
        "weight_hash": weight_hash(folder),
        "settings": {**asdict(settings), "region_size": region_size},
        "tasks": tasks,
        "rows": rows,
        "differences": differences,
        "better": better(differences),
    }


def probe(features: Sequence[np.ndarray], cases: CaseSet, *, covariates: np.ndarray | None = None) -> np.ndarray:
    """Class probabilities (seeds, n, K) of a linear probe, each for a patient that it was not fitted on."""
    # Small sets are done before other processes have started.
    jobs = cores() if len(cases.labels) >= 500 else 1
    return out_of_fold(features, cases.labels, cases.patients, covariates=covariates, jobs=jobs)


def better(differences: Sequence[dict[str, Any]]) -> dict[str, dict[str, bool]]:
    """For each decisive task and readout, whether both intervals, against the untrained twin and the histogram, are
    above 0.
    """
    low = {(difference["task"], difference["encoder"]): difference["low"] for difference in differences}
    found: dict[str, dict[str, bool]] = {}
    for task in dict.fromkeys(task for task, _ in low if task in DECISIVE):
        found[task] = {
            readout: low[task, f"{TRAINED} {readout} - {UNTRAINED} {readout}"] > 0
            and low[task, f"{TRAINED} {readout} - {histogram}"] > 0
            for readout, histogram in READOUTS.items()
        }
    return found


def encode(
    folder: Path, processor: Any, cases: CaseSet, out: Path, settings: Settings, *, region_size: int
) -> dict[str, list[np.ndarray]]:
    """Features of every encoder by name: one (n, C) array a seed."""
    seeds = range(settings.seeds)
    stores = out / "stores"
    trained = model_features(folder, cases, stores, region_size=region_size)
    fresh = [untrained_model(folder, out / "untrained", seed=seed) for seed in seeds]
    untrained = [model_features(one, cases, stores, region_size=region_size) for one in fresh]
    encoders = {f"{TRAINED} {readout}": [trained[readout]] * settings.seeds for readout in READOUTS}
    encoders |= {f"{UNTRAINED} {readout}": [features[readout] for features in untrained] for readout in READOUTS}
    histograms = histogram_features(cases, processor, region_size=region_size)
    return encoders | {name: [features] * settings.seeds for name, features in histograms.items()}


def mean_over_seeds(labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None) -> np.ndarray:
    """The mean over seeds of the AUROC (two classes) or the balanced accuracy (more).

    Args:
        labels: (n,) classes.
        probabilities: (n, seeds, K).
        weights: (..., n) row counts, or None.
    """
    seeds = range(probabilities.shape[1])
    if probabilities.shape[2] == 2:
        return np.mean([auroc(labels, probabilities[:, s, 1], weights=weights) for s in seeds], axis=0)
    return np.mean([balanced_accuracy(labels, probabilities[:, s], weights=weights) for s in seeds], axis=0)


def row(cases: CaseSet, encoder: str, probabilities: np.ndarray, settings: Settings) -> dict[str, Any]:
    """One line of the results: a score with its interval, and the share of each class called right."""
    by_row = probabilities.swapaxes(0, 1)
    found = bootstrap(mean_over_seeds, cases.labels, by_row, patients=cases.patients, replicates=settings.replicates)
    right = (by_row.argmax(2) == cases.labels[:, None]).mean(1)
    recalls = {name: float(right[cases.labels == label].mean()) for label, name in enumerate(cases.classes)}
    return {**_head(cases, encoder, settings), **_numbers(found), "recall": recalls}


def compared(cases: CaseSet, probabilities: dict[str, np.ndarray], settings: Settings) -> list[dict[str, Any]]:
    """Every readout of the trained model against the same of the untrained one, the histogram that is given as much,
    and the baselines; and what features add to the diameter.
    """
    pairs = [
        (f"{TRAINED} {readout}", theirs)
        for readout, histogram in READOUTS.items()
        for theirs in (f"{UNTRAINED} {readout}", histogram, *cases.baselines)
    ]
    pairs += [(name, "diameter") for name in probabilities if name.startswith("diameter +")]
    found = []
    for ours, theirs in pairs:
        result = paired_bootstrap(
            mean_over_seeds,
            cases.labels,
            probabilities[ours].swapaxes(0, 1),
            probabilities[theirs].swapaxes(0, 1),
            patients=cases.patients,
            replicates=settings.replicates,
        )
        numbers = {"value": result.difference, "low": result.low, "high": result.high, "n": result.n}
        found.append({**_head(cases, f"{ours} - {theirs}", settings), **numbers})
    return found


def curve(models: dict[int, Path], ct: Path, out: Path, settings: Settings) -> dict[str, Any]:
    """One score a task, readout and checkpoint, and those of the untrained model and the histogram.

    Args:
        models: Model folder by pre-training step; all of one architecture.
        ct: Folder with lidc/ and openkbp/.
        out: As in `compare`.
        settings: How to score.
    """
    first = next(iter(models.values()))
    network, processor = load(first)
    region_size = settings.region_size or network.config.image_size
    points: list[dict[str, Any]] = [{"step": step} for step in models]
    references: dict[str, dict[str, float]] = {}
    tasks = {}
    for cases in read_cases(ct, out, settings):
        tasks[cases.name] = {"target": cases.target, "metric": cases.metric}

        def score(features: Sequence[np.ndarray], cases: CaseSet = cases) -> float:
            return float(mean_over_seeds(cases.labels, probe(features, cases).swapaxes(0, 1)))

        encoders = encode(first, processor, cases, out, settings, region_size=region_size)
        references[cases.name] = {
            name: score(encoders[name])
            for name in (*(f"{UNTRAINED} {readout}" for readout in CURVE_READOUTS), HISTOGRAM)
        }
        for point, folder in zip(points, models.values(), strict=True):
            features = model_features(folder, cases, out / "stores", region_size=region_size)
            point[cases.name] = {readout: score([features[readout]] * settings.seeds) for readout in CURVE_READOUTS}
    return {"settings": asdict(settings), "tasks": tasks, "points": points, "references": references}


def curve_models(entries: Sequence[str]) -> dict[int, Path]:
    """Model folders by step, from STEP=FOLDER entries or a folder that holds model folders named like step-00000100."""
    found: dict[int, Path] = {}
    for entry in entries:
        step, separator, folder = entry.partition("=")
        if separator and step.isdigit():
            found[int(step)] = Path(folder)
            continue
        for config in Path(entry).glob("**/config.json"):
            number = re.fullmatch(r"step-?(\d+)", config.parent.name)
            if number:
                found[int(number[1])] = config.parent
    if not found:
        raise ModelError(
            f"{', '.join(entries)} holds no model folder named by its step, such as step-00000100: name checkpoints as "
            "STEP=FOLDER"
        )
    return dict(sorted(found.items()))


def _head(cases: CaseSet, encoder: str, settings: Settings) -> dict[str, Any]:
    return {
        "encoder": encoder,
        "task": cases.name,
        "target": cases.target,
        "metric": cases.metric,
        "seeds": settings.seeds,
    }


def _numbers(estimate: Any) -> dict[str, Any]:
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "n")}
