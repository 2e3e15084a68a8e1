"""Prepared or raw scans as an endless, shuffled, resumable stream of samples for pre-training."""

from voxelfm_hf.data.stream.loader import StreamLoader
from voxelfm_hf.data.stream.samples import SampleStream
from voxelfm_hf.data.stream.sources import StreamSource

__all__ = ["SampleStream", "StreamLoader", "StreamSource"]
