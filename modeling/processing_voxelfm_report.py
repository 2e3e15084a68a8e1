"""From scans, a request and a report to the inputs of the report model: chat prompt, image tokens, labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from .resampler_voxelfm_report import pad_tokens

REQUEST = "Describe the abnormal findings of this chest CT by organ."
IGNORED = -100
_ANSWER = "ANSWER-OF-THE-ASSISTANT"


class ReportInputError(ValueError):
    """A prompt, report or tokenizer that the report model cannot take, in one sentence."""


class VoxelFMReportProcessor(ProcessorMixin):
    r"""
    Chat prompts of the language model with scans in them.

    Every `<image>` of a prompt stands for one scan and becomes `num_image_tokens` tokens. Prompts are written with the
    tokenizer's own chat template; a prompt and its answer are tokenised apart, so that no token spans both.

    Args:
        image_processor (`VoxelFMImageProcessor`): Prepares scans.
        tokenizer (`PreTrainedTokenizerBase`): Of the language model; gets the image token if it has none.
        num_image_tokens (`int`, defaults to 128): As in the model's configuration.
        image_token (`str`, defaults to `"<image>"`): The placeholder.
        request (`str`, *optional*): What the user's turn asks for.
        system_prompt (`str`, *optional*): System turn; none by default.
        max_length (`int`, defaults to 1024): Most tokens of prompt and answer together.
        chat_template (`str`, *optional*): In place of the tokenizer's.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens: int = 128,
        image_token: str = "<image>",
        request: str = REQUEST,
        system_prompt: str | None = None,
        max_length: int = 1024,
        chat_template: str | None = None,
        **kwargs,
    ):
        self.num_image_tokens, self.max_length = num_image_tokens, max_length
        self.image_token, self.request, self.system_prompt = image_token, request, system_prompt
        if tokenizer is not None:
            if image_token not in tokenizer.get_vocab():
                tokenizer.add_tokens([image_token], special_tokens=True)
            self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def prompt(self, text: str | None = None, *, prior_scans: int = 0) -> str:
        """A chat prompt up to where the assistant begins to answer.

        Args:
            text: The user's turn: a request, put after the scan, or a text with one `<image>` for every scan.
            prior_scans: Earlier scans of the patient, shown before the current one, oldest first.

        Raises:
            ReportInputError: the tokenizer has no chat template, or its template takes no system turn.
        """
        request = self.request if text is None else text
        if self.image_token not in request:
            scans = [f"Prior scan {i + 1}: {self.image_token}" for i in range(prior_scans)]
            scans += [f"Current scan: {self.image_token}" if prior_scans else self.image_token]
            request = "\n".join([*scans, request])
        return self._render([{"role": "user", "content": request}], add_generation_prompt=True)

    def _render(self, messages: list[dict[str, str]], **options: Any) -> str:
        template = self.chat_template or self.tokenizer.chat_template
        if template is None:
            raise ReportInputError(
                "the tokenizer has no chat template: use the instruction-tuned variant of the language model, or give "
                "a chat_template"
            )
        if self.system_prompt:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        try:
            # Templates of reasoning models open a turn of thought unless told not to; others ignore the word.
            return self.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, enable_thinking=False, **options
            )
        except Exception as error:
            if type(error).__name__ != "TemplateError":
                raise
            raise ReportInputError(
                f"the chat template refuses the messages ({error}): leave the system prompt empty if it takes none"
            ) from None

    @property
    def end_of_turn_id(self) -> int:
        """The token that ends the assistant's turn: what the chat template writes after it, or else EOS."""
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
        tail = self._render(messages).rpartition(_ANSWER)[2]
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        ends = [i for i in self.tokenizer(tail, add_special_tokens=False)["input_ids"] if i in special]
        if ends:
            return ends[0]
        if self.tokenizer.eos_token_id is None:
            raise ReportInputError("neither the chat template nor the tokenizer has a token that ends an answer")
        return self.tokenizer.eos_token_id

    def encode_prompt(self, text: str, *, scans: int = 1) -> list[int]:
        """Token ids of a rendered prompt, every `<image>` expanded.

        Raises:
            ReportInputError: the prompt does not have one `<image>` a scan.
        """
        found = text.count(self.image_token)
        if found != scans:
            raise ReportInputError(
                f"the prompt has {found or 'no'} {self.image_token} and there {'is' if scans == 1 else 'are'} {scans} "
                f"scan{'s' * (scans != 1)}: write one {self.image_token} for every scan"
            )
        # Chat templates write the beginning-of-text token themselves.
        text = text.replace(self.image_token, self.image_token * self.num_image_tokens)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode_pair(self, prompt: str, report: str, *, scans: int = 1) -> tuple[list[int], list[int]]:
        """Input ids and labels of a prompt with its answer; only the answer and the token that ends it are labelled.

        Args:
            prompt: A rendered prompt.
            report: The answer.
            scans: Number of scans in the prompt.

        Raises:
            ReportInputError: an empty report, one too long, or a wrong number of `<image>`.
        """
        if not report.strip():
            raise ReportInputError("the report is empty: leave the scan out, or say that there is nothing abnormal")
        before = self.encode_prompt(prompt, scans=scans)
        answer = self.tokenizer(report.strip(), add_special_tokens=False)["input_ids"]
        if self.image_token_id in answer:
            raise ReportInputError(f"the report holds {self.image_token}, which stands for scans in prompts")
        answer = [*answer, self.end_of_turn_id]
        if len(before) + len(answer) > self.max_length:
            raise ReportInputError(
                f"the report takes {len(answer)} tokens and the prompt {len(before)}, more than the {self.max_length} "
                "of max_length: raise it, or shorten the report"
            )
        return before + answer, [IGNORED] * len(before) + answer

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        vision_features: Sequence[Any] | None = None,
        spacing: Any = None,
        scans_each: Sequence[int] | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Inputs for `generate`.

        Args:
            images: One volume or a list of them, as the image processor takes them.
            text: Rendered prompts (see `prompt`), one or a list; by default the standard one for every scan.
            vision_features: In place of images: for every scan its tokens (T, C), see `scan_tokens`.
            spacing: Of volumes that are plain arrays.
            scans_each: How many scans belong to each prompt, in order; one by default.
            return_tensors: "pt".

        Returns:
            `input_ids` and `attention_mask` (B, L), padded on the left, and `pixel_values`, or `vision_features` with
            `vision_mask` where numbers of tokens differ.

        Raises:
            ReportInputError: a prompt without one `<image>` a scan, or too long.
        """
        if return_tensors != "pt":
            raise ValueError(f'return_tensors must be "pt", got {return_tensors!r}')
        if (images is None) == (vision_features is None):
            raise ValueError("give either images or vision_features")
        data: dict[str, Any] = {}
        if vision_features is None:
            data["pixel_values"] = self.image_processor(images, spacing=spacing)["pixel_values"]
            count = len(data["pixel_values"])
        else:
            tokens = [torch.as_tensor(np.asarray(scan)).float() for scan in vision_features]
            data["vision_features"], mask = pad_tokens(tokens)
            if mask is not None:
                data["vision_mask"] = mask
            count = len(tokens)
        prompts = [text] if isinstance(text, str) else text
        if prompts is None:
            prompts = [self.prompt()] * count
        each = list(scans_each) if scans_each is not None else ([count] if len(prompts) == 1 else [1] * len(prompts))
        if len(each) != len(prompts) or sum(each) != count:
            raise ReportInputError(f"{len(prompts)} prompts with {each} scans do not use up the {count} scans given")
        ids = [self.encode_prompt(prompt, scans=scans) for prompt, scans in zip(prompts, each, strict=True)]
        longest = max(map(len, ids))
        if longest > self.max_length:
            raise ReportInputError(f"a prompt takes {longest} tokens, more than the {self.max_length} of max_length")
        padding = self.tokenizer.pad_token_id
        padding = self.end_of_turn_id if padding is None else padding
        # The last token of every prompt must stand where the answer begins.
        data["input_ids"] = torch.tensor([[padding] * (longest - len(row)) + row for row in ids])
        data["attention_mask"] = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
        return BatchFeature(data)

    def decode_answers(self, sequences: torch.Tensor, *, prompt_length: int) -> list[str]:
        """The written answers of `generate`, without prompt and special tokens."""
        answers = self.tokenizer.batch_decode(sequences[:, prompt_length:], skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "vision_features", "vision_mask"]


__all__ = ["ReportInputError", "VoxelFMReportProcessor"]

VoxelFMReportProcessor.register_for_auto_class("AutoProcessor")
