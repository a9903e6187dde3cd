"""Models with random weights, and examples that all have the same length, so that nothing is padding."""

from __future__ import annotations

import json
from pathlib import Path

STEPS, MICRO_BATCHES = 3, 2  # of a run; micro-batches of a step
_TEMPLATE_TOKENS = 40  # about: roles and turns around a prompt and its answer
_ANSWER = "yes, it is the one that we looked for"


def write_model(numbers: dict[str, object], folder: Path) -> Path:
    """A model of these numbers with random bf16 weights and the tokenizer of bytes that tiny-random has."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from bench.compose import compose
    from bench.worker import models

    if not (folder / "tokenizer.json").exists():
        (tiny,) = compose(["model=tiny-random"], multirun=False)
        tokenizer = AutoTokenizer.from_pretrained(models.locate(tiny.model, folder.parent))
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        named = {key: value for key, value in numbers.items() if key != "model_type"}
        config = AutoConfig.for_model(str(numbers["model_type"]), **named, **special, max_position_embeddings=8192)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def write_examples(folder: Path, *, length: int, characters_per_token: int, examples: int) -> dict[str, Path]:
    """Files of distinct examples of equal length: split -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    answer_tokens = len(_ANSWER) // characters_per_token
    words = max(1, (length - _TEMPLATE_TOKENS - answer_tokens) * characters_per_token // len(" the"))
    files = {}
    for place, (split, count) in enumerate({"train": examples, "validation": 4, "test": 2}.items()):
        rows = [{"prompt": f"{1000 * place + i:04d}" + " the" * words, "target": _ANSWER} for i in range(count)]
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files
