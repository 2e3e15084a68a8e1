"""The published checkpoint (.pth and config.yaml) as a `from_pretrained` folder.

The only place of the package that reads a .pth, and it does so with `weights_only=True`.
"""

import re
from pathlib import Path
from typing import Any

import torch
import yaml

from voxelfm_hf.files import written_folder
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.volumes.errors import ModelError

# Published name (after the prefixes) -> ours; {i} is the block. One published tensor may become several of ours.
RENAMED = {
    "cls_token": ["embeddings.cls_token"],
    "register_tokens": ["embeddings.register_tokens"],
    "mask_token": ["embeddings.mask_token"],
    "patch_embed.proj.": ["embeddings.patch_embeddings."],
    "blocks.{i}.norm1.": ["layers.{i}.norm1."],
    "blocks.{i}.attn.qkv.": [f"layers.{{i}}.attention.{part}_proj." for part in "qkv"],
    "blocks.{i}.attn.proj.": ["layers.{i}.attention.o_proj."],
    "blocks.{i}.ls1.gamma": ["layers.{i}.layer_scale1.lambda1"],
    "blocks.{i}.norm2.": ["layers.{i}.norm2."],
    "blocks.{i}.mlp.fc1.": ["layers.{i}.mlp.up_proj."],
    "blocks.{i}.mlp.fc2.": ["layers.{i}.mlp.down_proj."],
    "blocks.{i}.mlp.w12.": ["layers.{i}.mlp.gate_proj.", "layers.{i}.mlp.up_proj."],
    "blocks.{i}.mlp.w3.": ["layers.{i}.mlp.down_proj."],
    "blocks.{i}.ls2.gamma": ["layers.{i}.layer_scale2.lambda1"],
    "norm.": ["norm."],
}  # fmt: skip
PERIODS = "rope_embed.periods"
HEADS = ("dino_head.", "ibot_head.")
# Where biases can be switched off one by one in the published configuration.
BIAS_FIELDS = {"qkv_bias": "qkv_bias", "proj_bias": "proj_bias", "ffn_bias": "mlp_bias"}


def convert_checkpoint(checkpoint: str | Path, config: str | Path, out: str | Path) -> Path:
    """Writes the teacher backbone of a published checkpoint as a `from_pretrained` folder.

    Args:
        checkpoint: The `torch.save` file with the key `teacher`.
        config: The `config.yaml` beside it; it is read and not copied, since it may hold local paths.
        out: Folder to write: safetensors, config, processor and the code they load with. Must not exist or be empty.

    Returns:
        The folder.

    Raises:
        ModelError: a file that cannot be read, missing, unexpected or wrongly shaped keys (named), or an `out` in use.
    """
    settings = _read_yaml(Path(config))
    model = VoxelFMModel(_model_config(settings, Path(config)))
    model.load_state_dict(_model_state(Path(checkpoint), model))
    processor = _processor(settings, model.config, Path(config))
    with written_folder(Path(out)) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return Path(out)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist: name the config.yaml published beside the checkpoint") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"{path} cannot be read as YAML ({type(error).__name__}): get the file again") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("student"), dict):
        raise ModelError(f"{path} has no section `student`: it is not the config.yaml of a VoxelFM checkpoint")
    return settings


def _largest(value: Any) -> int:
    """The largest number of a crop size, which may be a number, a triple or a list of triples."""
    return max(_largest(item) for item in value) if isinstance(value, (list, tuple)) else int(value)


def _model_config(settings: dict[str, Any], path: Path) -> VoxelFMConfig:
    student = settings["student"]
    try:
        return VoxelFMConfig(
            patch_size=student["patch_size"],
            hidden_size=student["embed_dim"],
            num_hidden_layers=student["depth"],
            num_attention_heads=student["num_heads"],
            mlp_ratio=student["mlp_ratio"],
            layerscale_value=float(student["layerscale"]),
            rope_theta=student["rope_base"],
            pos_embed_rescale=student["rope_rescale_coords"],
            use_swiglu_ffn={"mlp": False, "swiglu": True}[student["ffn_layer"]],
            num_register_tokens=student["num_register_tokens"],
            image_size=_largest(settings["crops"]["global_crops_size"]),
            **{ours: student[theirs] for theirs, ours in BIAS_FIELDS.items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} does not describe a VoxelFM model ({type(error).__name__}: {error})") from None


def _processor(settings: dict[str, Any], config: VoxelFMConfig, path: Path) -> VoxelFMImageProcessor:
    try:
        data = settings["datasets"][0]
        return VoxelFMImageProcessor(
            hu_range=(data["pixel_range"]["lower"], data["pixel_range"]["upper"]),
            image_mean=float(data["norm"]["mean"]),
            image_std=float(data["norm"]["std"]),
            patch_size=config.patch_size,
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} lacks datasets[0].norm or datasets[0].pixel_range ({type(error).__name__}: {error})"
        ) from None


def _published_state(path: Path) -> dict[str, torch.Tensor]:
    """The teacher's backbone tensors under their published names, without prefixes; heads are left out."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist: name the published .pth file") from None
    except Exception as error:  # torch raises many kinds; none may reach the user as a traceback
        raise ModelError(
            f"{path} cannot be read as a checkpoint of plain tensors ({type(error).__name__}): get the file again, "
            "and never load one that needs full unpickling"
        ) from None
    teacher = content.get("teacher") if isinstance(content, dict) else None
    if not isinstance(teacher, dict):
        raise ModelError(f"{path} has no entry `teacher`: it is not a VoxelFM training checkpoint")
    state = {}
    for key, value in teacher.items():
        name = key.replace("module.", "")
        if not name.startswith(HEADS):
            state[name.removeprefix("backbone.")] = value
    return state


def _renamed(name: str) -> list[str]:
    """Our names for a published tensor, none if it has no place in the model."""
    block = re.match(r"blocks\.(\d+)\.", name)
    pattern = re.sub(r"blocks\.\d+\.", "blocks.{i}.", name, count=1)
    for published, ours in RENAMED.items():
        if pattern == published or (published.endswith(".") and pattern.startswith(published)):
            index = block.group(1) if block else ""
            return [target.replace("{i}", index) + pattern.removeprefix(published) for target in ours]
    return []


def _model_state(path: Path, model: VoxelFMModel) -> dict[str, torch.Tensor]:
    published = _published_state(path)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    unexpected, wrong, placed = [], [], set()

    periods = published.pop(PERIODS, None)
    if periods is not None:
        ours = model.rotary_embedding.periods()
        if periods.shape != ours.shape or not torch.allclose(periods.float(), ours, rtol=1e-4):
            wrong.append(f"{PERIODS} (differs from rope_base {model.config.rope_theta} of the configuration)")
    for name, value in published.items():
        targets = [target for target in _renamed(name) if target in expected]
        if not targets:
            unexpected.append(name)
            continue
        if name == "mask_token":
            value = value.reshape(1, 1, -1)
        placed.update(targets)
        parts = value.chunk(len(targets)) if len(targets) > 1 else [value]
        if [tuple(part.shape) for part in parts] == [expected[target] for target in targets]:
            state.update((target, part.float().clone()) for target, part in zip(targets, parts, strict=True))
        else:
            wrong.append(f"{name} {tuple(value.shape)}")
    missing = [target for target in expected if target not in placed]
    problems = {"missing": missing, "unexpected": unexpected, "wrongly shaped": wrong}
    found = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
    if found:
        raise ModelError(f"{path} does not fit its configuration ({found}): use the config.yaml published with it")
    return state
