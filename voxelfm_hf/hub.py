"""Models by name: local folders, Hub repositories, and the published checkpoint, which is converted once."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from voxelfm_hf.volumes.errors import ModelError, VoxelFMError

if TYPE_CHECKING:
    import torch

# The published weights are a training checkpoint; these files of the repository are all it takes to convert them.
PUBLISHED = {"rmaguado/VoxelFM": ("vitb_3d/checkpoints/99999.pth", "vitb_3d/config.yaml")}
DTYPES = ("float32", "bfloat16", "float16")
# The small model inside the package, wherever a model is named.
EMBEDDED = "tiny"
# What to do about an encoder that cannot be found.
_OTHER_ENCODER = f"the model of the package is called {EMBEDDED}"
# Marks a folder of LoRA adapters, as peft writes it.
ADAPTER_CONFIG = "adapter_config.json"
# Beside a fine-tuned backbone: how it was made, and the hash of the weights it was made from.
TUNING_FACTS = "finetuning.json"
# Raised when a conversion's result changes, so that older cached ones are not used.
CONVERSION = 1


def load(model: str | Path, *, revision: str | None = None, **kwargs):
    """The model and its image processor, ready for inference.

    Args:
        model: A folder, "tiny" (inside the package), a Hub repository in transformers format, or "rmaguado/VoxelFM":
            the published .pth is then downloaded and converted once into the Hugging Face cache. A folder of LoRA
            adapters is merged into the base model that it names.
        revision: Branch, tag or commit on the Hub.
        **kwargs: Passed to `AutoModel.from_pretrained` (`dtype`, `device_map`, `attn_implementation`, ...).

    Returns:
        (model in evaluation mode, image processor).

    Raises:
        ModelError: neither a folder nor a repository that can be reached, or one that is no VoxelFM model.
    """
    from transformers import AutoImageProcessor, AutoModel

    folder = resolve_model(model, revision=revision)
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapted(folder, **kwargs)
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"{model} has no config.json: it is not a model folder of transformers")
    with loading(model, "a VoxelFM model"), without_bars():
        network = AutoModel.from_pretrained(folder, **kwargs)
        processor = AutoImageProcessor.from_pretrained(folder)
    if network.config.model_type != "voxelfm":
        raise ModelError(f"{model} is a {network.config.model_type} model, not a VoxelFM one")
    return network.eval(), processor


@contextmanager
def loading(name: str | Path, what: str) -> Iterator[None]:
    """Turns whatever a damaged or foreign model folder makes its readers raise into one sentence.

    Args:
        name: The folder or repository.
        what: What it is loaded as, with its article.

    Raises:
        ModelError: in place of the errors of transformers, peft, torch and safetensors.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"{name} holds damaged weights ({error}): copy or download it again") from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name} cannot be loaded as {what}: {reason}") from None


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of transformers: an encoder or a probe is there before one can be read."""
    from transformers.utils import logging

    # Not `disable_progress_bar`, after which it cannot be told which bars the user had turned off.
    before = logging.set_tqdm_hook(lambda factory, args, kwargs: logging.EmptyTqdm(*args, **kwargs))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def resolve_model(model: str | Path, *, revision: str | None = None, advice: str = _OTHER_ENCODER) -> Path:
    """The local folder of a model: itself, or the cached snapshot of a Hub repository.

    Args:
        model: A folder, a Hub repository or a name of this package.
        revision: Branch, tag or commit on the Hub.
        advice: What to do where it cannot be found, for what is no encoder.

    Raises:
        ModelError: it cannot be found or fetched.
    """
    if Path(model).is_dir():
        return Path(model)
    if str(model) == EMBEDDED:
        return embedded_model()
    if Path(model).exists():
        raise ModelError(f"{model} is a file: name the folder of a model, or convert a .pth with `voxelfm convert`")
    if str(model) in PUBLISHED:
        return _converted(str(model), revision)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), revision=revision, ignore_patterns=["*.pth", "*.bin", "*.pt"]))
    except HFValidationError:
        raise ModelError(f"{model} is neither a folder nor the name of a Hub repository; {advice}") from None
    except LocalEntryNotFoundError:
        raise _out_of_reach(model, advice) from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{model} cannot be fetched from the Hub ({type(error).__name__})") from None


def is_local_elsewhere(base: str | Path) -> bool:
    """Whether a base that is written down was a local folder, of which only the last part is, and is not here."""
    return str(base) != EMBEDDED and "/" not in str(base) and not Path(base).is_dir()


def _adapted(folder: Path, **kwargs):
    """The base model of a folder of adapters with the adapters merged into its weights, and the image processor."""
    import json

    from peft import PeftModel
    from transformers import AutoImageProcessor

    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} holds no adapter_model.safetensors: other formats are not opened")
    facts = folder / TUNING_FACTS
    with loading(folder, "LoRA adapters"):
        base = json.loads((folder / ADAPTER_CONFIG).read_text()).get("base_model_name_or_path")
        expected = json.loads(facts.read_text()).get("base_hash") if facts.is_file() else None
    # Of a local base only the last part of its path is written down.
    beside = [place / str(base) for place in (folder.parent, folder.parent.parent)]
    found = next((place for place in beside if base and place.is_dir()), base)
    if not found or (found is base and is_local_elsewhere(base)):
        raise ModelError(f"{folder} holds adapters of a local model named {base}: put that model's folder beside it")
    if expected and weight_hash(resolve_model(found)) != expected:
        raise ModelError(
            f"{folder} holds adapters of other weights than those of {found}: put the right base beside it"
        )
    network, processor = load(found, **kwargs)
    with loading(folder, "LoRA adapters"), quiet_peft():
        merged = PeftModel.from_pretrained(network, str(folder)).merge_and_unload()
        if (folder / "preprocessor_config.json").is_file():
            processor = AutoImageProcessor.from_pretrained(folder)
    return merged.eval(), processor


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning that peft reads a property of transformers by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _out_of_reach(model: str | Path, advice: str) -> ModelError:
    return ModelError(f"{model} is not a folder, is not in the cache, and the Hub cannot be reached; {advice}")


def _converted(repository: str, revision: str | None) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from voxelfm_hf.convert import convert_checkpoint

    try:
        checkpoint, config = (hf_hub_download(repository, file, revision=revision) for file in PUBLISHED[repository])
    except LocalEntryNotFoundError:
        raise _out_of_reach(repository, _OTHER_ENCODER) from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{repository} cannot be fetched from the Hub ({type(error).__name__})") from None
    commit = Path(checkpoint).parents[len(Path(PUBLISHED[repository][0]).parts) - 1].name
    cache = Path(constants.HF_HOME) / "voxelfm" / repository.replace("/", "--")
    folder = cache / f"{commit}-{CONVERSION}"
    if not folder.is_dir():
        try:
            convert_checkpoint(checkpoint, config, folder)
        except VoxelFMError:
            # Another process may have converted it meanwhile.
            if not folder.is_dir():
                raise
    return folder


def inference_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """A dtype by name; "auto" is bfloat16 where the device computes in it, else float32.

    Raises:
        ModelError: another name.
    """
    import torch

    if name == "auto":
        name = "bfloat16" if computes_in_bfloat16(device) else "float32"
    if name not in DTYPES:
        raise ModelError(f"the dtype {name} is not known: use auto, {', '.join(DTYPES)}")
    return getattr(torch, name)


def computes_in_bfloat16(device: "torch.device") -> bool:
    """Whether the hardware itself computes in bfloat16, so that it is quicker than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def weight_hash(folder: str | Path) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors of a model folder, the same however it is sharded."""
    import hashlib

    import torch
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no safetensors weights")
    where = {}
    with loading(folder, "a model"), ExitStack() as stack:
        for file in files:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            where.update(dict.fromkeys(opened.keys(), opened))
        digest = hashlib.sha256()
        for name in sorted(where):
            tensor = where[name].get_tensor(name).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(memoryview(tensor.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def embedded_model() -> Path:
    """The folder of the small model inside the package."""
    return Path(str(resources.files("voxelfm_hf") / "assets" / "tiny"))
