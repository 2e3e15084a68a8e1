"""Registration with the Auto classes, each at the moment transformers loads that Auto class.

`import voxelfm_hf` must stay quick, and registering at once would import torch. So every registration waits for the
transformers module it writes to. It also waits for our own module where that is being imported at the time: the model
code of transformers imports the Auto classes itself.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from typing import NamedTuple


def _register_config(auto) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig

    auto.AutoConfig.register("voxelfm", VoxelFMConfig, exist_ok=True)


def _register_models(auto) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
    from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMBackbone, VoxelFMModel

    auto.AutoModel.register(VoxelFMConfig, VoxelFMModel, exist_ok=True)
    auto.AutoBackbone.register(VoxelFMConfig, VoxelFMBackbone, exist_ok=True)


def _register_probe_config(auto) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig

    auto.AutoConfig.register(VoxelFMProbeConfig.model_type, VoxelFMProbeConfig, exist_ok=True)


def _register_probe(auto) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
    from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe

    auto.AutoModel.register(VoxelFMProbeConfig, VoxelFMProbe, exist_ok=True)


def _register_classifier(auto) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
    from voxelfm_hf.modeling.modeling_voxelfm_classifier import VoxelFMForImageClassification

    auto.AutoModelForImageClassification.register(VoxelFMConfig, VoxelFMForImageClassification, exist_ok=True)


def _register_report_config(auto) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm_report import VoxelFMReportConfig

    auto.AutoConfig.register(VoxelFMReportConfig.model_type, VoxelFMReportConfig, exist_ok=True)


def _register_report_model(auto) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm_report import VoxelFMReportConfig
    from voxelfm_hf.modeling.modeling_voxelfm_report import VoxelFMForReportGeneration

    auto.AutoModelForImageTextToText.register(VoxelFMReportConfig, VoxelFMForReportGeneration, exist_ok=True)


def _register_report_processor(auto) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm_report import VoxelFMReportConfig
    from voxelfm_hf.modeling.processing_voxelfm_report import VoxelFMReportProcessor

    auto.AutoProcessor.register(VoxelFMReportConfig, VoxelFMReportProcessor, exist_ok=True)


def _register_image_processor(auto) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
    from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor

    auto.AutoImageProcessor.register(VoxelFMConfig, VoxelFMImageProcessor, exist_ok=True)


def _register_pipeline(pipelines) -> None:
    from voxelfm_hf.pipelines import register_pipeline

    register_pipeline(pipelines.PIPELINE_REGISTRY)


class _Registration(NamedTuple):
    theirs: str  # the transformers module that holds the Auto class
    ours: str  # our module that holds what is registered
    register: Callable
    needs: tuple[str, ...] = ()  # more modules of ours that it imports


_REGISTRATIONS = [
    _Registration(
        "transformers.models.auto.configuration_auto", "voxelfm_hf.modeling.configuration_voxelfm", _register_config
    ),
    _Registration("transformers.models.auto.modeling_auto", "voxelfm_hf.modeling.modeling_voxelfm", _register_models),
    _Registration(
        "transformers.models.auto.configuration_auto",
        "voxelfm_hf.modeling.configuration_voxelfm_probe",
        _register_probe_config,
    ),
    _Registration(
        "transformers.models.auto.modeling_auto", "voxelfm_hf.modeling.modeling_voxelfm_probe", _register_probe
    ),
    _Registration(
        "transformers.models.auto.modeling_auto",
        "voxelfm_hf.modeling.modeling_voxelfm_classifier",
        _register_classifier,
        needs=("voxelfm_hf.modeling.modeling_voxelfm", "voxelfm_hf.modeling.modeling_voxelfm_probe"),
    ),
    _Registration(
        "transformers.models.auto.configuration_auto",
        "voxelfm_hf.modeling.configuration_voxelfm_report",
        _register_report_config,
    ),
    _Registration(
        "transformers.models.auto.modeling_auto",
        "voxelfm_hf.modeling.modeling_voxelfm_report",
        _register_report_model,
        needs=("voxelfm_hf.modeling.modeling_voxelfm",),
    ),
    _Registration(
        "transformers.models.auto.processing_auto",
        "voxelfm_hf.modeling.processing_voxelfm_report",
        _register_report_processor,
    ),
    _Registration(
        "transformers.models.auto.image_processing_auto",
        "voxelfm_hf.modeling.image_processing_voxelfm",
        _register_image_processor,
    ),
    _Registration("transformers.pipelines", "voxelfm_hf.pipelines", _register_pipeline),
]


def _is_loading(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and getattr(module.__spec__, "_initializing", False)


def _after_import(name: str) -> None:
    """Runs the registrations that waited for the module `name`, unless another of their modules is not there yet."""
    for entry in _REGISTRATIONS:
        modules = {entry.theirs, entry.ours, *entry.needs}
        if name in modules and entry.theirs in sys.modules and not any(map(_is_loading, modules - {name})):
            entry.register(sys.modules[entry.theirs])


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Lets the ordinary finders find a module and runs its registrations once it is loaded."""

    def find_spec(self, fullname, path, target=None):
        if all(fullname not in (entry.theirs, entry.ours, *entry.needs) for entry in _REGISTRATIONS):
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module) -> None:
            load(module)
            _after_import(fullname)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Makes `AutoConfig`, `AutoModel`, `AutoBackbone`, `AutoImageProcessor` and `pipeline` know VoxelFM."""
    if any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _RegisterAfterImport())
    for entry in _REGISTRATIONS:
        modules = (entry.theirs, entry.ours, *entry.needs)
        if entry.theirs in sys.modules and not any(map(_is_loading, modules)):
            entry.register(sys.modules[entry.theirs])
