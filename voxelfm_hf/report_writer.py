"""From a scan to a written report: the model put together, its prompt, and where its resampler looked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxelfm_hf.cards import PARTS_CONTAINED, PARTS_NAMED
from voxelfm_hf.data.reports.reduction import reduce_report
from voxelfm_hf.files import written_folder
from voxelfm_hf.hub import EMBEDDED, inference_dtype, load, loading, resolve_model, weight_hash
from voxelfm_hf.modeling.configuration_voxelfm_report import VoxelFMReportConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry
from voxelfm_hf.modeling.modeling_voxelfm_report import VoxelFMForReportGeneration
from voxelfm_hf.modeling.processing_voxelfm_report import VoxelFMReportProcessor
from voxelfm_hf.volumes import Volume
from voxelfm_hf.volumes.errors import ModelError

MAX_NEW_TOKENS = 256


@dataclass(frozen=True, eq=False)
class WrittenReport:
    """What was written about a scan.

    Attributes:
        text: As written.
        organs: The same by organ (`ORGANS`), empty where nothing abnormal is stated.
        attention: (D, H, W) attention weights of the resampler on the scan's voxels, a mean over image tokens and
            heads, relative to even attention (1); NaN outside the patch grid. Where the model looked, not why it wrote
            what it wrote.
        notes: What the processor assumed or could not do.
    """

    text: str
    organs: dict[str, tuple[str, ...]]
    attention: np.ndarray | None = None
    notes: tuple[str, ...] = ()


class ReportWriter:
    """A report model with its processor, ready for scans or for features that were computed before.

    Args:
        model: Folder or Hub repository.
        language_model: In place of the one the model names: a folder, a repository, a .gguf file, or a model in memory.
        vision_model: In place of the encoder it names: a folder or repository.
        with_vision_tower: Whether to load the encoder, for scans.
        dtype: "auto" (bfloat16 where the hardware computes in it), float32, bfloat16 or float16.
        device: Where to compute.

    Raises:
        ModelError: encoder or language model are missing, or other ones than the model was trained with.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        language_model: Any = None,
        vision_model: str | Path | None = None,
        with_vision_tower: bool = True,
        dtype: str = "auto",
        device: str = "cpu",
    ):
        folder = resolve_model(model, advice="name the folder of a report model")
        if not (folder / "config.json").is_file():
            raise ModelError(f"{model} has no config.json: it is not a model folder of transformers")
        with loading(model, "a report model"):
            config = VoxelFMReportConfig.from_pretrained(folder)
            if config.model_type != "voxelfm_report" or not hasattr(config, "num_image_tokens"):
                raise ModelError(f"{model} is no report model: train one with voxelfm_hf.training.report")
            options: dict[str, Any] = {
                "dtype": inference_dtype(dtype, torch.device(device)),
                "with_vision_tower": with_vision_tower,
            }
            if with_vision_tower and not config.merged:
                encoder = resolve_model(vision_model or config.base_vision_model or EMBEDDED)
                found = weight_hash(encoder)
                if config.base_vision_hash not in (None, found):
                    raise ModelError(
                        f"{model} was trained on features of {config.base_vision_model} with weights "
                        f"{config.base_vision_hash[:12]}, {encoder.name} has weights {found[:12]}: name the right one "
                        "as --vision-model"
                    )
                options["vision_model"] = load(encoder, dtype=options["dtype"])[0]
            if language_model is not None:
                options["language_model"] = language_model
            self.model = VoxelFMForReportGeneration.from_pretrained(folder, config=config, **options).to(device).eval()
            self.processor = VoxelFMReportProcessor.from_pretrained(folder)
            self.folder = folder
        self.model.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
        self.device = device

    def save_merged(self, out: str | Path) -> None:
        """Writes the model whole, with encoder and language model, the adapter merged into the latter, and its card.

        Args:
            out: Folder, new or empty.
        """
        with written_folder(Path(out)) as folder:
            self.model.save_pretrained(folder, merge=True)
            self.processor.save_pretrained(folder)
            card = self.folder / "README.md"
            if card.is_file():
                text = card.read_text(encoding="utf-8").replace(PARTS_NAMED, PARTS_CONTAINED)
                (folder / "README.md").write_text(text, encoding="utf-8")

    def write(
        self,
        volume: Volume,
        *,
        prior: Sequence[Volume] = (),
        request: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> WrittenReport:
        """The report of a scan.

        Args:
            volume: The scan.
            prior: Earlier scans of the same patient, oldest first.
            request: What the user's turn asks for, in place of the request the model was trained with.
            max_new_tokens: Longest report.

        Raises:
            ReportInputError: the request does not have one `<image>` a scan, or is too long.
        """
        scans = [*prior, volume]
        prompt = self.processor.prompt(request, prior_scans=len(prior))
        prepared = [self.processor.image_processor(scan, return_geometry=True) for scan in scans]
        encoded = [self.model.encode_scans(one["pixel_values"].to(self.device))[0][0] for one in prepared]
        tokens = [scan.float().cpu() for scan in encoded]
        (text,) = self.write_from_tokens([tokens], prompt=prompt, max_new_tokens=max_new_tokens)
        geometry = prepared[-1]["geometry"][0]
        attention = None
        if self.model.config.feature_tokens != "cls":
            attention = patch_map(self.attention(tokens[-1], geometry.grid), geometry, volume.hu.shape)
        notes = tuple(note for one in prepared for note in one["geometry"][0].notes)
        return WrittenReport(text, reduce_report(text), attention, notes)

    def write_from_tokens(
        self,
        scans: Sequence[Sequence[torch.Tensor]],
        *,
        prompt: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> list[str]:
        """One report for every list of scans (tokens (T, C) each, as `scan_tokens` makes them), in one batch."""
        flat = [tokens for one in scans for tokens in one]
        prompts = [prompt or self.processor.prompt(prior_scans=len(one) - 1) for one in scans]
        batch = self.processor(text=prompts, vision_features=flat, scans_each=[len(one) for one in scans])
        batch = batch.to(self.device)
        written = self.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.processor.end_of_turn_id,
            pad_token_id=self.processor.end_of_turn_id,
        )
        return self.processor.decode_answers(written, prompt_length=batch["input_ids"].shape[1])

    def write_all(
        self, scans: Sequence[torch.Tensor], *, batch_size: int = 16, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Iterator[str]:
        """The report of every scan (tokens (T, C)), in order."""
        for start in range(0, len(scans), batch_size):
            part = [[tokens] for tokens in scans[start : start + batch_size]]
            yield from self.write_from_tokens(part, max_new_tokens=max_new_tokens)

    @torch.no_grad()
    def attention(self, tokens: torch.Tensor, grid: Sequence[int]) -> np.ndarray:
        """(d, h, w) attention weights over the patches, a mean over image tokens and heads; 1 is even attention."""
        found = self.model.get_image_features(vision_features=tokens[None].to(self.device), output_attentions=True)
        weights = found.attentions[0][0].mean(0)
        patches = weights[len(weights) - int(np.prod(grid)) :]
        return (patches * len(weights)).reshape(*grid).float().cpu().numpy()


def patch_map(values: np.ndarray, geometry: VoxelFMGeometry, shape: Sequence[int]) -> np.ndarray:
    """Values of patches (d, h, w) on the voxels (D, H, W) they cover, NaN outside; float32."""
    places = []
    for start, stop, patches, size in zip(
        geometry.region_start, geometry.region_stop, geometry.grid, shape, strict=True
    ):
        place = np.floor((np.arange(size) + 0.5 - start) / (stop - start) * patches).astype(int)
        places.append(np.where((place >= 0) & (place < patches), place, patches))
    padded = np.pad(values.astype(np.float32), [(0, 1)] * 3, constant_values=np.nan)
    return padded[np.ix_(*places)]
