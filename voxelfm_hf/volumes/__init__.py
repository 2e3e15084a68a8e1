"""Reading scans: any CT file or DICOM folder becomes a `Volume` in Hounsfield units on an LPS+ grid. No torch here."""

from voxelfm_hf.volumes.errors import (
    DatasetError,
    LabelError,
    ModelError,
    RecipeError,
    ScanError,
    StoreError,
    VoxelFMError,
)
from voxelfm_hf.volumes.find import find_scans
from voxelfm_hf.volumes.geometry import SourceGrid
from voxelfm_hf.volumes.read import list_series, read_volume
from voxelfm_hf.volumes.volume import Volume

__all__ = [
    "DatasetError",
    "LabelError",
    "ModelError",
    "RecipeError",
    "ScanError",
    "SourceGrid",
    "StoreError",
    "Volume",
    "VoxelFMError",
    "find_scans",
    "list_series",
    "read_volume",
]
