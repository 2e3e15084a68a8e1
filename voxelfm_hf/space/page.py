"""What the page knows and does, without its looks: the models, loaded once, and the answers about a scan."""

import html
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxelfm_hf.hub import EMBEDDED, load, resolve_model, weight_hash
from voxelfm_hf.space.limits import MAX_HELD_BYTES, REPORT_SECONDS, Limits
from voxelfm_hf.space.scan import PageScan
from voxelfm_hf.space.uploads import read_upload
from voxelfm_hf.volumes.errors import VoxelFMError

logger = logging.getLogger(__name__)

HEAD = "It seems to cover the head, which can show a face: show it only to those who may see it."


class Page:
    """What the page needs, loaded once.

    Args:
        model: Folder, Hub id or "tiny".
        store: Feature store to search for similar scans.
        probe: Folder or Hub id of a probe.
        report: Folder or Hub id of a report generator.
        limits: What an upload may take.

    Raises:
        VoxelFMError: one of them cannot be loaded, or does not belong to the others.
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        store: str | Path | None = None,
        probe: str | None = None,
        report: str | None = None,
        *,
        limits: Limits | None = None,
    ):
        from voxelfm_hf.store import FeatureStore

        self.model, self.processor = load(model)
        self.limits = limits or Limits()
        self.held: weakref.WeakSet[PageScan] = weakref.WeakSet()
        self.index = self.reader = self.writer = None
        if store is not None:
            from voxelfm_hf.eval.search.index import ScanIndex
            from voxelfm_hf.features import set_up_processor

            opened = FeatureStore(store)
            if opened.run.get("weight_hash") != weight_hash(resolve_model(model)):
                raise VoxelFMError(
                    f"{store} holds features of other weights than {model}: embed its scans with {model}"
                )
            if any(set_up_processor(self.processor, opened.run.get("processor"))):
                raise VoxelFMError(
                    f"{store} holds features of regions or tiles: the page compares whole scans, embed them without "
                    "--regions and --tile"
                )
            self.index = ScanIndex.of_store(opened)
        if probe is not None:
            from voxelfm_hf.eval.probes.apply import ProbeReader

            self.reader = ProbeReader(probe, model=model)
        if report is not None:
            from voxelfm_hf.report_writer import ReportWriter

            self.writer = ReportWriter(report)
            self.writer.model.generation_config.max_time = REPORT_SECONDS

    def open(self, upload: str | None) -> Iterator[tuple[PageScan | None, str]]:
        """Reads an upload, first without and then with features; says what went wrong in one sentence."""
        if upload is None:
            yield None, ""
            return
        try:
            if sum(scan.volume.hu.nbytes for scan in list(self.held)) > MAX_HELD_BYTES:
                Path(upload).unlink(missing_ok=True)
                raise VoxelFMError("the page holds as many scans as it can: come back in a few minutes")
            scan = PageScan.of(read_upload(upload, limits=self.limits))
            self.held.add(scan)
            yield scan, f"{_facts(scan)} The model is looking at it..."
            scan.embed(self.model, self.processor)
            assert scan.patches is not None
            head = f" **{HEAD}**" if scan.covers_head() else ""
            yield scan, f"{_facts(scan)} {' x '.join(str(n) for n in scan.patches.shape[:3])} patches.{head}"
        except (VoxelFMError, ValueError) as error:
            yield None, f"**{html.escape(str(error))}**"
        except Exception as error:
            logger.exception("an upload failed")
            yield None, f"**this scan could not be shown ({type(error).__name__})**"

    def neighbours(self, scan: PageScan | None) -> list[list[Any]]:
        """Rows (id, cosine similarity) of the store's scans that are most like this one."""
        if self.index is None or scan is None or scan.cls is None:
            return []
        return [[match.id, round(match.similarity, 3)] for match in self.index.search(scan.cls, k=8)]

    def answer(self, scan: PageScan | None) -> dict[str, Any]:
        """What the probe says."""
        if self.reader is None or scan is None:
            return {}
        try:
            return self.reader.answer(scan.volume).facts()
        except ValueError as error:
            return {"error": str(error)}

    def report(self, scan: PageScan | None) -> tuple[str, list[list[Any]]]:
        """The text of the report model, and rows (finding, in the text, probability, probe) where a probe knows any."""
        if self.writer is None or scan is None:
            return "", []
        from voxelfm_hf.eval.reports.agreement import compare_with_probe

        try:
            written = self.writer.write(scan.volume)
            if self.reader is None or self.reader.probe.config.task != "classification":
                return written.text, []
            answer = self.reader.answer(scan.volume)
        except (VoxelFMError, ValueError) as error:
            return str(error), []
        return written.text, [
            [
                finding.finding,
                "stated" if finding.stated else "not stated",
                round(finding.probability, 3),
                ("positive" if finding.positive else "negative") + (", disagrees" if finding.disagrees else ""),
            ]
            for finding in compare_with_probe(written.text, answer.values, answer.positive)
        ]


def _facts(scan: PageScan) -> str:
    """Size, spacing and what was repaired; nothing from the header's text."""
    volume = scan.volume
    size = " x ".join(str(n) for n in volume.hu.shape)
    spacing = " x ".join(f"{s:.2f}" for s in volume.spacing)
    notes = "".join(f" Note: {html.escape(note)}." for note in volume.notes)
    return f"{size} voxels of {spacing} mm (z, y, x).{notes}"
