"""Frozen features of scans: model inputs (`inputs`), a store filled with features (`embed`), patch grids and tiles."""

from voxelfm_hf.features.embed import BatchSummary, embed_scans, embed_volume, process_state
from voxelfm_hf.features.inputs import (
    EmbedOptions,
    Prepared,
    failure_reason,
    mistaken,
    prepared_scans,
    processor_settings,
    row_facts,
    set_up_processor,
)
from voxelfm_hf.scan_list import Task

__all__ = [
    "EmbedOptions",
    "BatchSummary",
    "Prepared",
    "Task",
    "embed_scans",
    "embed_volume",
    "failure_reason",
    "mistaken",
    "prepared_scans",
    "process_state",
    "processor_settings",
    "row_facts",
    "set_up_processor",
]
