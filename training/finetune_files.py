"""What fine-tuning leaves: a folder of adapters or a model folder, and the head as a probe that names it."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voxelfm_hf.files import written_folder
from voxelfm_hf.hub import weight_hash
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.training.finetune_settings import Finetuned

logger = logging.getLogger(__name__)

ADAPTER, MODEL, PROBE = "adapter", "model", "probe"


def save_finetuned(folder: str | Path, tuned: Finetuned, processor: VoxelFMImageProcessor, *, base: str | Path) -> Path:
    """Writes a fine-tuned backbone and its probe.

    Args:
        folder: New or empty. It gets `adapter/` (LoRA: the adapters only, as peft reads them) or `model/` (a
            `from_pretrained` folder), `probe/`, and `finetuning.json`.
        tuned: What to write; its probe is told the hash of the backbone.
        processor: Of the base model.
        base: Name or folder of the base model; of a folder only the last part is written.

    Returns:
        The folder of the backbone.
    """
    name = Path(base).name if Path(base).is_dir() else str(base)
    part = ADAPTER if tuned.mode == "lora" else MODEL
    with written_folder(folder) as temporary:
        save_backbone(temporary / part, tuned.backbone, processor, base=name)
        config = tuned.probe.config
        config.base_model_name_or_path, config.base_model_hash = part, weight_hash(temporary / part)
        tuned.probe.save_pretrained(temporary / PROBE)
        facts: dict[str, Any] = {
            "base": name,
            "mode": tuned.mode,
            "best_epoch": tuned.best_epoch,
            "epochs": tuned.epochs,
            "seconds": round(tuned.seconds, 1),
            "peak_memory_mb": round(tuned.peak_memory_mb),
            "trainable_parameters": tuned.trainable_parameters,
            "history": tuned.history,
            "notes": list(tuned.notes),
        }
        (temporary / "finetuning.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return Path(folder) / part


def save_backbone(folder: Path, backbone: nn.Module, processor: VoxelFMImageProcessor, *, base: str) -> None:
    """Writes the adapters of a `PeftModel`, or the whole of another backbone, with the processor beside it."""
    adapters = getattr(backbone, "peft_config", None)
    if adapters is not None:
        adapters["default"].base_model_name_or_path = base
        backbone.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
    else:
        backbone.save_pretrained(folder)  # type: ignore[operator]
    processor.save_pretrained(folder)


def merged(backbone: nn.Module) -> nn.Module:
    """The backbone with its adapters added into the weights: an ordinary model with the same outputs."""
    with torch.no_grad():
        return backbone.merge_and_unload() if hasattr(backbone, "merge_and_unload") else backbone  # type: ignore[operator]


def open_probe(folder: str | Path) -> VoxelFMProbe:
    """The probe of a folder written by `save_finetuned`."""
    return VoxelFMProbe.from_pretrained(Path(folder) / PROBE)
