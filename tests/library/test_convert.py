"""The converter: every published key has its place, and what does not fit is named."""

import shutil

import pytest
import torch
import yaml

from voxelfm_hf import load
from voxelfm_hf.convert import convert_checkpoint
from voxelfm_hf.volumes.errors import ModelError, VoxelFMError


@pytest.fixture
def published(parity, tmp_path):
    folder = tmp_path / "published"
    shutil.copytree(parity / "backbone" / "mlp_p14", folder)
    return folder


def convert(folder, out):
    return convert_checkpoint(folder / "checkpoint.pth", folder / "config.yaml", out)


def change(folder, edit):
    content = torch.load(folder / "checkpoint.pth", weights_only=True)
    edit(content)
    torch.save(content, folder / "checkpoint.pth")


@pytest.mark.parametrize("case", ["mlp_p14", "swiglu_p7", "rope_p8"])
def test_every_published_tensor_is_used(parity, tmp_path, case):
    source = parity / "backbone" / case
    model, _ = load(convert_checkpoint(source / "checkpoint.pth", source / "config.yaml", tmp_path / "out"))
    teacher = torch.load(source / "checkpoint.pth", weights_only=True)["teacher"]
    published = {k: v for k, v in teacher.items() if "head" not in k and "periods" not in k}
    assert sum(v.numel() for v in published.values()) == sum(p.numel() for p in model.parameters())
    assert sum(v.double().sum() for v in published.values()) == pytest.approx(
        sum(p.double().sum().item() for p in model.parameters()), rel=1e-9
    )


def test_the_folder_holds_code_and_no_training_configuration(published, tmp_path):
    out = convert(published, tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_voxelfm.py"} <= names
    assert "config.yaml" not in names and not [n for n in names if n.endswith(".pth")]
    _, processor = load(out)
    assert (processor.image_mean, processor.image_std, processor.hu_range) == (-573.8, 461.3, [-1000.0, 1900.0])


def test_missing_unexpected_and_misshapen_keys_are_named(published, tmp_path):
    def edit(content):
        teacher = content["teacher"]
        del teacher["backbone.blocks.1.norm1.weight"]
        teacher["backbone.extra.weight"] = torch.zeros(3)
        teacher["backbone.blocks.2.attn.qkv.weight"] = torch.zeros(9, 72)

    change(published, edit)
    with pytest.raises(ModelError) as error:
        convert(published, tmp_path / "out")
    text = str(error.value)
    assert "missing: layers.1.norm1.weight;" in text
    assert "unexpected: extra.weight;" in text
    assert "wrongly shaped: blocks.2.attn.qkv.weight (9, 72)" in text
    assert not (tmp_path / "out").exists()


def test_periods_of_another_base_are_refused(published, tmp_path):
    settings = yaml.safe_load((published / "config.yaml").read_text())
    settings["student"]["rope_base"] = 50.0
    (published / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ModelError, match="rope_embed.periods"):
        convert(published, tmp_path / "out")


def test_multi_resolution_crops_and_ddp_prefixes(published, tmp_path):
    settings = yaml.safe_load((published / "config.yaml").read_text())
    settings["crops"]["global_crops_size"] = [[28, 28, 28], [56, 56, 56]]
    (published / "config.yaml").write_text(yaml.safe_dump(settings))
    change(published, lambda c: c.update(teacher={f"module.{k}": v for k, v in c["teacher"].items()}))
    model, _ = load(convert(published, tmp_path / "out"))
    assert model.config.image_size == 56


class Payload:
    """Would run code when unpickled without weights_only."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_bad_files_are_one_sentence(published, tmp_path):
    def fails(message):
        with pytest.raises(ModelError, match=message) as error:
            convert(published, tmp_path / "out")
        assert "\n" not in str(error.value)

    torch.save({"teacher": Payload()}, published / "checkpoint.pth")
    fails("plain tensors")
    torch.save({"student": {}}, published / "checkpoint.pth")
    fails("no entry `teacher`")
    (published / "checkpoint.pth").write_bytes(b"PK\x03\x04 cut off")
    fails("cannot be read")
    (published / "checkpoint.pth").unlink()
    fails("does not exist")
    for text, message in [("student: [", "YAML"), ("a: 1", "no section"), ("student: {embed_dim: 5}", "KeyError")]:
        (published / "config.yaml").write_text(text)
        fails(message)
    (published / "config.yaml").unlink()
    fails("does not exist")


def test_a_folder_in_use_is_not_overwritten(published, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(VoxelFMError, match="exists already"):
        convert(published, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "precious"
