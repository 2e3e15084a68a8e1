"""VoxelFM for Hugging Face: `import voxelfm_hf` makes the Auto classes and pipelines of transformers know the model."""

import importlib as _importlib
import os as _os

# In a bare checkout modeling/, training/, eval/ and model_cards/ lie beside this folder; a wheel has them inside it.
_root = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
if _os.path.isfile(_os.path.join(_root, "pyproject.toml")):
    __path__.append(_root)

from voxelfm_hf.auto import register as _register  # noqa: E402  (needs the line above)

__version__ = "0.1.0"

_EXPORTS = {
    "VoxelFMConfig": "voxelfm_hf.modeling.configuration_voxelfm",
    "VoxelFMModel": "voxelfm_hf.modeling.modeling_voxelfm",
    "VoxelFMBackbone": "voxelfm_hf.modeling.modeling_voxelfm",
    "VoxelFMProbe": "voxelfm_hf.modeling.modeling_voxelfm_probe",
    "VoxelFMForImageClassification": "voxelfm_hf.modeling.modeling_voxelfm_classifier",
    "VoxelFMImageProcessor": "voxelfm_hf.modeling.image_processing_voxelfm",
    "VoxelFMForReportGeneration": "voxelfm_hf.modeling.modeling_voxelfm_report",
    "VoxelFMReportProcessor": "voxelfm_hf.modeling.processing_voxelfm_report",
    "Volume": "voxelfm_hf.volumes",
    "read_volume": "voxelfm_hf.volumes",
    "find_scans": "voxelfm_hf.volumes",
    "VoxelFMError": "voxelfm_hf.volumes.errors",
    "load": "voxelfm_hf.hub",
    "load_classifier": "voxelfm_hf.probe_model",
    "save_classifier": "voxelfm_hf.probe_model",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    # Imports on first use: torch, SimpleITK and datasets take seconds to load.
    if name in _EXPORTS:
        return getattr(_importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


_register()
