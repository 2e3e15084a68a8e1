"""The report model: image tokens in prompts, generation, saving what was trained, loading it again."""

import copy

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from tests.modeling.small_language_models import small_llama
from voxelfm_hf.modeling.configuration_voxelfm_report import VoxelFMReportConfig
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.modeling.modeling_voxelfm_report import VoxelFMForReportGeneration
from voxelfm_hf.modeling.resampler_voxelfm_report import VoxelFMReportResampler, pad_tokens, scan_tokens
from voxelfm_hf.training.network_options import recompute_activations

IMAGE, QUERIES, WIDTH = 300, 3, 24
VISION = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 4}
logging.disable_progress_bar()


def make_config(text_config, **changes) -> VoxelFMReportConfig:
    settings = {
        "vision_config": VISION,
        "text_config": text_config.to_dict(),
        "num_image_tokens": QUERIES,
        "image_token_id": IMAGE,  # beyond the vocabulary
        "resampler_hidden_size": 16,
        "resampler_num_heads": 2,
        "projector_hidden_size": 16,
    }
    return VoxelFMReportConfig(**settings | changes)


def make_model(language_model=None, **changes) -> VoxelFMForReportGeneration:
    torch.manual_seed(1)
    language_model = language_model or small_llama(120)
    config = make_config(language_model.config, **changes)
    tower = VoxelFMModel(config.vision_config).eval()
    model = VoxelFMForReportGeneration.from_parts(config, language_model=language_model, vision_tower=tower).eval()
    # Image tokens that stand out, so that leaving them out cannot go unnoticed.
    with torch.no_grad():
        model.projector[-1].weight.mul_(20)
        model.resampler.key.weight.mul_(30)
        model.resampler.attention.in_proj_bias.normal_(std=0.1)
        model.resampler.value.bias.normal_(std=0.1)
    return model


@pytest.fixture
def model() -> VoxelFMForReportGeneration:
    return make_model()


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.randn(2, 1, 8, 12, 8, generator=torch.Generator().manual_seed(0))


def prompt(*words: int, images: int = 1) -> list[int]:
    return [1, *[IMAGE] * (QUERIES * images), *words]


@torch.no_grad()
def test_logits_are_those_of_the_language_model_on_hand_made_embeddings(model, volumes):
    ids = torch.tensor([prompt(5, 6), prompt(7, 8)])
    tokens = model.vision_tower(volumes).last_hidden_state
    tokens = torch.cat([tokens[:, :1], tokens[:, 5:]], dim=1)  # CLS and patches, no registers
    keys, values = model.resampler.key(tokens), model.resampler.value(tokens)
    vectors, _ = model.resampler.attention(model.resampler.query.expand(2, -1, -1), keys, values)
    embedded = model.get_input_embeddings()(ids.clamp_max(119))
    embedded[:, 1 : 1 + QUERIES] = model.projector(vectors)
    expected = model.language_model(inputs_embeds=embedded).logits
    torch.testing.assert_close(model(input_ids=ids, pixel_values=volumes).logits, expected)


@torch.no_grad()
def test_features_computed_before_give_what_the_volumes_give(model, volumes):
    ids = torch.tensor([prompt(5), prompt(6)])
    features, mask = model.encode_scans(volumes)
    assert mask is None and features.shape == (2, 1 + 2 * 3 * 2, WIDTH)
    whole = model(input_ids=ids, pixel_values=volumes).logits
    torch.testing.assert_close(model(input_ids=ids, vision_features=features).logits, whole)
    model.vision_tower = None
    torch.testing.assert_close(model(input_ids=ids, vision_features=features).logits, whole)
    with pytest.raises(ValueError, match="encoder is not in memory"):
        model(input_ids=ids, pixel_values=volumes)


@torch.no_grad()
def test_scans_of_different_grids_do_not_disturb_each_other(model):
    small, large = torch.randn(1, 4, 8, 8), torch.randn(1, 12, 8, 8)
    ids = torch.tensor([prompt(5), prompt(6)])
    together = model(input_ids=ids, pixel_values=[small, large]).logits
    for row, volume in enumerate((small, large)):
        alone = model(input_ids=ids[row : row + 1], pixel_values=volume[None]).logits
        torch.testing.assert_close(together[row : row + 1], alone)


@torch.no_grad()
def test_a_left_padded_batch_writes_what_each_prompt_writes_alone(model, volumes):
    rows = [prompt(5, 6, 7, 8, 9), prompt(10)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    settings = {"max_new_tokens": 6, "do_sample": False}
    together = model.generate(input_ids=ids, attention_mask=mask, pixel_values=volumes, **settings)
    for index, row in enumerate(rows):
        alone = model.generate(
            input_ids=torch.tensor([row]), pixel_values=volumes[index : index + 1], **settings
        )  # fmt: skip
        assert together[index, longest:].tolist() == alone[0, len(row) :].tolist()
    other = model.generate(input_ids=ids, attention_mask=mask, pixel_values=volumes.flip(0), **settings)
    assert not torch.equal(other[:, longest:], together[:, longest:])


@torch.no_grad()
def test_the_cache_changes_nothing(model, volumes):
    ids = torch.tensor([prompt(5), prompt(6)])
    settings = {"max_new_tokens": 8, "do_sample": False, "pixel_values": volumes}
    with_cache = model.generate(input_ids=ids, **settings)
    step = ids
    for _ in range(8):
        logits = model(input_ids=step, pixel_values=volumes).logits[:, -1]
        step = torch.cat([step, logits.argmax(-1, keepdim=True)], dim=1)
    assert with_cache.tolist() == step.tolist()


@torch.no_grad()
def test_several_scans_in_one_prompt_keep_their_order_and_beams_encode_each_once(model, volumes):
    ids = torch.tensor([[1, *[IMAGE] * QUERIES, 9, *[IMAGE] * QUERIES, 5]])
    calls = []
    model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    settings = {"max_new_tokens": 5, "do_sample": False}
    greedy = model.generate(input_ids=ids, pixel_values=volumes, **settings)
    beams = model.generate(input_ids=ids, pixel_values=volumes, num_beams=3, **settings)
    assert len(calls) == 2 and greedy.shape == beams.shape
    first, second = (model(input_ids=ids, pixel_values=v).logits for v in (volumes, volumes.flip(0)))
    assert not torch.allclose(first[:, -1], second[:, -1])
    assert torch.allclose(first[:, 0], second[:, 0])


@torch.no_grad()
def test_cls_alone_makes_all_image_tokens_equal_and_patches_do_not(volumes):
    vectors = {
        name: make_model(feature_tokens=name).get_image_features(volumes).pooler_output[0]
        for name in ("cls", "patches", "patches_and_cls")
    }
    torch.testing.assert_close(vectors["cls"], vectors["cls"][:1].expand(QUERIES, -1))
    assert not torch.allclose(vectors["patches"][0], vectors["patches"][1])
    assert not torch.allclose(vectors["patches"], vectors["patches_and_cls"])


@torch.no_grad()
def test_attention_weights_cover_real_tokens_only(model):
    tokens, mask = pad_tokens([torch.randn(4, WIDTH), torch.randn(9, WIDTH)])
    (weights,) = model.get_image_features(vision_features=tokens, vision_mask=mask, output_attentions=True).attentions
    assert weights.shape == (2, QUERIES, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, QUERIES))
    assert (weights[0, :, 4:] == 0).all()


def test_the_loss_is_the_mean_over_labelled_tokens_also_with_few_logits_kept(model, volumes):
    ids = torch.tensor([[*prompt(5, 6), 7, 8, 9], [*prompt(5, 6), 7, 2, 0]])
    labels = torch.tensor([[-100] * 6 + [7, 8, 9], [-100] * 6 + [7, 2, -100]])
    whole = model(input_ids=ids, pixel_values=volumes, labels=labels)
    chances = whole.logits[:, 5:-1].log_softmax(-1)
    targets = labels[:, 6:]
    picked = chances.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)[targets >= 0]
    torch.testing.assert_close(whole.loss, -picked.mean())
    short = model(input_ids=ids, pixel_values=volumes, labels=labels, logits_to_keep=4)
    assert short.logits.shape[1] == 4
    torch.testing.assert_close(short.loss, whole.loss)


def test_wrong_numbers_of_image_tokens_and_wrong_features_are_one_sentence(model, volumes):
    with pytest.raises(ValueError, match="hold 3 image tokens and the scans give 6"):
        model(input_ids=torch.tensor([prompt(5)]), pixel_values=volumes)
    with pytest.raises(ValueError, match="hold 3 image tokens and the scans give 0"):
        model(input_ids=torch.tensor([prompt(5)]))
    with pytest.raises(ValueError, match=r"vision_features must be \(scans, tokens, 24\), got \(1, 4, 23\)"):
        model(input_ids=torch.tensor([prompt(5)]), vision_features=torch.zeros(1, 4, 23))
    model.config.base_vision_hash = "a" * 64
    model.check_features("a" * 64)
    with pytest.raises(ValueError, match="embed the scans with that encoder"):
        model.check_features("b" * 64)


@pytest.fixture
def bases(tmp_path):
    """Folders with an encoder and a language model, and a model trained on them with a LoRA adapter."""
    torch.manual_seed(2)
    language_model = small_llama(120, tie_word_embeddings=True)
    language_model.save_pretrained(tmp_path / "language")
    VoxelFMModel(make_config(language_model.config).vision_config).save_pretrained(tmp_path / "vision")
    names = {"base_text_model": str(tmp_path / "language"), "base_vision_model": str(tmp_path / "vision")}
    model = make_model(language_model, **names, has_adapter=True)
    model.vision_tower = VoxelFMModel.from_pretrained(tmp_path / "vision")
    adapter = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model.language_model.add_adapter(adapter)
    model.resampler.feature_mean.fill_(0.5)
    return tmp_path, model.eval()


@torch.no_grad()
def test_a_saved_folder_holds_what_was_trained_and_comes_together_again(bases, volumes):
    folder, model = bases
    model.save_pretrained(folder / "saved")
    names = {str(path.relative_to(folder / "saved")) for path in (folder / "saved").rglob("*.safetensors")}
    assert names == {"model.safetensors", "language_model_adapter/adapter_model.safetensors"}
    size = sum(path.stat().st_size for path in (folder / "saved").rglob("*.safetensors"))
    assert size < (folder / "language/model.safetensors").stat().st_size
    ids = torch.tensor([prompt(5), prompt(6)])
    expected = model(input_ids=ids, pixel_values=volumes).logits
    again = AutoModelForImageTextToText.from_pretrained(folder / "saved")
    assert type(again) is VoxelFMForReportGeneration and not again.training
    torch.testing.assert_close(again(input_ids=ids, pixel_values=volumes).logits, expected, rtol=0, atol=0)
    light = VoxelFMForReportGeneration.from_pretrained(folder / "saved", with_vision_tower=False)
    features, _ = model.encode_scans(volumes)
    torch.testing.assert_close(light(input_ids=ids, vision_features=features).logits, expected)


@torch.no_grad()
def test_a_merged_folder_needs_nothing_else(bases, volumes):
    folder, model = bases
    ids = torch.tensor([prompt(5), prompt(6)])
    expected = model(input_ids=ids, pixel_values=volumes).logits
    model.save_pretrained(folder / "merged", merge=True)
    for name in ("language", "vision"):
        (folder / name).rename(folder / f"away-{name}")
    again = AutoModelForImageTextToText.from_pretrained(folder / "merged")
    assert not any("lora" in name for name, _ in again.named_parameters())
    torch.testing.assert_close(again(input_ids=ids, pixel_values=volumes).logits, expected)
    tied = again.language_model
    assert tied.lm_head.weight.data_ptr() == tied.model.embed_tokens.weight.data_ptr()


def test_missing_and_wrong_bases_are_one_sentence(bases):
    folder, model = bases
    model.save_pretrained(folder / "saved")
    (folder / "language").rename(folder / "away")
    with pytest.raises(ValueError, match="language model .*language is neither a folder .*hf download"):
        VoxelFMForReportGeneration.from_pretrained(folder / "saved")
    with pytest.raises(ValueError, match="has vocab_size 60 and the report model was trained with 120"):
        VoxelFMForReportGeneration.from_pretrained(folder / "saved", language_model=small_llama(60))
    (folder / "vision").rename(folder / "away-vision")
    with pytest.raises(ValueError, match="vision encoder .* is neither a folder"):
        VoxelFMForReportGeneration.from_pretrained(folder / "saved", language_model=str(folder / "away"))


@torch.no_grad()
def test_other_language_models_speak_too(volumes):
    torch.manual_seed(0)
    text = Qwen3Config(
        vocab_size=90, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = make_model(Qwen3ForCausalLM(text))
    ids = torch.tensor([prompt(5), prompt(6)])
    assert model.generate(input_ids=ids, pixel_values=volumes, max_new_tokens=4, do_sample=False).shape == (2, 9)


def test_gradients_reach_the_projector_through_a_frozen_checkpointed_language_model(model, volumes):
    model.language_model.requires_grad_(False)
    ids = torch.tensor([[*prompt(5), 7, 8]])
    labels = torch.tensor([[-100] * 5 + [7, 8]])
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            recompute_activations(model.language_model)
            model.language_model.train()
        model.zero_grad()
        model(input_ids=ids, pixel_values=volumes[:1], labels=labels, use_cache=False).loss.backward()
        gradients.append(model.resampler.query.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)
    assert all(parameter.grad is None for parameter in model.language_model.parameters())
    assert all(parameter.grad is None for parameter in model.vision_tower.parameters())


def test_impossible_configurations_are_refused():
    text = small_llama(120).config
    for wrong, sentence in (
        ({"feature_tokens": "all"}, "feature_tokens must be one of"),
        ({"num_image_tokens": 0}, "num_image_tokens must be at least 1"),
        ({"resampler_num_heads": 3}, "multiple of resampler_num_heads"),
    ):
        with pytest.raises(Exception, match=sentence):
            make_config(text, **wrong)


@torch.no_grad()
def test_places_of_patches_reach_the_resampler_from_volumes_as_from_features(volumes):
    model = make_model(position_features=True)
    features, _ = model.encode_scans(volumes)
    assert features.shape[-1] == WIDTH + 3
    places = features[0, 1:, WIDTH:].reshape(2, 3, 2, 3)
    torch.testing.assert_close(places[1, 2, 0], torch.tensor([0.5, 2 / 3, -0.5]))
    assert (features[:, 0, WIDTH:] == 0).all()
    moved = features.clone()
    moved[:, 1:, WIDTH:] *= -1
    first, second = (torch.stack(model.get_image_features(vision_features=f).pooler_output) for f in (features, moved))
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match="scans, tokens, 27"):
        model.get_image_features(vision_features=features[..., :WIDTH])


@torch.no_grad()
def test_heads_start_at_places_spread_through_the_grid():
    torch.manual_seed(0)
    config = make_config(
        small_llama(120).config,
        position_features=True,
        num_image_tokens=4,
        resampler_hidden_size=64,
        feature_tokens="patches",
    )
    resampler = VoxelFMReportResampler(config)
    resampler.query.zero_()
    resampler.spread_over_places()
    tokens = scan_tokens(None, torch.randn(1, 8**3, WIDTH), feature_tokens="patches", grid=(8, 8, 8))
    places, centres = tokens[0, :, WIDTH:], []
    starts = 2 * torch.quasirandom.SobolEngine(3).draw(8) - 1
    for query in range(4):
        for head in range(2):
            one = resampler.attention.out_proj.weight.new_zeros(4, 64)
            one[query, head * 32 : head * 32 + 32] = resampler.query[query, head * 32 : head * 32 + 32]
            only = copy.deepcopy(resampler)
            only.query.copy_(one)
            weights = only(tokens, with_attention=True)[1][0, query]
            # The other head, now without a query, attends evenly.
            weights = 2 * weights - 1 / 512
            centres.append(places[weights.argmax()])
            # The stated score: 1.5 times the sum of the cosines of half, one and two waves of the way to its place.
            way = torch.pi * (places - starts[2 * query + head])
            scores = 1.5 * sum(torch.cos(wave * way) for wave in (0.5, 1, 2)).sum(-1)
            torch.testing.assert_close(weights, scores.softmax(0), rtol=1e-3, atol=1e-6)
            near = (places - centres[-1]).abs().max(1).values < 0.4
            assert weights[near].sum() > 0.6
    distances = torch.cdist(torch.stack(centres), torch.stack(centres)) + 9 * torch.eye(8)
    assert distances.min() > 0.3
    narrow = VoxelFMReportResampler(make_config(small_llama(120).config, position_features=True))
    narrow.query.zero_()
    narrow.spread_over_places()
    assert (narrow.query == 0).all()
