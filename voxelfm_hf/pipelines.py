"""transformers pipelines over scan files: `pipeline("ct-classification", model=DIR)("scan.nii.gz")`."""

import os
from typing import Any

from transformers import AutoModel, AutoModelForImageClassification
from transformers.pipelines.base import Pipeline
from transformers.pipelines.image_feature_extraction import ImageFeatureExtractionPipeline

from voxelfm_hf.volumes import read_volume

FEATURES = "ct-feature-extraction"
CLASSIFICATION = "ct-classification"


class CTFeatureExtractionPipeline(ImageFeatureExtractionPipeline):
    """`image-feature-extraction` for CT: the inputs are scan files, DICOM folders or volumes.

    `pool=True` gives the CLS vector (1, C), otherwise all tokens (1, 1 + R + N, C); `return_tensors=True` gives
    tensors in place of nested lists; `image_processor_kwargs` go to the processor.
    """

    # Looked for by default, and guessed from the image processor: the search would ask whether to trust remote code.
    _load_video_processor = False  # type: ignore[assignment]

    def preprocess(self, image, timeout=None, **image_processor_kwargs):
        volume = read_volume(image) if isinstance(image, (str, os.PathLike)) else image
        return self.image_processor(volume, return_tensors="pt", **image_processor_kwargs).to(self.dtype)


class CTClassificationPipeline(Pipeline):
    """Answers of a model with its head about scan files, DICOM folders or volumes.

    An answer is a list with a dictionary a label: `label` and `score`, the calibrated probability, and for labels that
    may occur together `positive`, whether it reaches the label's threshold; sorted by score. A regression gives
    `value`, `unit`, `low` and `high`, a survival `log_risk`.

    `region=(x, y, z, edge)` in LPS mm looks at a cube, as models of regions need; `image_processor_kwargs` go to the
    processor.
    """

    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = True  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]

    def _sanitize_parameters(self, region=None, image_processor_kwargs=None, **unknown):
        if unknown:
            raise TypeError(f"{CLASSIFICATION} takes region and image_processor_kwargs, not {', '.join(unknown)}")
        options = dict(image_processor_kwargs or {})
        return (options if region is None else {"region": region, **options}), {}, {}

    def preprocess(self, image, region=None, **image_processor_kwargs):
        volume = read_volume(image) if isinstance(image, (str, os.PathLike)) else image
        size = (self.model.probe.config.processor or {}).get("region_size")
        if region is None and size is not None:
            raise ValueError("this model needs region=(x, y, z, edge) in LPS mm: it was fitted on regions")
        if region is None:
            return self.image_processor(volume, return_tensors="pt", **image_processor_kwargs)
        if size is None:
            raise ValueError("this model was fitted on whole scans: leave the region out")
        x, y, z, edge = region
        return {"pixel_values": self.image_processor.prepare_region(volume, (x, y, z), edge, size)[0][None]}

    def _forward(self, model_inputs):
        return self.model.predict(model_inputs["pixel_values"])

    def postprocess(self, model_outputs: Any, **unused: Any) -> list[dict[str, Any]]:
        config: Any = self.model.probe.config  # type: ignore[union-attr]
        values = model_outputs.predictions[0].float().tolist()
        answers = [{"label": config.id2label[number]} for number in range(config.num_outputs)]
        kind = config.family.value_name
        _add(answers, kind, values)
        if kind == "value":
            _add(answers, "unit", config.target_unit)
        for name in ("positive", "low", "high"):
            found = model_outputs.get(name)
            _add(answers, name, None if found is None else found[0].tolist())
        return sorted(answers, key=lambda answer: -answer["score"]) if kind == "score" else answers


def _add(answers: list[dict[str, Any]], name: str, values: list | None) -> None:
    for answer, value in zip(answers, values or (), strict=False):
        answer[name] = value


def register_pipelines(registry) -> None:
    """Makes `transformers.pipeline` know the tasks."""
    for task, pipeline_class, model in (
        (FEATURES, CTFeatureExtractionPipeline, AutoModel),
        (CLASSIFICATION, CTClassificationPipeline, AutoModelForImageClassification),
    ):
        if task not in registry.supported_tasks:
            registry.register_pipeline(task, pipeline_class=pipeline_class, pt_model=model, type="image")
