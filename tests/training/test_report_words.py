"""Passes over the words of reports: what is learned, that it is learned once, and that a stopped run is the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.eval.report_world import WIDTH, write_bases, write_data
from voxelfm_hf.modeling.modeling_voxelfm_report import VoxelFMForReportGeneration
from voxelfm_hf.recipes import load_recipe
from voxelfm_hf.training.report import parts as report_parts
from voxelfm_hf.training.report.recipe import ReportRecipe, StageSettings
from voxelfm_hf.training.report.stages import train_reports
from voxelfm_hf.training.report.words import WordHead, with_noise, word_targets


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_bases(folder)
    write_data(folder, scans=80)
    return folder


def make_recipe(world, out, **stage) -> ReportRecipe:
    recipe = load_recipe(world / "training.yaml", ReportRecipe)
    changes = {
        "word_epochs": 30,
        "word_learning_rate": 1e-2,
        "word_batch_size": 4,
        "total_batch": 4,
        "batch_size": 4,
    } | stage
    return replace(
        recipe,
        data=replace(recipe.data, reports=str(world / "labels.csv"), store=str(world / "store")),
        model=replace(recipe.model, position_features=True, resampler_dropout=0.0),
        stage1=replace(recipe.stage1, **changes),
        output_dir=str(out),
    )


def test_image_tokens_tell_the_words_of_unseen_scans(world, tmp_path, caplog):
    caplog.set_level("INFO")
    # A language model stage so short and slow that it changes nothing.
    train_reports(make_recipe(world, tmp_path, epochs=0.1, learning_rate=1e-9, min_learning_rate=1e-9), stage=1)
    losses = [float(record.message.split()[-1]) for record in caplog.records if record.message.startswith("words: ")]
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]
    model = VoxelFMForReportGeneration.from_pretrained(tmp_path / "stage1/model", with_vision_tower=False)
    draws = np.random.default_rng(5)
    vectors = []
    for findings in ((0, 0), (1, 1)):
        grid = draws.normal(size=(6, WIDTH))
        grid[:, :16] += np.tile(6 * np.array(findings) - 3, 8)
        scan = torch.tensor(np.concatenate([grid, np.zeros((6, 3))], 1)).float()
        vectors.append(model.get_image_features(vision_features=scan[None]).pooler_output[0].detach())
    norms = torch.stack(vectors).norm(dim=-1).mean(), model.get_input_embeddings().weight.detach().norm(dim=-1).mean()
    assert float(norms[0]) == pytest.approx(float(norms[1]), rel=0.5)
    assert not torch.allclose(*vectors, atol=1e-2)


def test_a_run_that_stopped_after_the_words_goes_on_with_the_same_bits(world, tmp_path, monkeypatch):
    straight = train_reports(make_recipe(world, tmp_path / "straight", word_epochs=1), stage=1)

    def stopped(*arguments, **named):
        raise KeyboardInterrupt

    recipe = make_recipe(world, tmp_path / "stopped", word_epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(report_parts, "learning_rate", stopped)  # asked for after the words
        with pytest.raises(KeyboardInterrupt):
            train_reports(recipe, stage=1)
    monkeypatch.setattr(report_parts, "learn_words", stopped)
    resumed = train_reports(recipe, stage=1)
    one, two = (load_file(folder / "model.safetensors") for folder in (straight, resumed))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    logs = [(tmp_path / name / "stage1/log.jsonl").read_text() for name in ("straight", "stopped")]
    assert logs[0] == logs[1] and logs[0]


def test_words_that_tell_reports_apart_are_chosen():
    rows = [[-100, 1, 2, 9], [-100, 1, 3, 9], [1, 2, 9], [1, 3, 9]]
    words, targets = word_targets(rows)
    assert words.tolist() == [2, 3] and targets.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_logits_of_words(tokens):
    rng = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 8, generator=rng) + 5 * torch.randn(8, generator=rng)
    frequencies = torch.tensor([0.1, 0.5, 0.8])
    head = WordHead(embeddings, frequencies)
    centred = embeddings - embeddings.mean(0)
    # What lies across all words says nothing: the shares of reports remain, however many image tokens there are.
    across = torch.linalg.svd(centred).Vh[-1]
    torch.testing.assert_close(head(across.repeat(2, tokens, 1)).sigmoid(), frequencies.repeat(2, 1))
    # One token along a word, the others across: log-mean-exp of scaled cosines about the mean word.
    vectors = torch.stack([3 * centred[1], *[across] * (tokens - 1)])[None]
    cosines = torch.nn.functional.cosine_similarity(centred[1][None], centred)
    mean = ((10 * cosines).exp() + tokens - 1) / tokens
    torch.testing.assert_close(head(vectors)[0], mean.log() + torch.logit(frequencies))


def test_noise_leaves_coordinates_alone_and_has_the_size_asked_for():
    tokens = torch.zeros(4, 5000, 5)
    scale = torch.tensor([1.0, 10.0])
    noisy = with_noise(tokens, scale, StageSettings(feature_noise=0.1))
    assert (noisy[..., 2:] == 0).all()
    torch.testing.assert_close(noisy[..., :2].std((0, 1)), torch.tensor([0.1, 1.0]), rtol=0.05, atol=0)
    assert with_noise(tokens, scale, StageSettings(feature_noise=0.0)) is tokens
    rare = with_noise(tokens, scale, StageSettings(feature_noise=0.1, feature_noise_probability=0.0))
    assert (rare == 0).all()
