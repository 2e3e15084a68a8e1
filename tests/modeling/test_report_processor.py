"""Prompts with scans, and what of an answer is learned, token by token for three kinds of chat template."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from tests.modeling.small_language_models import (
    BRACKETS,
    CHATML,
    PLAIN,
    TEMPLATES,
    byte_tokenizer,
    sentencepiece_tokenizer,
)
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.processing_voxelfm_report import ReportInputError, VoxelFMReportProcessor


def make_processor(tokenizer, **settings) -> VoxelFMReportProcessor:
    images = VoxelFMImageProcessor(patch_size=4, max_patches=60, background_kernel=5)
    return VoxelFMReportProcessor(images, tokenizer, **{"num_image_tokens": 2, "request": "Report?"} | settings)


EXPECTED = {
    "chatml": ("<|im_start|>user\n<image>\nReport?<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "brackets": ("<s>[INST] <image>\nReport? [/INST]", "</s>"),
    "plain": ("user: <image>\nReport?\nassistant: ", "</s>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_answer_and_the_token_that_ends_it_are_learned(name):
    processor = make_processor(byte_tokenizer(TEMPLATES[name]))
    prompt, end = EXPECTED[name]
    assert processor.prompt() == prompt
    answer = "No effusion."
    ids, labels = processor.encode_pair(processor.prompt(), answer)
    tokens = processor.tokenizer.convert_ids_to_tokens(ids)
    written = [*answer.replace(" ", "Ġ"), end]  # every letter is a token of this tokenizer
    assert tokens[-len(written) :] == written
    assert [token for token, label in zip(tokens, labels, strict=True) if label != -100] == written
    assert labels[-len(written) :] == ids[-len(written) :]
    assert set(labels[: -len(written)]) == {-100}
    before = processor.tokenizer.decode(ids[: -len(written)])
    assert before == prompt.replace("<image>", "<image><image>")


def test_no_token_spans_prompt_and_answer():
    # ": " and "N" would join if prompt and answer were one text; at generation the prompt ends before the answer.
    tokenizer = byte_tokenizer(PLAIN, merges=(("N", "o"), ("Ġ", "No")))
    processor = make_processor(tokenizer)
    assert "ĠNo" in tokenizer.convert_ids_to_tokens(tokenizer("assistant: No")["input_ids"])
    ids, labels = processor.encode_pair(processor.prompt(), "No")
    asked = processor(text=processor.prompt(), vision_features=[np.zeros((3, 5))])["input_ids"][0].tolist()
    assert ids[: len(asked)] == asked
    learned = [label for label in labels if label != -100]
    assert tokenizer.convert_ids_to_tokens(learned) == ["No", "</s>"]


def test_a_tokenizer_that_marks_words_learns_the_answer_and_eos():
    tokenizer = sentencepiece_tokenizer(["No", "effusion"])
    processor = make_processor(tokenizer)
    ids, labels = processor.encode_pair(processor.prompt(), "No effusion.")
    learned = [label for label in labels if label != -100]
    assert tokenizer.decode(learned, skip_special_tokens=True) == "No effusion."
    assert learned[-1] == tokenizer.eos_token_id and ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_the_end_is_learned_where_pad_is_eos():
    tokenizer = byte_tokenizer(BRACKETS)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    _, labels = make_processor(tokenizer).encode_pair(make_processor(tokenizer).prompt(), "Clear")
    assert labels[-1] == tokenizer.eos_token_id


def test_batches_are_padded_on_the_left_and_keep_their_scans():
    processor = make_processor(byte_tokenizer())
    prompts = [processor.prompt("Short."), processor.prompt("A much longer request.")]
    features = [np.ones((3, 5)), np.full((4, 5), 2.0)]
    batch = processor(text=prompts, vision_features=features)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert set(batch["attention_mask"].flatten().tolist()) == {0, 1}
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist())
    kept = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    assert kept.tolist() == processor.encode_prompt(prompts[0])
    assert batch["vision_mask"].tolist() == [[True] * 3 + [False], [True] * 4]
    assert (batch["vision_features"][1] == 2).all()


def test_volumes_become_pixel_values_as_by_the_image_processor():
    processor = make_processor(byte_tokenizer())
    hu = np.random.default_rng(0).integers(-1000, 1000, (12, 16, 12)).astype(np.int16)
    batch = processor(hu, spacing=(2.0, 2.0, 2.0))
    expected = processor.image_processor(hu, spacing=(2.0, 2.0, 2.0))["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)
    assert (batch["input_ids"] == processor.image_token_id).sum() == 2


def test_prior_scans_stand_before_the_current_one():
    processor = make_processor(byte_tokenizer())
    prompt = processor.prompt(prior_scans=1)
    assert "Prior scan 1: <image>\nCurrent scan: <image>\nReport?" in prompt
    batch = processor(text=prompt, vision_features=[np.ones((3, 5)), np.ones((3, 5))])
    assert (batch["input_ids"] == processor.image_token_id).sum() == 4
    with pytest.raises(ReportInputError, match="do not use up"):
        processor(text=[prompt, prompt], vision_features=[np.ones((3, 5))] * 3, scans_each=[2, 2])


def test_bad_prompts_and_reports_are_one_sentence():
    processor = make_processor(byte_tokenizer())
    with pytest.raises(ReportInputError, match="the prompt has no <image> and there is 1 scan: write one"):
        processor(text="Describe.", vision_features=[np.ones((3, 5))])
    with pytest.raises(ReportInputError, match="the prompt has 2 <image> and there is 1 scan"):
        processor(text=processor.prompt("<image> <image>"), vision_features=[np.ones((3, 5))])
    with pytest.raises(ReportInputError, match="the report is empty"):
        processor.encode_pair(processor.prompt(), " \n")
    with pytest.raises(ReportInputError, match="the report holds <image>"):
        processor.encode_pair(processor.prompt(), "See <image>.")
    with pytest.raises(ReportInputError, match="the report takes 2001 tokens .* more than the 1024 of max_length"):
        processor.encode_pair(processor.prompt(), "x" * 2000)
    with pytest.raises(ReportInputError, match="the tokenizer has no chat template"):
        make_processor(byte_tokenizer(None)).prompt()
    with pytest.raises(ReportInputError, match="no system turn here.*leave the system prompt empty"):
        make_processor(byte_tokenizer(BRACKETS), system_prompt="You report.").prompt()
    assert "You report." in make_processor(byte_tokenizer(CHATML), system_prompt="You report.").prompt()


def test_a_saved_processor_comes_back_with_its_settings(tmp_path):
    processor = make_processor(byte_tokenizer(), system_prompt="You report.", max_length=77)
    processor.save_pretrained(tmp_path)
    again = VoxelFMReportProcessor.from_pretrained(tmp_path)
    for name in ("num_image_tokens", "image_token", "image_token_id", "request", "system_prompt", "max_length"):
        assert getattr(again, name) == getattr(processor, name)
    assert again.prompt() == processor.prompt() and again.end_of_turn_id == processor.end_of_turn_id
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    pair = processor.encode_pair(processor.prompt(), "Clear lungs.")
    assert again.encode_pair(again.prompt(), "Clear lungs.") == pair
    assert type(AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)) is VoxelFMReportProcessor
