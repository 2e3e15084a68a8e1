"""The parts of a report model that it does not train: encoder and language model, found by name and checked."""

import os

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from .configuration_voxelfm_report import VoxelFMReportConfig
from .modeling_voxelfm import VoxelFMModel


def load_language_model(name: str | None, *, revision: str | None = None, **kwargs) -> PreTrainedModel:
    """A causal language model by name: a Hub repository, a folder, or the path of a .gguf file, which is unpacked.

    Raises:
        ValueError: there is none of that name; the sentence says how to get one.
    """
    if not name:
        raise ValueError("the model does not name its language model: say which one to use")
    try:
        if str(name).endswith(".gguf"):
            from transformers import GgufConfig

            folder, file = os.path.split(str(name))
            unpacked = {"gguf_file": file, "quantization_config": GgufConfig(file, dequantize=True)}
            config = AutoConfig.from_pretrained(folder or ".", gguf_file=file)
            model = AutoModelForCausalLM.from_pretrained(folder or ".", config=config, **unpacked, **kwargs)
            # What is in memory is an ordinary dense model.
            model.config.quantization_config = None
            return model
        return AutoModelForCausalLM.from_pretrained(name, revision=revision, **kwargs)
    except (OSError, ImportError) as error:
        where = f" (revision {revision})" if revision else ""
        raise ValueError(
            f"the language model {name}{where} is neither a folder nor in the cache, and could not be fetched "
            f"({type(error).__name__}): download it once with `hf download {name}`, or name the folder it lies in"
        ) from error


def load_encoder(name: str | None, *, revision: str | None = None, **kwargs) -> VoxelFMModel:
    """A vision encoder by name: a Hub repository or a folder.

    Raises:
        ValueError: there is none of that name; the sentence says how to get one.
    """
    if not name:
        raise ValueError("the model does not name its vision encoder: say which one to use")
    try:
        return VoxelFMModel.from_pretrained(name, revision=revision or "main", **kwargs)
    except OSError as error:
        raise ValueError(
            f"the vision encoder {name} is neither a folder nor in the cache, and could not be fetched: name the "
            "folder it lies in, or load without it and give vision_features"
        ) from error


def check_language_model(found, config: VoxelFMReportConfig) -> None:
    """Raises ValueError for the config of another architecture or size than the language model of training had."""
    for name in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
        wanted, given = getattr(config.text_config, name, None), getattr(found, name, None)
        if wanted != given:
            raise ValueError(
                f"the language model has {name} {given} and the report model was trained with {wanted}: use "
                f"{config.base_text_model}"
            )


def merge_adapter(language_model: PreTrainedModel) -> None:
    """Adds LoRA weights to those they adapt and takes the wrappers of PEFT out."""
    for name, module in list(language_model.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(language_model.get_submodule(parent), last, module.base_layer)
    language_model._hf_peft_config_loaded = False
