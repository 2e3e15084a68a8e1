"""Any scans -> a data set for pre-training."""

from voxelfm_hf.data.prepare.run import PrepareSummary, prepare

__all__ = ["PrepareSummary", "prepare"]
