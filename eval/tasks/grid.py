"""Many small fits at once: every target x training share x seed of a task on CLS features, for benchmark curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from voxelfm_hf.eval.splits import training_subset
from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.eval.tasks.fitting import probe_config
from voxelfm_hf.training.probe import fit_probes, probe_logits
from voxelfm_hf.training.probe.data import ProbeJob
from voxelfm_hf.training.probe.settings import ProbeSettings

# Heads of which many fits run side by side.
HEADS = ("linear", "mlp")


@dataclass(frozen=True, eq=False)
class GridFit:
    """One fit of a grid and its answers on the test rows that have a label.

    Args:
        target: Name of the target.
        fraction: Share of the training patients.
        seed: Of the subset and the fit.
        train_rows: Labelled training rows it saw.
        rows: Test rows.
        predictions: (rows,) calibrated probabilities, values in the unit of the target, or log risks.
        threshold: For classification, chosen on the validation rows.
        note: Why there is no fit; predictions are then NaN.
    """

    target: str
    fraction: float
    seed: int
    train_rows: int
    rows: np.ndarray
    predictions: np.ndarray
    threshold: float | None = None
    note: str = ""


def has_grid(module: ModuleType) -> bool:
    """Whether a task's fits can run side by side: outputs that are fitted each by itself."""
    return hasattr(module, "settle")


def fit_grid(
    data: TaskData,
    *,
    head: str = "linear",
    head_hidden_size: int | None = None,
    fractions: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    settings: ProbeSettings | None = None,
    device: str = "cpu",
) -> list[GridFit]:
    """Fits the whole grid side by side and predicts the test rows.

    Features are standardised by the whole training split for all fits; targets by the rows of each fit.

    Args:
        data: Findings, regression or survival data, read for CLS vectors.
        head: linear or mlp.
        head_hidden_size: Hidden width of the mlp.
        fractions: Shares of the training patients; the subsets of one seed grow into each other.
        seeds: Seeds of subsets and fits.
        settings: How to fit.
        device: Where to compute.

    Returns:
        One entry for each target, fraction and seed, targets fastest.
    """
    module = load_task(data.task)
    if not has_grid(module) or data.options.get("exclusive"):
        raise ValueError(
            f"fits of {data.task} do not run side by side here: their outputs are not fitted each by itself"
        )
    train, validation, test = (data.rows(split) for split in ("train", "val", "test"))
    features = data.features.standardised(train)
    config = probe_config(data, head=head, names=["target"], head_hidden_size=head_hidden_size)
    jobs, cells = [], []
    for seed in seeds:
        for fraction in fractions:
            subset = training_subset(train, data.groups, fraction=fraction, seed=seed)
            for number, name in enumerate(data.names):
                column = data.column(number)
                labelled = np.isfinite(column).all(axis=1)
                rows = subset[labelled[subset]]
                note = module.why_unfit(column[rows])
                if not note:
                    held = validation[labelled[validation]]
                    jobs.append(ProbeJob(f"{name}/{fraction:g}/{seed}", column, rows, held, seed))
                cells.append((name, fraction, seed, column, rows, test[labelled[test]], note))
    fits = fit_probes(features, jobs, config, settings=settings, device=device)
    wanted = np.concatenate([validation, test])
    outputs = iter(probe_logits(features, fits, config, wanted, device=device) if fits else ())
    place = np.full(len(data.ids), -1)
    place[wanted] = np.arange(len(wanted))
    fitted = iter(fits)
    grid = []
    for name, fraction, seed, column, rows, tested, note in cells:
        if note:
            grid.append(GridFit(name, fraction, seed, len(rows), tested, np.full(len(tested), np.nan), None, note))
            continue
        fit, logits = next(fitted), next(outputs)[:, 0].astype(float)
        held = validation[np.isfinite(column[validation]).all(axis=1)]
        values, threshold = module.settle(fit, logits[place[tested]], logits[place[held]], column[held, 0])
        grid.append(GridFit(name, fraction, seed, len(rows), tested, values, threshold))
    return grid
