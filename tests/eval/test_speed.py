"""The yardsticks of the speed measurements compute the same thing as what they are compared with."""

import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from voxelfm_hf import memory
from voxelfm_hf.command import typer_main
from voxelfm_hf.eval.speed import model as speed_model
from voxelfm_hf.eval.speed import prepare as speed_prepare
from voxelfm_hf.eval.speed import timing
from voxelfm_hf.eval.speed.__main__ import app
from voxelfm_hf.modeling.background_voxelfm import background_box
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel


@pytest.fixture()
def small_base_model(monkeypatch):
    """Two narrow blocks in place of the published base model."""
    config = VoxelFMConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
    monkeypatch.setattr(speed_model, "VoxelFMConfig", lambda **changes: config)


@torch.no_grad()
def test_eager_twin_computes_the_same_features(small_base_model):
    model = speed_model.base_model(torch.float32)
    twin = speed_model.eager_twin(model)
    assert isinstance(model, VoxelFMModel) and model.config._attn_implementation == "sdpa"
    assert twin.config._attn_implementation == "eager"
    assert type(twin.embeddings.patch_embeddings) is torch.nn.Conv3d
    volume = speed_model.volume_of(12, model, torch.float32)
    torch.testing.assert_close(twin(volume).last_hidden_state, model(volume).last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("patches", "grid"), [(512, (8, 8, 8)), (4096, (16, 16, 16)), (25000, (25, 25, 40)), (7, (1, 1, 7))]
)
def test_patch_grid_is_exact_and_compact(patches, grid):
    assert speed_model.patch_grid(patches) == grid
    assert math.prod(grid) == patches


def test_profile_counts_products_and_attention_apart(small_base_model):
    shares = speed_model.time_by_operator("bf16", 27)
    assert sum(shares.values()) == pytest.approx(1)
    assert any("scaled_dot_product" in name for name in shares)
    outside = speed_model.share_outside_products(
        {"aten::addmm": 0.5, "aten::copy_": 0.2, "aten::bmm": 0.2, "aten::add": 0.1}
    )
    assert outside == pytest.approx(0.3)
    assert 0 < speed_model.share_outside_products(shares) < 1


def test_published_preparation_is_ours_slowly():
    rng = np.random.default_rng(0)
    hu = np.full((30, 50, 60), -1000, np.int16)
    hu[4:26, 8:44, 6:50] = rng.integers(-1500, 2500, (22, 36, 44))
    processor = VoxelFMImageProcessor(patch_size=4, max_patches=500)
    theirs = speed_prepare.published_preparation(hu, (2.0, 1.0, 1.0), processor)
    ours = processor(hu, spacing=(2.0, 1.0, 1.0))["pixel_values"]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert speed_prepare.dense_box(hu) == background_box(hu)


def test_interleaved_seconds_take_turns():
    calls = []
    seconds = timing.interleaved_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"} and min(seconds.values()) >= 0


def test_peak_memory_is_that_of_the_process_itself():
    here = memory.peak_memory_bytes()
    assert 1e6 < timing.in_fresh_process(memory.peak_memory_bytes) < here - 1e7


@pytest.mark.parametrize(
    ("command", "expected"), [("background", "background box, 40x60x60"), ("prepare", "whole preparation")]
)
def test_command_prints_one_line_a_comparison(command, expected):
    result = CliRunner().invoke(app, [command, "--shape", "40", "60", "60", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    assert expected in result.output and "ratio" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize("rows", [200, 12_000])
def test_search_finds_the_nearest_while_it_is_timed(rows):
    done = CliRunner().invoke(app, ["search", "--rows", str(rows), "--queries", "5", "--width", "144"])
    assert done.exit_code == 0, done.output
    assert f"search, {rows} rows of width 144" in done.output
    share = float(done.output.split("% of the ten nearest")[0].rsplit(" ", 1)[-1])
    assert share > (99.9 if rows == 200 else 80)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("words", [["model", "--patches", "8"], ["memory", "--patches", "8"], ["train"]])
def test_a_gpu_that_is_not_there_is_said_in_one_sentence(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["speed", *words, "--device", "cuda"])
    assert typer_main(app, "speed")() == 2
    assert capsys.readouterr().err.strip() == (
        "voxelfm: --device cuda needs a GPU that torch can use, and there is none."
    )
