"""A transformers pipeline over scan files: `pipeline("ct-feature-extraction", model=DIR)("scan.nii.gz", pool=True)`."""

import os

from transformers import AutoModel
from transformers.pipelines.image_feature_extraction import ImageFeatureExtractionPipeline

from voxelfm_hf.volumes import read_volume

TASK = "ct-feature-extraction"


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


def register_pipeline(registry) -> None:
    """Makes `transformers.pipeline` know the task."""
    if TASK not in registry.supported_tasks:
        registry.register_pipeline(TASK, pipeline_class=CTFeatureExtractionPipeline, pt_model=AutoModel, type="image")
