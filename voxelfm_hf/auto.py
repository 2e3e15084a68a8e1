"""Registration with the Auto classes, each at the moment transformers loads that Auto class.

`import voxelfm_hf` must stay quick, and registering at once would import torch. So every registration waits for the
transformers module it writes to. It also waits for our own module where that is being imported at the time: the model
code of transformers imports the Auto classes itself.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple


class _Registration(NamedTuple):
    theirs: str  # the transformers module that is written to
    ours: tuple[str, ...]  # modules of ours that must not be half loaded then, those that they import included
    register: Callable[[ModuleType], None]


def _auto_class(name: str, module: str, config: str, found: str, needs: tuple[str, ...] = ()) -> _Registration:
    """Lets an Auto class find one of our classes.

    Args:
        name: The Auto class.
        module: Its module in `transformers.models.auto`.
        config, found: FILE.CLASS in voxelfm_hf.modeling of the configuration, and of what is found by it.
        needs: Files that `found` imports and that import Auto classes or models of transformers too.
    """

    def ours(path: str):
        file, _, of_file = path.partition(".")
        return getattr(importlib.import_module(f"voxelfm_hf.modeling.{file}"), of_file)

    def register(theirs: ModuleType) -> None:
        known_by = ours(config)
        getattr(theirs, name).register(
            known_by.model_type if name == "AutoConfig" else known_by, ours(found), exist_ok=True
        )

    files = (found.partition(".")[0], *needs)
    return _Registration(
        f"transformers.models.auto.{module}", tuple(f"voxelfm_hf.modeling.{file}" for file in files), register
    )


def _register_pipelines(theirs: ModuleType) -> None:
    from voxelfm_hf.pipelines import register_pipelines

    register_pipelines(theirs.PIPELINE_REGISTRY)


_CONFIG = "configuration_voxelfm.VoxelFMConfig"
_PROBE_CONFIG = "configuration_voxelfm_probe.VoxelFMProbeConfig"
_REPORT_CONFIG = "configuration_voxelfm_report.VoxelFMReportConfig"
_MODEL, _PROBE = "modeling_voxelfm", "modeling_voxelfm_probe"
_REGISTRATIONS = [
    _auto_class("AutoConfig", "configuration_auto", _CONFIG, _CONFIG),
    _auto_class("AutoConfig", "configuration_auto", _PROBE_CONFIG, _PROBE_CONFIG),
    _auto_class("AutoConfig", "configuration_auto", _REPORT_CONFIG, _REPORT_CONFIG),
    _auto_class("AutoModel", "modeling_auto", _CONFIG, f"{_MODEL}.VoxelFMModel"),
    _auto_class("AutoBackbone", "modeling_auto", _CONFIG, f"{_MODEL}.VoxelFMBackbone"),
    _auto_class("AutoModel", "modeling_auto", _PROBE_CONFIG, f"{_PROBE}.VoxelFMProbe"),
    _auto_class(
        "AutoModelForImageClassification",
        "modeling_auto",
        _CONFIG,
        "modeling_voxelfm_classifier.VoxelFMForImageClassification",
        needs=(_MODEL, _PROBE),
    ),
    _auto_class(
        "AutoModelForImageTextToText",
        "modeling_auto",
        _REPORT_CONFIG,
        "modeling_voxelfm_report.VoxelFMForReportGeneration",
        needs=(_MODEL, "parts_voxelfm_report"),
    ),
    _auto_class("AutoProcessor", "processing_auto", _REPORT_CONFIG, "processing_voxelfm_report.VoxelFMReportProcessor"),
    _auto_class(
        "AutoImageProcessor", "image_processing_auto", _CONFIG, "image_processing_voxelfm.VoxelFMImageProcessor"
    ),
    _Registration("transformers.pipelines", ("voxelfm_hf.pipelines",), _register_pipelines),
]


def _is_loading(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and getattr(module.__spec__, "_initializing", False)


def _after_import(name: str) -> None:
    """Runs the registrations that waited for the module `name`, unless another of their modules is not there yet."""
    for entry in _REGISTRATIONS:
        modules = {entry.theirs, *entry.ours}
        if name in modules and entry.theirs in sys.modules and not any(map(_is_loading, modules - {name})):
            entry.register(sys.modules[entry.theirs])


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Lets the ordinary finders find a module and runs its registrations once it is loaded."""

    def find_spec(self, fullname, path, target=None):
        if all(fullname not in (entry.theirs, *entry.ours) for entry in _REGISTRATIONS):
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
    """Makes the Auto classes and `pipeline` of transformers know VoxelFM, its probes and its report model."""
    if any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _RegisterAfterImport())
    for entry in _REGISTRATIONS:
        if entry.theirs in sys.modules and not any(map(_is_loading, (entry.theirs, *entry.ours))):
            entry.register(sys.modules[entry.theirs])
