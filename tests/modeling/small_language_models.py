"""Random language models of a few thousand parameters, and word tokenizers with different chat templates."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# ChatML: the end of a turn is a token of its own, EOS is another one.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Brackets: beginning of text in the template, the answer ends with EOS, no system turn.
BRACKETS = (
    "<s>{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn here') }}"
    "{% elif m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}"
    "{% endfor %}"
)
# Plain text: nothing marks the end of an answer, EOS has to.
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEMPLATES = {"chatml": CHATML, "brackets": BRACKETS, "plain": PLAIN}
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(
    template: str | None = CHATML, *, merges: tuple[tuple[str, str], ...] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose pad token is its EOS; merges join bytes as a trained one would."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
    )


def sentencepiece_tokenizer(words: list[str], template: str = BRACKETS) -> PreTrainedTokenizerFast:
    """A tokenizer that marks the beginning of words, also of the first, as those of Llama 2 do."""
    letters = sorted({c for word in words for c in word} | set("▁[]/:\n<>abcdefghijklmnopqrstuvwxyzINST.?,"))
    pieces = ["<unk>", *SPECIAL, *letters]
    core = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    core.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=template
    )


def small_llama(vocabulary: int, **changes) -> LlamaForCausalLM:
    """A random Llama of two layers."""
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()
