"""A probe together with its backbone: found by name, checked to belong together, and composed to one model."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from voxelfm_hf.features import set_up_processor
from voxelfm_hf.files import written_folder
from voxelfm_hf.hub import is_local_elsewhere, load, loading, resolve_model, weight_hash, without_bars
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm_classifier import VoxelFMForImageClassification
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.release.folder import PLACEHOLDER
from voxelfm_hf.store import is_feature_store
from voxelfm_hf.volumes.errors import ModelError

# Where a probe comes from, for those that cannot be found or are something else.
FITTED = "name a folder that `voxelfm probe` wrote"


def load_with_probe(
    probe: str | Path, *, model: str | Path | None = None, dtype: torch.dtype | None = None
) -> tuple[VoxelFMProbe, Any, VoxelFMImageProcessor]:
    """A probe, the backbone it was fitted for, and the processor set up as it was then.

    Args:
        probe: Folder or Hub repository of a probe, or of a `VoxelFMForImageClassification`, which holds its backbone.
        model: Folder or Hub repository of the backbone; by default the one the probe names.
        dtype: Of the backbone; by default that of the features of the fit.

    Raises:
        ModelError: the probe or the backbone cannot be found, or it has other weights than the probe was fitted on.
    """
    folder = resolve_model(probe, advice=FITTED)
    if is_classifier(folder):
        composed, processor = open_classifier(folder)
        return composed.probe, composed.voxelfm, processor
    _check_is_probe(probe, folder)
    with loading(probe, "a probe"), without_bars():
        head = VoxelFMProbe.from_pretrained(folder).eval()
    config = head.config
    base = model or config.base_model_name_or_path
    if base is None:
        raise ModelError(f"{probe} does not name its backbone: say which model to use (--model of `voxelfm predict`)")
    if model is None and is_local_elsewhere(base):
        raise ModelError(
            f"{probe} was fitted on features of a local folder named {base}: say where that model is (--model of "
            "`voxelfm predict`, model= in Python)"
        )
    backbone = resolve_model(base)
    try:
        head.check_features(weight_hash(backbone))
    except ValueError as error:
        raise ModelError(str(error)) from None
    network, processor = load(
        backbone, dtype=dtype or getattr(torch, (config.fit or {}).get("features_dtype") or "float32")
    )
    set_up_processor(processor, config.processor)
    return head, network, processor


def load_classifier(
    probe: str | Path, *, model: str | Path | None = None
) -> tuple[VoxelFMForImageClassification, VoxelFMImageProcessor]:
    """Probe and backbone as one model, and its processor: save both to one folder, and it answers by itself.

    Args:
        probe: Folder or Hub repository of a probe, or of such a model.
        model: Folder or Hub repository of the backbone; by default the one the probe names.

    Returns:
        The model in float32 and evaluation mode, and the processor as it was when the probe was fitted.

    Raises:
        ModelError: as in `load_with_probe`, or a probe whose answers are points or maps, or of features made in tiles.
    """
    folder = resolve_model(probe, advice=FITTED)
    if is_classifier(folder):
        return open_classifier(folder)
    head, network, processor = load_with_probe(probe, model=model, dtype=torch.float32)
    if (head.config.processor or {}).get("tile"):
        raise ModelError(f"{probe} is for features made in tiles, which one model cannot make: use `voxelfm predict`")
    try:
        return VoxelFMForImageClassification.from_probe(head, network), processor
    except ValueError as error:
        raise ModelError(f"{probe}: {error}") from None


def save_classifier(probe: str | Path, out: str | Path, *, model: str | Path | None = None) -> Path:
    """Writes probe and backbone as one model: weights, processor, and the card of the probe made to fit.

    Args:
        probe: Folder or Hub repository of a probe with its card.
        out: Folder to write, new or empty.
        model: As in `load_classifier`.

    Raises:
        ModelError: as in `load_classifier`.
    """
    composed, processor = load_classifier(probe, model=model)
    source = resolve_model(probe, advice=FITTED)
    with written_folder(Path(out)) as folder, without_bars():
        composed.save_pretrained(folder)
        processor.save_pretrained(folder)
        for path in (*source.glob("*.png"), *source.glob("LICENSE")):
            shutil.copyfile(path, folder / path.name)
        if (source / "README.md").is_file():
            card = whole_card((source / "README.md").read_text(encoding="utf-8"), composed.probe.config)
            (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(out)


def whole_card(card: str, config: VoxelFMProbeConfig) -> str:
    """The card of a probe for the model that holds its backbone too: how it is called and what it returns differ.

    Args:
        card: Of the probe.
        config: Of the probe.
    """
    card = re.sub(rf"(voxelfm predict SCAN --probe {PLACEHOLDER}) --model \S+", r"\1", card)
    call = 'answers = classify("chest.nii.gz")'
    if (config.processor or {}).get("region_size"):
        call = (
            "# Centre x, y, z and edge of the cube to look at, LPS mm.\n"
            'answers = classify("chest.nii.gz", region=(12.0, -40.0, 310.0, 24.0))'
        )
    code = (
        f"In Python, backbone and head in one:\n\n```python\nimport voxelfm_hf\nfrom transformers import pipeline\n\n"
        f'classify = pipeline("ct-classification", model="{PLACEHOLDER}")\n{call}\n```\n'
    )
    card = re.sub(r"From features of the same backbone:\n+```python\n.*?\n```\n", lambda _: code, card, flags=re.S)
    said = f"`answers` has a dictionary a label: {_answer_keys(config)}. The backbone is"
    return re.sub(r"`answer\.predictions` holds .*?\. The backbone is", lambda _: said, card, count=1, flags=re.S)


def _answer_keys(config: VoxelFMProbeConfig) -> str:
    """What the pipeline says of a label, in words."""
    kind = config.family.value_name
    if kind == "log_risk":
        return "`label`, the event, and `log_risk`, the higher the sooner"
    if kind == "value":
        known = ", its `unit`" if config.target_unit else ""
        limits = "; `low` and `high` are the prediction interval" if config.interval_half_width else ""
        return f"`label`, the target, and `value`{known}{limits}"
    threshold = "" if config.is_single_label else ", and `positive`, whether that reaches the label's threshold"
    return f"`label` and `score`, the calibrated probability{threshold}; the likeliest first"


def is_classifier(folder: Path) -> bool:
    """Whether a model folder holds backbone and head in one."""
    return VoxelFMForImageClassification.__name__ in (_config_of(folder).get("architectures") or [])


def _check_is_probe(name: str | Path, folder: Path) -> None:
    """Refuses a folder that is something else, of which transformers would speak in terms of its own."""
    kind = _config_of(folder).get("model_type")
    if is_feature_store(folder):
        found = "it is a feature store"
    elif not (folder / "config.json").is_file():
        found = "it has no config.json"
    elif kind and kind != VoxelFMProbeConfig.model_type:
        found = f"it is a {kind} model"
    else:
        return
    raise ModelError(f"{name} cannot be loaded as a probe: {found}; {FITTED}")


def _config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder; empty where it cannot be read."""
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def open_classifier(folder: Path) -> tuple[VoxelFMForImageClassification, VoxelFMImageProcessor]:
    """A folder of backbone and head in one; ModelError where it cannot be loaded."""
    with loading(folder, "a probe with its backbone"), without_bars():
        composed = VoxelFMForImageClassification.from_pretrained(folder).eval()
        processor = VoxelFMImageProcessor.from_pretrained(folder)
    set_up_processor(processor, composed.probe.config.processor)
    return composed, processor
