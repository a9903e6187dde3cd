"""Task examples -> token ids -> the batches of training.

`prepare` makes a folder of tokenized data, which every run that needs it reads.

The methods of a comparison read the same folder, so they cannot differ in their data. The folder is named by what went
into it, and appears by one rename when it is complete: other data never take its place.

An answer is everything that the model's chat template adds to the prompt, up to and including the token that ends the
turn: a model trained on it learns to stop. Prompt and answer together are exactly the tokens of the whole
conversation, which is checked for every example, so training, held-out loss and generation see one prompt. Which
examples belong to a split never depends on the method: they are kept or dropped by their length without solved
examples, and a run whose prompts with solved examples are too long is refused.

    >>> summary = prepare(config, tokenizer, identity.data_folder(config))
    >>> load_prepared(folder).train[0]["answer_ids"]
    [13450, 260, 3215, 30, 2]

    folder/train/ validation/ test/   datasets.Dataset: example_id, prompt, reference, prompt_ids, answer_ids
    folder/summary.json               DataSummary, with what was dropped
    folder/checksums.json             of these files
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jinja2 import TemplateError

from bench.config import ConfigurationError, RunConfig, TaskConfig
from bench.identity import is_whole, make_once
from bench.record import DataSummary, from_json, to_json
from bench.worker.instruments.tokens import IGNORED
from bench.worker.sources import SPLITS, Example, Loaded, content_hash, docstrings, files, hub, shortened

if TYPE_CHECKING:
    import datasets


class Record(NamedTuple):
    """One row of the prepared data."""

    example_id: str
    prompt: str
    reference: str
    prompt_ids: list[int]
    answer_ids: list[int]  # ends with the end-of-turn token


@dataclass(frozen=True)
class Prepared:
    """Prepared data, memory-mapped. Columns: example_id, prompt, reference (texts), prompt_ids, answer_ids."""

    summary: DataSummary
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset


def prepare(config: RunConfig, tokenizer: Any, folder: Path) -> DataSummary:
    """Make the prepared data of a run, or return at once when they are there and whole.

    Args:
        tokenizer: of the run's model, with its chat template set.
        folder: made here; `identity.data_folder(config)`.

    Raises:
        ConfigurationError: everything wrong with the source, the counts asked for and the lengths, before
            anything is written.
    """
    cache = Path(config.paths.cache)
    if is_whole(folder, cache):
        return load_prepared(folder).summary
    loaded = {"docstrings": docstrings, "files": files, "hub": hub}[config.task.source].load(config.task)
    problems = _count_problems(config, loaded)
    if problems:
        raise ConfigurationError(problems)
    dropped = Counter(loaded.dropped)
    splits: dict[str, list[Record]] = {}
    shots: list[Example] = []  # shown before each test question
    for split in SPLITS:
        splits[split], found = tokenize_split(config, tokenizer, split, loaded.splits[split], shots, dropped)
        problems += found
        if split == "train":
            drawn = sorted(splits["train"], key=lambda r: content_hash(str(config.seed), r.example_id))
            shots = [Example(r.example_id, r.prompt, r.reference, "") for r in drawn[: config.method.shots]]
    if problems:
        raise ConfigurationError(problems)
    summary = _summarize(splits, dropped, loaded.source)
    make_once(folder, lambda target: _write(target, splits, summary), cache)
    return load_prepared(folder).summary


def load_prepared(folder: Path) -> Prepared:
    """Open what `prepare` wrote.

    Raises:
        FileNotFoundError: when the folder is not there.
    """
    import datasets

    summary = from_json(DataSummary, (folder / "summary.json").read_bytes())
    return Prepared(summary, *(datasets.load_from_disk(str(folder / split)) for split in SPLITS))


def _count_problems(config: RunConfig, loaded: Loaded) -> list[str]:
    problems = []
    for split in SPLITS:
        there, wanted = len(loaded.splits[split]), getattr(config.task, f"{split}_examples")
        if not there:
            problems.append(f"{split}: no examples in {loaded.source}")
        elif wanted is not None and wanted > there:
            problems.append(
                f"task.{split}_examples: {wanted} asked for, but {loaded.source} has {there} for {split} "
                f"({', '.join(f'{name} {len(loaded.splits[name])}' for name in SPLITS)}); lower it, or null for all"
            )
    return problems


def _summarize(splits: dict[str, list[Record]], dropped: Counter[str], source: str) -> DataSummary:
    lengths = [len(r.prompt_ids) + len(r.answer_ids) for split in SPLITS for r in splits[split]]
    return DataSummary(
        fingerprint=fingerprint(splits),
        fingerprints={split: _fingerprint_of_split(split, splits[split]) for split in SPLITS},
        train_examples=len(splits["train"]),
        validation_examples=len(splits["validation"]),
        test_examples=len(splits["test"]),
        dropped=dict(sorted(dropped.items())),
        tokens_per_example_mean=sum(lengths) / len(lengths),
        tokens_per_example_max=max(lengths),
        source=source,
    )


def _write(target: Path, splits: dict[str, list[Record]], summary: DataSummary) -> None:
    import datasets

    datasets.disable_progress_bars()
    for split in SPLITS:
        datasets.Dataset.from_list([record._asdict() for record in splits[split]]).save_to_disk(str(target / split))
    (target / "summary.json").write_text(to_json(summary))


# -------------------------------------------------------------------------------------------------------------- tokens
def tokenize_split(
    config: RunConfig, tokenizer: Any, split: str, examples: Sequence[Example], shots: Sequence[Example],
    dropped: Counter[str],
) -> tuple[list[Record], list[str]]:  # fmt: skip
    """The first `task.SPLIT_examples` examples that fit, and what is wrong.

    Args:
        split: train, validation or test; shots are shown in test prompts only.
        dropped: counts by reason; added to here.

    Raises:
        ConfigurationError: from `render`, for a chat template that does not work.
    """
    wanted: int | None = getattr(config.task, f"{split}_examples")
    records: list[Record] = []
    problems: list[str] = []
    for example in examples:
        if wanted is not None and len(records) >= wanted:
            break
        if any(token in example.prompt + example.target for token in special_tokens(tokenizer)):  # read as the token
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
        problems += [too_long] if too_long else []
        records.append(Record(example.example_id, example.prompt, example.target, *tokens))
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
    for split in splits:
        hashed.update(f"{split}:{len(splits[split])}\n".encode())
        for record in splits[split]:
            hashed.update(f"{record.prompt_ids}{record.answer_ids}\n".encode())
    return hashed.hexdigest()


def _fingerprint_of_split(split: str, records: list[Record]) -> str:
    """As `fingerprint`; of the test split over the texts: solved examples change its tokens and not what is asked."""
    texts = [f"{record.prompt}\0{record.reference}" for record in records]
    return content_hash(*texts) if split == "test" else fingerprint({split: records})


def _too_long(config: RunConfig, split: str, example: Example, tokens: Tokens) -> str | None:
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


def _beyond_context(config: RunConfig, example: Example, tokens: Tokens) -> str | None:
    total = len(tokens.prompt_ids) + max(config.task.max_new_tokens, len(tokens.answer_ids))
    if total <= config.model.max_context:
        return None
    return (
        f"test, example {example.example_id}: {total} tokens with method.shots={config.method.shots} are beyond the "
        f"{config.model.max_context} positions of {config.model.name}; lower method.shots"
    )


class Tokens(NamedTuple):
    """Token ids; `prompt_ids + answer_ids` is the conversation."""

    prompt_ids: list[int]
    answer_ids: list[int]  # ends with the end-of-turn token


def messages(task: TaskConfig, example: Example, shots: Sequence[Example] = ()) -> list[dict[str, str]]:
    """The conversation before the answer: system message if any, solved examples, question."""
    turns = [{"role": "system", "content": task.system}] if task.system else []
    for shot in shots:
        turns += [{"role": "user", "content": shot.prompt}, {"role": "assistant", "content": shot.target}]
    return [*turns, {"role": "user", "content": example.prompt}]


def render(tokenizer: Any, task: TaskConfig, example: Example, shots: Sequence[Example] = ()) -> Tokens:
    """Tokenize one example.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        shots: solved examples shown before the question.

    Raises:
        ConfigurationError: no chat template, or one that does not keep the prompt when the answer is added, or
            that does not end the answer with a special token.
    """
    question = messages(task, example, shots)
    prompt = _apply(tokenizer, question, add_generation_prompt=True)
    full = _apply(tokenizer, [*question, {"role": "assistant", "content": example.target}], add_generation_prompt=False)
    if not full.startswith(prompt):
        raise _broken(tokenizer, example, "changes the prompt when the answer is added", prompt[-60:])
    answer = _until_end_of_turn(tokenizer, example, full[len(prompt) :])
    # The template writes the beginning-of-text token itself: the tokenizer must not add a second one.
    prompt_ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    full_ids: list[int] = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    if full_ids[: len(prompt_ids)] != prompt_ids:
        raise _broken(tokenizer, example, "merges the answer's first characters into the prompt", prompt)
    return Tokens(prompt_ids, full_ids[len(prompt_ids) :])


@lru_cache(maxsize=1)
def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the tokens that are markup: named ones (end of text, ...) and those added as special."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def _apply(tokenizer: Any, conversation: list[dict[str, str]], add_generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise ConfigurationError(
            [
                "model.chat_template: the tokenizer has none; set it to a Jinja chat template that ends each "
                "assistant turn with a special token (base models: ChatML is a common choice)"
            ]
        )
    try:
        text: str = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:  # templates raise their own: "System role not supported"
        roles = ", ".join(dict.fromkeys(turn["role"] for turn in conversation))
        raise ConfigurationError(
            [f"model.chat_template: refuses a conversation of {roles}: {error}; change task.system or the template"]
        ) from None
    return text


def _until_end_of_turn(tokenizer: Any, example: Example, addition: str) -> str:
    """The text that the model has to write: the template's addition up to the first special token past the target.

    Templates go on behind it (a newline, an end of text): the model never has to produce that.
    """
    if any(addition.startswith(token) for token in special_tokens(tokenizer)):
        raise _broken(tokenizer, example, "ignores add_generation_prompt: the answer's header is not in the prompt", "")
    found = addition.find(example.target)
    if found < 0:
        raise _broken(tokenizer, example, "rewrites the answer", addition[:60])
    behind = found + len(example.target)
    ends = [(at, len(token)) for token in special_tokens(tokenizer) if (at := addition.find(token, behind)) >= 0]
    if not ends:
        raise _broken(tokenizer, example, "does not end the answer with a special token", addition[-60:])
    at, length = min(ends)
    return addition[: at + length]


def _broken(tokenizer: Any, example: Example, what: str, shown: str) -> ConfigurationError:
    near = f" (near {shown[-60:]!r})" if shown else ""
    return ConfigurationError(
        [
            f"model.chat_template: the template {what}{near}, seen at example {example.example_id}; without this "
            "the model would be trained on another prompt than it is tested on. Set model.chat_template to one "
            "that keeps the prompt and ends each assistant turn with a special token"
        ]
    )


# ------------------------------------------------------------------------------------------------------------- batches
def training_order(
    lengths: Sequence[int], *, seed: int, epochs: int, batch_size: int, max_steps: int | None
) -> list[int]:
    """Indices of the examples in the order of training, over all epochs.

    Every `batch_size` indices are one optimizer step; the last step may be smaller. `max_steps` decides, where given:
    it cuts the list, or goes on with as many epochs as it takes.
    """
    rng = np.random.default_rng(seed)
    count = None if max_steps is None else max_steps * batch_size
    epochs = epochs if count is None else math.ceil(count / len(lengths))
    order = np.concatenate([rng.permutation(len(lengths)) for _ in range(epochs)])[:count]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [int(i) for batch in batches for i in sorted(batch, key=lambda i: (-lengths[i], i))]


def steps_of(order: Sequence[int], batch_size: int) -> int:
    """Optimizer steps that an order makes."""
    return math.ceil(len(order) / batch_size)


def row_length(row: Mapping[str, Any]) -> int:
    """Tokens of prompt and answer."""
    return len(row["prompt_ids"]) + len(row["answer_ids"])


def padding_multiple(device_type: str) -> int:
    """What lengths are rounded up to: few lengths on CUDA, where compiled layers and kernels adapt to each new one."""
    return 64 if device_type == "cuda" else 1


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int, multiple: int = 1) -> dict[str, torch.Tensor]:
    """Right-pad rows of prompt_ids and answer_ids; only the answer is labelled. Each tensor is (batch, length).

    Args:
        multiple: the length is rounded up to a multiple of it (`padding_multiple`).
    """
    length = -(-max(row_length(row) for row in rows) // multiple) * multiple
    batch = {
        "input_ids": torch.full((len(rows), length), pad_id),
        "attention_mask": torch.zeros((len(rows), length), dtype=torch.long),
        "labels": torch.full((len(rows), length), IGNORED),
    }
    for i, row in enumerate(rows):
        prompt, answer = row["prompt_ids"], row["answer_ids"]
        end = len(prompt) + len(answer)
        batch["input_ids"][i, :end] = torch.tensor([*prompt, *answer])
        batch["attention_mask"][i, :end] = 1
        batch["labels"][i, len(prompt) : end] = torch.tensor(answer)
    return batch


def pack(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows one after the other in a single row without padding; each tensor is (1, tokens).

    `position_ids` start at 0 with every example. Given these and no attention mask, transformers keeps the examples
    apart in every attention kernel: by a mask (sdpa, eager) or by sequence lengths (flash attention).
    """
    lengths = [row_length(row) for row in rows]
    ids = [token for row in rows for token in [*row["prompt_ids"], *row["answer_ids"]]]
    labels = [label for row in rows for label in [*[IGNORED] * len(row["prompt_ids"]), *row["answer_ids"]]]
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
    }


def unpack(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """A padded batch as it is; a packed one as its examples, each a batch of one row."""
    if "position_ids" not in batch:
        return [batch]
    starts = (batch["position_ids"][0] == 0).nonzero()[1:, 0].tolist()
    ids, labels = (batch[name].tensor_split(starts, dim=1) for name in ("input_ids", "labels"))
    return [
        {"input_ids": i, "labels": label, "attention_mask": torch.ones_like(i)}
        for i, label in zip(ids, labels, strict=True)
    ]
