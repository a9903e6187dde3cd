"""A byte-level tokenizer with a chat template, made in a millisecond: one token a byte, plus the markup."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(chat_template: str | None = CHATML, merges: list[tuple[str, str]] | None = None):  # type: ignore[no-untyped-def]
    """A fast tokenizer over bytes; `merges` adds pairs that become one token."""
    merges = merges or []
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(first + second for first, second in merges)]
    model = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=chat_template,
    )


DATA = Path(__file__).parents[1] / "data"
STYLES = {  # template -> its first and last token, and the other markup
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
    "mistral": ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    "gemma": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
}


def style(name: str, template: str | None = None):  # type: ignore[no-untyped-def]
    """A byte tokenizer with the markup of a public template style, and the template in its essential form."""
    first, last, *others = STYLES[name]
    tokenizer = byte_tokenizer(template or (DATA / "templates" / f"{name}.jinja").read_text().rstrip("\n"))
    tokenizer.add_special_tokens(
        {"bos_token": first, "eos_token": last, "pad_token": last, "extra_special_tokens": others}
    )
    return tokenizer
