"""What fine-tuning leaves: a folder of adapters or a model folder, and the head as a probe that names it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voxelfm_hf.cards import tuned_backbone_card
from voxelfm_hf.files import written_folder
from voxelfm_hf.hub import TUNING_FACTS, resolve_model, weight_hash
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.training.finetune.settings import Finetuned

ADAPTER, MODEL, PROBE = "adapter", "model", "probe"


def save_backbone(folder: str | Path, tuned: Finetuned, processor: VoxelFMImageProcessor, *, base: str | Path) -> Path:
    """Writes a fine-tuned backbone, and tells its probe what it is for.

    Args:
        folder: It gets `adapter/` (LoRA: the adapters only, as peft reads them) or `model/` (a `from_pretrained`
            folder), and in it `finetuning.json`: mode, cost, history.
        tuned: What to write; its probe is given the name and the hash of the backbone.
        processor: Of the base model.
        base: Name or folder of the base model; of a folder only the last part is written.

    Returns:
        The folder of the backbone.
    """
    name = Path(base).name if Path(base).is_dir() else str(base)
    part = ADAPTER if tuned.mode == "lora" else MODEL
    with written_folder(Path(folder) / part) as temporary:
        adapters = getattr(tuned.backbone, "peft_config", None)
        if adapters is not None:
            adapters["default"].base_model_name_or_path = name
            tuned.backbone.save_pretrained(temporary, save_embedding_layers=False)  # type: ignore[operator]
        else:
            tuned.backbone.save_pretrained(temporary)  # type: ignore[operator]
        processor.save_pretrained(temporary)
        config = tuned.probe.config
        config.base_model_name_or_path, config.base_model_hash = part, weight_hash(temporary)
        facts: dict[str, Any] = {
            "base": name,
            "base_hash": weight_hash(resolve_model(base)),
            "mode": tuned.mode,
            "best_epoch": tuned.best_epoch,
            "epochs": tuned.epochs,
            "seconds": round(tuned.seconds, 1),
            "peak_memory_mb": round(tuned.peak_memory_mb),
            "trainable_parameters": tuned.trainable_parameters,
            "history": tuned.history,
            "notes": list(tuned.notes),
        }
        (temporary / TUNING_FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        # In place of peft's empty template.
        card = _card(tuned, name, str(facts["base_hash"]), is_hub="/" in name)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return Path(folder) / part


def _card(tuned: Finetuned, base: str, base_hash: str, *, is_hub: bool) -> str:
    """What a reader of the folder has to know; the scores are in the card of the probe."""
    task = tuned.probe.config.task
    what = "LoRA adapters for" if tuned.mode == "lora" else f"A fine-tuned copy ({tuned.mode}) of"
    return tuned_backbone_card(
        mode=tuned.mode,
        base_model=base if is_hub else None,
        task=task,
        name=f"{what} {base}: {task}",
        summary=f"{what} the CT encoder {base}, made by `voxelfm finetune` with the head of a {task} probe.",
        base=base,
        base_hash=base_hash[:12],
        settings={
            "mode": tuned.mode,
            "trainable parameters": f"{tuned.trainable_parameters:,}",
            "epochs": tuned.epochs,
            "best on validation rows": f"epoch {tuned.best_epoch}",
        },
        cost=f"{tuned.seconds:.0f} s, {tuned.peak_memory_mb:.0f} MB at most; no other measure was taken.",
        notes=list(tuned.notes),
    )


def merged(backbone: nn.Module) -> nn.Module:
    """The backbone with its adapters added into the weights: an ordinary model with the same outputs."""
    with torch.no_grad():
        return backbone.merge_and_unload() if hasattr(backbone, "merge_and_unload") else backbone  # type: ignore[operator]
