"""Registration with the Auto classes, each at the moment transformers loads that Auto class.

`import voxelfm_hf` must stay quick, and registering at once would import torch. So every registration waits for
its transformers module: it runs right after that module's import, or at once where the module is loaded already.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable


def _register_config(module) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig

    module.AutoConfig.register("voxelfm", VoxelFMConfig, exist_ok=True)


def _register_models(module) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
    from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMBackbone, VoxelFMModel

    module.AutoModel.register(VoxelFMConfig, VoxelFMModel, exist_ok=True)
    module.AutoBackbone.register(VoxelFMConfig, VoxelFMBackbone, exist_ok=True)


def _register_image_processor(module) -> None:
    from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
    from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor

    module.AutoImageProcessor.register(VoxelFMConfig, VoxelFMImageProcessor, exist_ok=True)


def _register_pipeline(module) -> None:
    from voxelfm_hf.pipelines import register_pipeline

    register_pipeline(module.PIPELINE_REGISTRY)


_REGISTRATIONS: dict[str, Callable] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
    "transformers.pipelines": _register_pipeline,
}


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Lets the ordinary finders find a module and runs its registration once it is loaded."""

    def find_spec(self, fullname, path, target=None):
        if fullname not in _REGISTRATIONS:
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
            _REGISTRATIONS[fullname](module)

        spec.loader.exec_module = load_and_register
        return spec


def register() -> None:
    """Makes `AutoConfig`, `AutoModel`, `AutoBackbone`, `AutoImageProcessor` and `pipeline` know VoxelFM."""
    if any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _RegisterAfterImport())
    for name, registration in _REGISTRATIONS.items():
        module = sys.modules.get(name)
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            registration(module)
