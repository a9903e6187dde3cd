"""A split's examples -> token records within the length limits, and the fingerprint of all of them.

Which examples belong to a split never depends on the method: an example is kept or dropped by its length without
solved examples. With shots the prompts of the test split are longer; they must then fit the model's context, or
the run is refused, because scores on fewer examples could not be paired with the other methods' scores.

    >>> records, problems = tokenize_split(config, tokenizer, "test", examples, shots=[], dropped=Counter())
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypedDict

from bench.config import RunConfig
from bench.worker.prompts import TokenizedExample, render, special_token_in
from bench.worker.sources.example import SPLITS, Example, shortened


class Record(TypedDict):
    """One row of the prepared data."""

    example_id: str
    prompt: str
    reference: str
    prompt_ids: list[int]
    answer_ids: list[int]


def tokenize_split(
    config: RunConfig,
    tokenizer: Any,
    split: str,
    examples: Sequence[Example],
    shots: Sequence[Example],
    dropped: Counter[str],
) -> tuple[list[Record], list[str]]:
    """The first `task.SPLIT_examples` examples that fit, and what is wrong.

    Args:
        split: train, validation or test; shots are shown in test prompts only.
        dropped: counts by reason; added to here.

    Raises:
        ConfigurationError: from `prompts.render`, for a chat template that does not work.
    """
    wanted: int | None = getattr(config.task, f"{split}_examples")
    records: list[Record] = []
    problems: list[str] = []
    for example in examples:
        if wanted is not None and len(records) >= wanted:
            break
        if special_token_in(tokenizer, example.prompt + example.target):
            dropped[f"{split}: spells out a special token of the model"] += 1
            continue
        tokens = render(tokenizer, config.task, example)
        too_long = _too_long(config, split, example, tokens)
        if too_long and config.task.overflow == "drop":
            dropped[f"{split}: longer than train.max_length"] += 1
            continue
        if split == "test" and shots:
            tokens = render(tokenizer, config.task, example, shots)
            too_long = too_long or _beyond_context(config, example, tokens)
        if too_long:
            problems.append(too_long)
        records.append(_record(example, tokens))
    if wanted is not None and len(records) < wanted:
        problems.append(
            f"task.{split}_examples: {wanted} asked for, but only {len(records)} of {len(examples)} in {split} fit "
            f"train.max_length={config.train.max_length}; lower it, or raise train.max_length"
        )
    elif not records:
        problems.append(f"{split}: none of {len(examples)} examples fits train.max_length={config.train.max_length}")
    return records, shortened(problems)


def fingerprint(splits: dict[str, list[Record]]) -> str:
    """SHA-256 over the (prompt_ids, answer_ids) of every split in order, in hex."""
    hashed = hashlib.sha256()
    for split in SPLITS:
        hashed.update(f"{split}:{len(splits[split])}\n".encode())
        for record in splits[split]:
            hashed.update(f"{record['prompt_ids']}{record['answer_ids']}\n".encode())
    return hashed.hexdigest()


def _record(example: Example, tokens: TokenizedExample) -> Record:
    return Record(
        example_id=example.example_id,
        prompt=example.prompt,
        reference=example.target,
        prompt_ids=tokens.prompt_ids,
        answer_ids=tokens.answer_ids,
    )


def _too_long(config: RunConfig, split: str, example: Example, tokens: TokenizedExample) -> str | None:
    """A test answer needs room for what is generated and, for its loss, for the reference."""
    limit, prompt, answer = config.train.max_length, len(tokens.prompt_ids), len(tokens.answer_ids)
    total, how = prompt + answer, f"{prompt} of prompt + {answer} of answer"
    if split == "test" and config.task.max_new_tokens > answer:
        total, how = prompt + config.task.max_new_tokens, f"{prompt} of prompt + task.max_new_tokens"
    if total <= limit:
        return None
    return (
        f"{split}, example {example.example_id}: {total} tokens ({how}) are beyond train.max_length={limit}; raise "
        f"it (up to {config.model.max_context} for {config.model.name}) or set task.overflow=drop"
    )


def _beyond_context(config: RunConfig, example: Example, tokens: TokenizedExample) -> str | None:
    total = len(tokens.prompt_ids) + max(config.task.max_new_tokens, len(tokens.answer_ids))
    if total <= config.model.max_context:
        return None
    return (
        f"test, example {example.example_id}: {total} tokens with method.shots={config.method.shots} are beyond the "
        f"{config.model.max_context} positions of {config.model.name}; lower method.shots"
    )
