"""What the page can be given, small: a feature store, a probe and a report model on the model inside the package."""

from pathlib import Path

import torch
from peft import LoraConfig

from tests.modeling.small_language_models import byte_tokenizer, small_llama
from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.hub import EMBEDDED, embedded_model, load, weight_hash
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.configuration_voxelfm_report import VoxelFMReportConfig
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.modeling.modeling_voxelfm_report import VoxelFMForReportGeneration
from voxelfm_hf.modeling.processing_voxelfm_report import VoxelFMReportProcessor
from voxelfm_hf.scan_list import list_scans


def write_store(folder: Path, *, count: int = 3) -> Path:
    """A store of some synthetic chests."""
    for seed in range(count):
        write_nifti(make_phantom(seed, shape=(40, 48, 48)).volume, folder / "chests" / f"chest-{seed}.nii.gz")
    embed_scans([Task(scan) for scan in list_scans([folder / "chests"])], EMBEDDED, folder / "store", EmbedOptions())
    return folder / "store"


def write_probe(folder: Path) -> Path:
    """A probe of one finding with random weights."""
    torch.manual_seed(0)
    network, _ = load(EMBEDDED)
    config = VoxelFMProbeConfig(
        task="classification",
        feature_size=network.config.hidden_size,
        id2label={0: "pleural_effusion"},
        base_model_name_or_path=EMBEDDED,
        base_model_hash=weight_hash(embedded_model()),
    )
    VoxelFMProbe(config).save_pretrained(folder / "probe")
    return folder / "probe"


def write_report_model(folder: Path, *, adapter: bool = True) -> Path:
    """A report model that has learned nothing: a random language model, with or without a LoRA adapter."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    speaks = small_llama(len(tokenizer))
    # It writes letters alone, so that a person and a browser see that something was written.
    letters = tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))
    others = [number for number in range(len(tokenizer)) if number not in letters]
    speaks.lm_head.weight.data[others] = 0
    speaks.save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    tower, images = load(EMBEDDED)
    processor = VoxelFMReportProcessor(images, tokenizer, 2)
    config = VoxelFMReportConfig(
        vision_config=tower.config,
        text_config=speaks.config,
        image_token_id=processor.image_token_id,
        base_vision_model=EMBEDDED,
        base_vision_hash=weight_hash(embedded_model()),
        base_text_model=str(folder / "language"),
        num_image_tokens=2,
        resampler_hidden_size=16,
        resampler_num_heads=2,
        projector_hidden_size=16,
    )
    model = VoxelFMForReportGeneration.from_parts(config, language_model=speaks)
    if adapter:
        targets = ["q_proj", "v_proj"]
        model.language_model.add_adapter(LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
        model.config.has_adapter = True
    model.save_pretrained(folder / "report")
    processor.save_pretrained(folder / "report")
    return folder / "report"
