"""Models by name: folders, repositories on a loopback Hub, the published checkpoint converted once."""

import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from tests.library.loopback_hub import hub_environment, loopback_hub
from voxelfm_hf import VoxelFMProbe, load, load_classifier, save_classifier
from voxelfm_hf.hub import weight_hash
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.probe_model import load_with_probe
from voxelfm_hf.volumes.errors import ModelError

PRINT_HASH = (
    "import sys, torch, voxelfm_hf\n"
    "model, processor = voxelfm_hf.load(sys.argv[1])\n"
    "torch.manual_seed(0)\n"
    "volume = torch.randn(1, 1, *[2 * model.config.patch_size] * 3)\n"
    "print(model(volume).pooler_output.double().sum().item(), processor.patch_size, model.training)\n"
)


def run(code, *arguments, environment):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_published_checkpoint_is_fetched_and_converted_once(parity, tmp_path):
    source = parity / "backbone" / "mlp_p14"
    repository = tmp_path / "repository"
    (repository / "vitb_3d" / "checkpoints").mkdir(parents=True)
    shutil.copy(source / "checkpoint.pth", repository / "vitb_3d" / "checkpoints" / "99999.pth")
    shutil.copy(source / "config.yaml", repository / "vitb_3d" / "config.yaml")
    (repository / "other.bin").write_bytes(b"not needed")
    with loopback_hub({"rmaguado/VoxelFM": repository}) as hub:
        environment = hub_environment(hub, tmp_path / "home")
        first = run(PRINT_HASH, "rmaguado/VoxelFM", environment=environment)
        assert not any("other.bin" in path for path in hub.asked)
        commit = next(iter(hub.repositories["rmaguado/VoxelFM"].commits))
        converted = list((tmp_path / "home" / "voxelfm").rglob("model.safetensors"))
        assert len(converted) == 1 and converted[0].parent.name == f"{commit}-1"
        written = converted[0].stat().st_mtime_ns
        assert run(PRINT_HASH, "rmaguado/VoxelFM", environment=environment) == first
        assert converted[0].stat().st_mtime_ns == written
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    assert run(PRINT_HASH, "rmaguado/VoxelFM", environment=offline) == first
    assert first.endswith("14 False")


def test_repository_in_transformers_format(small_model, tmp_path):
    with loopback_hub({"user/small": small_model}) as hub:
        environment = hub_environment(hub, tmp_path / "home")
        remote = run(PRINT_HASH, "user/small", environment=environment)
        assert any(path.endswith("model.safetensors") for path in hub.asked)
        backbone = run(
            "import torch, voxelfm_hf\n"
            "from transformers import AutoBackbone\n"
            "backbone = AutoBackbone.from_pretrained('user/small')\n"
            "print(type(backbone).__name__, tuple(backbone(torch.zeros(1, 1, 16, 16, 24)).feature_maps[0].shape))\n",
            environment=environment,
        )
    assert backbone == "VoxelFMBackbone (1, 36, 2, 2, 3)"
    assert remote == run(PRINT_HASH, str(small_model), environment={**environment, "HF_HUB_OFFLINE": "1"})


def test_names_that_cannot_be_loaded_are_one_sentence(tmp_path, small_model):
    (tmp_path / "file.pth").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    shutil.copy(small_model / "config.json", tmp_path / "broken")
    for name, message in [
        (tmp_path / "file.pth", "voxelfm convert"),
        (tmp_path / "folder", "no config.json"),
        (tmp_path / "broken", "cannot be loaded"),
        ("user/nobody", "cache"),
        ("a/b/c", "neither"),
    ]:
        with pytest.raises(ModelError, match=message) as error:
            load(name)
        assert "\n" not in str(error.value)


def test_damaged_weights_and_adapters_are_one_sentence(tmp_path, small_model):
    shutil.copytree(small_model, tmp_path / "short")
    weights = tmp_path / "short" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])  # a download that broke off
    for name in ("unreadable", "incomplete"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(bytes(50))
    (tmp_path / "unreadable" / "adapter_config.json").write_text("{bad")
    (tmp_path / "incomplete" / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny"}')
    for use in (load, weight_hash, load_with_probe):
        with pytest.raises(ModelError, match="damaged weights|cannot be loaded"):
            use(tmp_path / "short")
    with pytest.raises(ModelError, match="short holds damaged weights .*download it again"):
        load(tmp_path / "short")
    for name in ("unreadable", "incomplete"):
        with pytest.raises(ModelError, match="cannot be loaded as LoRA adapters"):
            load(tmp_path / name)


def test_our_loading_shows_no_bars_and_leaves_those_of_the_user(small_model, tmp_path):
    width = AutoConfig.from_pretrained(small_model).hidden_size
    config = VoxelFMProbeConfig(
        task="classification", head="linear", feature_size=width, id2label={0: "sick", 1: "ill"}
    )
    config.base_model_hash = weight_hash(small_model)
    VoxelFMProbe(config).save_pretrained(tmp_path / "probe")
    shown = []

    def remember(factory, args, kwargs):
        shown.append(kwargs.get("desc"))
        return factory(*args, **kwargs)

    before = logging.set_tqdm_hook(remember)
    try:
        load(small_model)
        load_with_probe(tmp_path / "probe", model=small_model)
        save_classifier(tmp_path / "probe", tmp_path / "whole", model=small_model)
        load_classifier(tmp_path / "whole")
        assert shown == []
        AutoModel.from_pretrained(small_model)
        assert shown == ["Loading weights"]
    finally:
        logging.set_tqdm_hook(before)


def test_weight_hash_sees_every_value_but_not_the_file_layout(small_model, tmp_path):
    from voxelfm_hf import VoxelFMModel

    model = VoxelFMModel.from_pretrained(small_model)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert weight_hash(tmp_path / "sharded") == weight_hash(small_model)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    assert weight_hash(tmp_path / "changed") != weight_hash(small_model)


def test_pipeline_takes_files(small_model, scan_folder):
    from transformers import pipeline

    extract = pipeline("ct-feature-extraction", model=str(small_model), device="cpu")
    one = extract(str(scan_folder / "a.nii.gz"), pool=True, return_tensors=True)
    both = extract([str(scan_folder / "series"), str(scan_folder / "sub" / "b.nii.gz")], pool=True, return_tensors=True)
    assert one.shape == (1, 36) and torch.equal(both[0], one) and torch.equal(both[1], one)
    tokens = extract(str(scan_folder / "a.nii.gz"), image_processor_kwargs={"max_patches": 8}, return_tensors=True)
    assert tokens.shape[1] <= 5 + 8
