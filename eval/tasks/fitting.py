"""What the tasks share in fitting and applying a probe."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.training.probe import fit_probes, make_probe
from voxelfm_hf.training.probe.data import ProbeFeatures, ProbeJob
from voxelfm_hf.training.probe.settings import DEFAULT_SETTINGS, ProbeSettings
from voxelfm_hf.training.probe.stacks import padded
from voxelfm_hf.volumes.errors import LabelError, ModelError


def probe_config(data: TaskData, *, head: str, names: Sequence[str], **fields: Any) -> VoxelFMProbeConfig:
    """The configuration of a probe on the features of this data.

    Args:
        data: The task data.
        head: Head of the probe.
        names: Names of its outputs.
        **fields: Further fields of `VoxelFMProbeConfig`.
    """
    width = data.features.cls.shape[1] if data.features.cls is not None else data.features.patch_rows([0])[0].shape[-1]
    return VoxelFMProbeConfig(
        task=data.task,
        head=head,
        feature_size=width,
        id2label=dict(enumerate(names)),
        base_model_name_or_path=data.run.get("model"),
        base_model_hash=data.run.get("weight_hash"),
        processor=dict(data.run.get("processor") or {}),
        **fields,
    )


class FitOptions(TypedDict, total=False):
    """Options of every task's `fit`; tasks pass them on to `fit_columns`.

    Attributes:
        head: By default the one that the data were read for.
        head_hidden_size: Hidden width of heads that have one.
        settings: How to fit; by default what suits the head.
        train: Training rows in place of the whole training split.
        seed: Of the fit.
        device: Where to compute.
        on_epoch: Called with the epochs done and the most there can be; a fit may stop early.
    """

    head: str | None
    head_hidden_size: int | None
    settings: ProbeSettings | None
    train: np.ndarray | None
    seed: int
    device: str
    on_epoch: Callable[[int, int], None] | None


def fit_columns(
    data: TaskData,
    *,
    fields: Mapping[str, Any] | None = None,
    head: str | None = None,
    head_hidden_size: int | None = None,
    settings: ProbeSettings | None = None,
    train: np.ndarray | None = None,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Callable[[int, int], None] | None = None,
) -> VoxelFMProbe:
    """Fits one probe for every target side by side and joins them to a model; heads on patches and exclusive classes
    have one fit for all targets.

    Args:
        data: The task data with targets (n, k).
        fields: Further fields of the probe's configuration.
        head, head_hidden_size, settings, train, seed, device, on_epoch: See `FitOptions`.

    Returns:
        The probe with `fit` of its configuration filled in.
    """
    head = head or data.options["head"]
    train = training_rows(data, train)
    validation = data.rows("val")
    features = data.features.standardised(train)
    fields = {**(fields or {}), "head_hidden_size": head_hidden_size}
    whole = probe_config(data, head=head, names=data.names, **fields)
    columns: list
    if data.maps is not None:
        single, columns, titles = whole, [data.maps], ["label maps"]
    elif whole.uses_patches or whole.is_single_label:
        single, columns, titles = whole, [data.targets], ["+".join(data.names)]
    else:
        single = probe_config(data, head=head, names=["target"], **fields)
        columns = [data.column(number) for number in range(len(data.names))]
        titles = list(data.names)
    jobs = []
    for title, column in zip(titles, columns, strict=True):
        known, held = train, validation
        if data.maps is None:
            known, held = train[_labelled(column[train])], validation[_labelled(column[validation])]
        reason = load_task(data.task).why_unfit(known if data.maps is not None else column[known])
        if reason:
            raise LabelError(f"{title}: {reason}")
        jobs.append(ProbeJob(title, column, known, held, seed, data.annotated))
    fits = fit_probes(features, jobs, single, settings=settings, device=device, on_epoch=on_epoch)
    probe = make_probe(whole, fits, features)
    probe.config.fit = {
        **fit_facts(data, train, seed),
        "settings": vars(settings or DEFAULT_SETTINGS[head]).copy(),
        "best_epoch": {fit.name: fit.best_epoch for fit in fits},
        "notes": [*data.notes, *(f"{fit.name}: {note}" for fit in fits for note in fit.notes)],
    }
    return probe


def fit_facts(data: TaskData, train: np.ndarray, seed: int) -> dict[str, Any]:
    """What the configuration of every probe says of its fit: seed, type and extent of the features, rows, patients."""
    extents = data.grids[train] * np.linalg.norm(data.affines[train][:, :3, :3], axis=1)
    return {
        "seed": seed,
        "features_dtype": data.run.get("dtype"),
        "field_of_view_mm": [extents.min(axis=0).round(1).tolist(), extents.max(axis=0).round(1).tolist()],
        "rows": {"train": len(train), "val": len(data.rows("val")), "test": len(data.rows("test"))},
        "patients": {split: data.patients(split) for split in ("train", "val", "test")},
    }


def said_extents(*extents: Sequence[float]) -> str:
    """An extent (z, y, x) in mm in words, or the smallest and the largest of several."""
    texts = dict.fromkeys(" x ".join(f"{round(float(mm), 1):g}" for mm in extent) for extent in extents)
    return f"{' to '.join(texts)} mm (z, y, x)"


def training_rows(data: TaskData, train: np.ndarray | None) -> np.ndarray:
    """The rows to fit on: those named, or the whole training split."""
    return data.rows("train") if train is None else np.asarray(train)


@torch.no_grad()
def probe_outputs(probe: VoxelFMProbe, data: TaskData, rows: np.ndarray, *, device: str = "cpu") -> torch.Tensor:
    """Raw outputs (rows, o) of a probe on some rows; ModelError when the features are of other weights."""
    check_features(probe, data)
    probe.to(device).eval()  # type: ignore[arg-type]
    raw = ProbeFeatures(cls=data.features.cls, patches=data.features.patches)  # the probe standardises by itself
    outputs = []
    for part in torch.as_tensor(rows, dtype=torch.long).split(8 if probe.config.uses_patches else 1024):
        if probe.config.uses_patches:
            patches, mask = padded(raw.patch_rows(part.tolist()))
            mask = None if mask is None else mask.to(device)
            outputs.append(probe(patches=patches.to(device), patch_mask=mask).logits.cpu())
        else:
            outputs.append(probe(cls=raw.cls_rows(part).to(device)).logits.cpu())
    return torch.cat(outputs) if outputs else torch.zeros((0, probe.config.num_outputs))


def check_features(probe: VoxelFMProbe, data: TaskData) -> None:
    """ModelError when a probe was fitted on features of other weights."""
    try:
        probe.check_features(data.run.get("weight_hash"))
    except ValueError as error:
        raise ModelError(str(error)) from None


def too_few(targets: np.ndarray) -> str:
    """Why so few labelled training targets are not enough for any probe; empty if they are enough."""
    return f"{len(targets)} labelled training scans: a probe needs at least two" if len(targets) < 2 else ""


def _labelled(column: np.ndarray) -> np.ndarray:
    return np.isfinite(column.reshape(len(column), -1)).any(axis=1)
