"""The card of a trained report model: what it is made of, how it was trained, how it compares with every baseline."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelfm_hf.card_results import model_index
from voxelfm_hf.cards import PARTS_NAMED, report_adapter_card
from voxelfm_hf.files import written_file
from voxelfm_hf.release.folder import PLACEHOLDER

EXAMPLES = 3
LIMITS = (
    "Research on how far a frozen CT encoder carries into text. Findings are scored by rules that read both texts, so "
    "the F1 does not compare with scores of another labeller. Attention weights show where the resampler looked, they "
    "explain nothing."
)
SYNTHETIC_LIMITS = (
    "Trained on synthetic chests and synthetic reports alone: it has never seen a patient, and says nothing useful "
    "about one."
)


def write_report_card(
    folder: Path,
    *,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    table: str,
    examples: Sequence[tuple[str, str, str]],
    synthetic: bool,
    command: str,
) -> None:
    """Writes README.md into a model folder of the training.

    Args:
        folder: With config.json of a trained report model, in the folder of its stage.
        title: Of the benchmark.
        rows: Rows of results.csv.
        table: The results as Markdown.
        examples: (scan, reference, written) of test scans.
        synthetic: Whether the scans are synthetic.
        command: What made the results.
    """
    config = json.loads((folder / "config.json").read_text())
    fit = config["fit"]
    stages = [fit[name] for name in ("stage1", "stage2") if name in fit]
    kind = "synthetic " if synthetic else ""
    hours = sum(stage["hours"] for stage in stages)
    machine = json.loads((folder.parent / "environment.json").read_text())
    first = stages[0]
    settings = {
        "encoder": f"{config['base_vision_model']} (weights {config['base_vision_hash'][:12]}), frozen",
        "language model": config["base_text_model"] + (f" at {r}" if (r := config["base_text_revision"]) else ""),
        "image tokens": config["num_image_tokens"],
        "tokens the resampler reads": config["feature_tokens"].replace("_", " "),
        "resampler width, heads": f"{config['resampler_hidden_size']}, {config['resampler_num_heads']}",
        "places of patches": "yes" if config["position_features"] else "no",
    }
    for stage in stages:
        values = stage["settings"]
        words = (
            f", after {values['word_epochs']:g} word passes" if stage["stage"] == 1 and values["word_epochs"] else ""
        )
        settings[f"stage {stage['stage']}"] = (
            f"{values['epochs']:g} epochs of {stage['pairs']} pairs, {stage['steps']} steps of "
            f"{values['total_batch']}, peak learning rate {values['learning_rate']:g}{words}"
        )
    adapter = [row for row in rows if row["encoder"] == "adapter"]
    left_out = ", ".join(f"{count} {reason}" for reason, count in first["left_out"].items())
    card = report_adapter_card(
        base_models=[name for name in (config["base_vision_model"], config["base_text_model"]) if name.count("/") == 1],
        eval_results=model_index(adapter, dataset_name=title),
        name="VoxelFM report adapter" + (" (synthetic)" if synthetic else ""),
        summary="Resampler, projector and LoRA adapter that let a frozen VoxelFM encoder write the abnormal findings "
        f"of a chest CT through a causal language model. {PARTS_NAMED}",
        command_use=f"voxelfm report chest.nii.gz --model {PLACEHOLDER}",
        code="import voxelfm_hf\nfrom voxelfm_hf.report_writer import ReportWriter\n\n"
        f'print(ReportWriter("{PLACEHOLDER}").write(voxelfm_hf.read_volume("chest.nii.gz")).text)',
        limits=LIMITS,
        notes=[SYNTHETIC_LIMITS] if synthetic else [],
        data=f"{first['pairs']} pairs of a {kind}scan and its {kind}report"
        + (f"; rows left out: {left_out}." if left_out else "."),
        training="Reports are reduced to abnormal findings per organ by rules. Stage 1 trains resampler and projector, "
        "stage 2 those and a LoRA adapter; the loss covers the report and its end alone. Made with:\n\n"
        f"```\n{command}\n```",
        settings=settings,
        cost=f"{hours:.2f} hours of training by {machine['processes']} process(es) on {machine['device']} "
        f"({machine['cpu_cores']} CPU cores, {machine['mixed_precision']}); no other measure was taken.",
        evaluation=f"Made with the command above, on {kind}test scans that no training or choice has seen:",
        scores=table,
        examples=[{"title": scan, "reference": reference, "written": text} for scan, reference, text in examples],
        parts_licences="Encoder and language model keep their own licences.",
    )
    with written_file(folder / "README.md") as path:
        path.write_text(card, encoding="utf-8")
