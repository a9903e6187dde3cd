"""A tiny Llama (or Mistral, Qwen) of random weights, and a byte-pair encoding learned from a line of text.

>>> saved(folder, "llama", tie_word_embeddings=True)
>>> byte_level().save_pretrained(folder)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TEXT = "the cat sat on the mat, and 12 more cats sat on 345 other mats; don't they? "
SPECIAL = ["<|pad|>", "<|start|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)


def byte_level(before: Any = BYTES, whole: bool = False) -> PreTrainedTokenizerFast:
    """A byte-pair encoding learned from `TEXT`."""
    tokens = Tokenizer(models.BPE(ignore_merges=whole))
    tokens.pre_tokenizer, tokens.decoder = before, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator([TEXT], trainer)
    return finished(tokens)


def finished(tokens: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


SIZES = {"vocab_size": 336, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
MAKE: dict[str, Any] = {
    "llama": lambda **more: LlamaForCausalLM(LlamaConfig(**SIZES | more)),
    "mistral": lambda **more: MistralForCausalLM(MistralConfig(**SIZES | {"sliding_window": 32} | more)),
    "qwen2": lambda **more: Qwen2ForCausalLM(Qwen2Config(**SIZES | more)),
    "qwen3": lambda **more: Qwen3ForCausalLM(Qwen3Config(**SIZES | more)),
}


def saved(folder: Path, kind: str, **more: Any) -> Any:
    """A model of random weights, its norms too, in bf16 as runs save it; and the same in memory."""
    torch.manual_seed(0)
    model = MAKE[kind](**more).bfloat16()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=1.0)
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)  # its frequencies are fp32 again
