"""Registration with the Auto classes, each at the moment transformers loads that Auto class.

`import voxelfm_hf` must stay quick, and registering at once would import torch. So every registration waits for the
transformers module it writes to. It also waits while any module of ours is being imported: the model code of
transformers imports the Auto classes itself, and ours imports both.
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
    register: Callable[[ModuleType], None]


def _auto_class(name: str, module: str, config: str, found: str) -> _Registration:
    """Lets an Auto class find one of our classes.

    Args:
        name: The Auto class.
        module: Its module in `transformers.models.auto`.
        config, found: FILE.CLASS in voxelfm_hf.modeling of the configuration, and of what is found by it.
    """

    def ours(path: str):
        file, _, of_file = path.partition(".")
        return getattr(importlib.import_module(f"voxelfm_hf.modeling.{file}"), of_file)

    def register(theirs: ModuleType) -> None:
        known_by = ours(config)
        getattr(theirs, name).register(
            known_by.model_type if name == "AutoConfig" else known_by, ours(found), exist_ok=True
        )

    return _Registration(f"transformers.models.auto.{module}", register)


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
    ),
    _auto_class(
        "AutoModelForImageTextToText",
        "modeling_auto",
        _REPORT_CONFIG,
        "modeling_voxelfm_report.VoxelFMForReportGeneration",
    ),
    _auto_class("AutoProcessor", "processing_auto", _REPORT_CONFIG, "processing_voxelfm_report.VoxelFMReportProcessor"),
    _auto_class(
        "AutoImageProcessor", "image_processing_auto", _CONFIG, "image_processing_voxelfm.VoxelFMImageProcessor"
    ),
    _Registration("transformers.pipelines", _register_pipelines),
]


# Modules that must not be half loaded when one of them is registered.
_OURS = ("voxelfm_hf.modeling.", "voxelfm_hf.pipelines")
_waiting = list(_REGISTRATIONS)


def _is_loading(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and getattr(module.__spec__, "_initializing", False)


def _register_what_can_be(loaded: str | None = None) -> None:
    """Runs the registrations that have waited for this, which may have been the import of the module `loaded`."""
    if any(name.startswith(_OURS) and name != loaded and _is_loading(name) for name in tuple(sys.modules)):
        return
    for entry in tuple(_waiting):
        theirs = sys.modules.get(entry.theirs)
        # A registration imports modules of ours, after which others run here too.
        if entry in _waiting and theirs is not None and (entry.theirs == loaded or not _is_loading(entry.theirs)):
            _waiting.remove(entry)
            entry.register(theirs)


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Lets the ordinary finders find a module and runs its registrations once it is loaded."""

    def find_spec(self, fullname, path, target=None):
        if not fullname.startswith(_OURS) and all(fullname != entry.theirs for entry in _waiting):
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
            _register_what_can_be(fullname)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Makes the Auto classes and `pipeline` of transformers know VoxelFM, its probes and its report model."""
    if any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _RegisterAfterImport())
    _register_what_can_be()
