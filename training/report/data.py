"""Pairs of a scan's features and its report, read on demand in a seeded order that a resumed run goes on with."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxelfm_hf.column_names import split_name
from voxelfm_hf.data.reports import read_reports, read_rows
from voxelfm_hf.data.reports.reduction import report_target
from voxelfm_hf.modeling.processing_voxelfm_report import IGNORED, ReportInputError, VoxelFMReportProcessor
from voxelfm_hf.modeling.resampler_voxelfm_report import pad_tokens, scan_tokens
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.report.recipe import ReportDataSettings
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import LabelError, StoreError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportPair:
    """A scan and what is to be said about it.

    Attributes:
        scan: Id in the store, or path.
        text: The target.
    """

    scan: str
    text: str


@dataclass(frozen=True)
class PairSet:
    """Pairs to train on, and how many rows were left out for which reason."""

    pairs: list[ReportPair]
    left_out: dict[str, int]


def read_pairs(settings: ReportDataSettings, scans: Sequence[str] | None = None) -> PairSet:
    """The pairs of the rows to train on.

    Args:
        settings: Where they are.
        scans: Ids of the store; without them a row's id is a path in `settings.scans`.

    Raises:
        LabelError: the table cannot be read, or no row is left.
    """
    by_name = None if scans is None else scans_by_name(scans)
    reports = read_reports(settings.reports, columns=settings.column, id_column=settings.id_column)
    pairs, left_out = [], dict.fromkeys(("of another split", "without a report", "without features"), 0)
    for report, row in zip(reports, read_rows(settings.reports), strict=True):
        if settings.split_column in row and split_name(row[settings.split_column]) != split_name(settings.split):
            left_out["of another split"] += 1
        elif report.is_empty:
            left_out["without a report"] += 1
        else:
            scan = report.id if by_name is None else by_name.get(report.id, by_name.get(Path(report.id).name))
            if scan is None:
                left_out["without features"] += 1
                continue
            pairs.append(ReportPair(scan, report_target(report) if settings.reduce else report.text))
    left_out = {reason: count for reason, count in left_out.items() if count}
    if not pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise LabelError(
            f"{Path(settings.reports).name} holds no report to train on ({reasons}): check data.id_column "
            "and data.split"
        )
    return PairSet(list(islice(pairs, settings.limit)), left_out)


def encodable(
    pairs: Sequence[ReportPair], processor: VoxelFMReportProcessor
) -> tuple[list[ReportPair], list[tuple[list[int], list[int]]], int]:
    """Pairs that fit into `max_length`, their input ids and labels, and the number of those that do not.

    Raises:
        LabelError: none fits.
    """
    prompt = processor.prompt()
    kept, encoded, sentence = [], [], ""
    for pair in pairs:
        try:
            encoded.append(processor.encode_pair(prompt, pair.text))
            kept.append(pair)
        except ReportInputError as error:
            sentence = str(error)
    if not kept:
        raise LabelError(f"none of the {len(pairs)} reports can be learned: {sentence}")
    return kept, encoded, len(pairs) - len(kept)


def shuffled_between_scans(pairs: Sequence[ReportPair], *, seed: int) -> list[ReportPair]:
    """The pairs with every report at another scan: a random cycle through all of them."""
    order = np.random.default_rng([seed, 7]).permutation(len(pairs))
    moved = list(pairs)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        moved[here] = ReportPair(pairs[there].scan, pairs[here].text)
    return moved


def store_tokens(store: FeatureStore, feature_tokens: str, *, positions: bool = False) -> Callable[[str], torch.Tensor]:
    """A function from a store id to the tokens (T, C) that the resampler reads, with `positions` (T, C + 3).

    Raises:
        StoreError: patches are wanted and the store has none.
    """
    if feature_tokens != "cls" and not store.run.get("patches"):
        raise StoreError(f"{store.folder} holds no patch features, which the resampler reads: embed with --patches")
    rows = {identifier: row for row, identifier in enumerate(store.ids)}

    def tokens(identifier: str) -> torch.Tensor:
        cls = torch.from_numpy(store.cls[rows[identifier]].copy())
        if feature_tokens == "cls":
            return scan_tokens(cls, None, feature_tokens=feature_tokens, grid=(1, 1, 1) if positions else None)
        patches = torch.from_numpy(store.patches(identifier)).float()
        grid = tuple(patches.shape[:3]) if positions else None
        return scan_tokens(cls, patches.flatten(0, 2), feature_tokens=feature_tokens, grid=grid)

    return tokens


def scan_volumes(folder: str, processor: VoxelFMReportProcessor) -> Callable[[str], torch.Tensor]:
    """A function from a path in a folder to the prepared volume (1, D, H, W)."""
    return lambda name: processor.image_processor(read_volume(Path(folder) / name))["pixel_values"][0]


class ReportBatches(torch.utils.data.Dataset):
    """One process's micro-batches by number: passes over the pairs, one after the other, each in an order of its own.

    Args:
        pairs: Of the run.
        encoded: Input ids and labels of each.
        read: From a scan's name to its tokens (T, C), or with `volumes` to its volume.
        batch_size: Pairs of a micro-batch.
        accumulation: Micro-batches of an optimiser step.
        rank, processes: This process.
        steps: Optimiser steps of the run.
        seed: Of the order.
        volumes: Whether `read` gives volumes.
    """

    def __init__(
        self,
        pairs: Sequence[ReportPair],
        encoded: Sequence[tuple[list[int], list[int]]],
        read: Callable[[str], torch.Tensor],
        *,
        batch_size: int,
        accumulation: int,
        steps: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        volumes: bool = False,
    ):
        self.pairs, self.encoded, self.read, self.volumes = pairs, encoded, read, volumes
        self.batch_size, self.accumulation = batch_size, accumulation
        self.rank, self.processes, self.steps, self.seed = rank, processes, steps, seed

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def rows(self, number: int) -> np.ndarray:
        """The pairs of a micro-batch; those of one step are sorted by length, so that little is padded."""
        step, part = divmod(number, self.accumulation)
        total = self.batch_size * self.accumulation * self.processes
        places = np.arange(step * total, (step + 1) * total)
        epochs, inside = np.divmod(places, len(self.pairs))
        orders = {epoch: self._order(epoch) for epoch in np.unique(epochs).tolist()}
        chosen = np.array([orders[epoch][place] for epoch, place in zip(epochs.tolist(), inside, strict=True)])
        lengths = [len(self.encoded[row][0]) for row in chosen]
        chosen = chosen[np.argsort(lengths, kind="stable")]
        start = (part * self.processes + self.rank) * self.batch_size
        return chosen[start : start + self.batch_size]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs))

    def __getitem__(self, number: int) -> dict[str, Any]:
        rows = self.rows(number)
        batch = collate([self.encoded[row] for row in rows])
        scans = [self.read(self.pairs[row].scan) for row in rows]
        if self.volumes:
            return {**batch, "pixel_values": scans}
        features, mask = pad_tokens(scans)
        return {**batch, "vision_features": features, **({} if mask is None else {"vision_mask": mask})}


def collate(encoded: Sequence[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Input ids, labels and attention mask (B, L), padded on the right, and how many logits the loss needs."""
    longest = max(len(ids) for ids, _ in encoded)
    first = min(next(i for i, label in enumerate(labels) if label != IGNORED) for _, labels in encoded)
    return {
        "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in encoded]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in encoded]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in encoded]),
        # The logits at a position predict the token after it.
        "logits_to_keep": longest - first + 1,
    }


def scans_by_name(scans: Sequence[str]) -> dict[str, str]:
    """Store ids by themselves, and by their last part (with and without the file's ending) where that is unique."""
    names: dict[str, list[str]] = {}
    for scan in scans:
        last = Path(scan).name
        for name in {last, last.split(".")[0]}:
            names.setdefault(name, []).append(scan)
    return {**{name: found[0] for name, found in names.items() if len(found) == 1}, **{scan: scan for scan in scans}}
