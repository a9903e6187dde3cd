"""Task examples -> token ids -> the batches of training.

`prepare` makes a folder of tokenized data, which every run that needs it reads.

The methods of a comparison read the same folder, so they cannot differ in their data. The folder is named by what went
into it, and appears by one rename when it is complete: other data never take its place.

`chat` makes tokens of an example. Which examples belong to a split never depends on the method: they are kept or
dropped by their length without solved examples, and a run whose prompts with solved examples are too long is refused.

    >>> summary = prepare(config, tokenizer, identity.data_folder(config))
    >>> load_prepared(folder).train[0]["answer_ids"]
    [13450, 260, 3215, 30, 2]

    folder/train/ validation/ test/   datasets.Dataset with the columns of `Record`
    folder/summary.json               DataSummary, with what was dropped
    folder/checksums.json             of these files
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from bench.config import RunConfig
from bench.identity import is_whole, make_once
from bench.metrics import tool_calls, words
from bench.mistakes import ConfigurationError, refuse
from bench.record import DataSummary, from_json, to_json
from bench.worker import chat
from bench.worker.chat import Tokens, each_answer, render, render_learned, special_tokens
from bench.worker.check import check
from bench.worker.instruments.tokens import IGNORED
from bench.worker.sources import SPLITS, Example, Loaded, content_hash, docstrings, files, hub, label_set, shortened

if TYPE_CHECKING:
    import datasets


class Record(NamedTuple):
    """One row of the prepared data."""

    example_id: str
    prompt: str
    reference: str
    prompt_ids: list[int]
    answer_ids: list[int]  # ends with the end-of-turn token
    answer_mask: list[int]  # 1 where a token of the answer carries loss; empty: all do
    columns: str = "{}"  # JSON, of test examples: what the source's record holds


ROW = 512  # positions that one row of `hardware.generate_batch` and `suite.batch_size` stands for


@dataclass(frozen=True)
class Prepared:
    """Prepared data, memory-mapped; the columns are those of `Record`."""

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
    if config.task.test_turns == "all":
        loaded.splits["test"] = [answer for example in loaded.splits["test"] for answer in each_answer(example)]
    dropped, spent_seconds = Counter(loaded.dropped), list[float]()
    splits = _tokenize(config, tokenizer, loaded, dropped, spent_seconds)
    source = loaded.source
    if config.task.format == "chat" and "strftime_now" in str(tokenizer.chat_template):
        source += f"; the chat template is told the date {config.model.template.get('date', chat.DATE)}"
    if config.task.general_share:
        source += f"; {config.task.general_share:.0%} of the training examples are general text from docstrings"
    labels = label_set(example.target for example in loaded.splits["train"])
    if labels is not None:
        labels = sorted({*labels, *(example.target for split in SPLITS for example in loaded.splits[split])})
    summary = _summarize(splits, dropped, source, labels)
    wanted, available = config.task.test_examples, len(loaded.splits["test"])
    if wanted is not None and wanted < available:
        summary = replace(summary, test_available=available)
    if config.method.retrieval:
        summary = replace(summary, retrieval_seconds=sum(spent_seconds))
    make_once(folder, lambda target: _write(target, splits, summary), cache)
    return load_prepared(folder).summary


def _tokenize(
    config: RunConfig, tokenizer: Any, loaded: Loaded, dropped: Counter[str], spent_seconds: list[float]
) -> dict[str, list[Record]]:
    """The records of every split; adds to `dropped` by reason, and the seconds of each retrieval to the last."""
    splits, problems, shots = dict[str, list[Record]](), list[str](), None
    for split in SPLITS:
        splits[split], found = _tokenize_split(config, tokenizer, split, loaded.splits[split], shots, dropped)
        problems += found
        if split == "train" and config.method.shots and splits["train"]:
            by_id = {example.example_id: example for example in loaded.splits["train"]}
            shots = _shots(config, [by_id[record.example_id] for record in splits["train"]], spent_seconds)
    general_texts, found = _general(config, tokenizer, len(splits["train"]), dropped)
    splits["train"] += general_texts
    problems += found
    refuse(problems)
    return splits


def _general(config: RunConfig, tokenizer: Any, own: int, dropped: Counter[str]) -> tuple[list[Record], list[str]]:
    """The general texts that are mixed with so many training examples of the task's own, and what is wrong."""
    if (wanted := config.task.with_general(own) - own) == 0:
        return [], []
    from bench.worker.sources import general

    texts, share = general.load(wanted), config.task.general_share
    if len(texts) < wanted:
        return [], [f"task.general_share: {share} takes {wanted} texts, and there are {len(texts)}; lower it"]
    mixed = replace(config, task=replace(config.task, train_examples=wanted))
    return _tokenize_split(mixed, tokenizer, "train", texts, None, dropped)


Shots = Callable[[Example], Sequence[Example]]  # the solved examples that are shown before a question


def _shots(config: RunConfig, examples: list[Example], spent_seconds: list[float]) -> Shots:
    """The same for every question, drawn by the seed; or those with the nearest questions by BM25, the nearest last."""
    count = min(config.method.shots, len(examples))
    if config.method.retrieval is None:
        drawn = sorted(examples, key=lambda example: content_hash(str(config.seed), example.example_id))[:count]
        return lambda example: drawn
    import bm25s

    index = bm25s.BM25()
    index.index([words(example.prompt) or [""] for example in examples], show_progress=False)

    def nearest(example: Example) -> list[Example]:
        started = time.perf_counter()
        found, _ = index.retrieve([words(example.prompt) or [""]], k=count, show_progress=False)
        spent_seconds.append(time.perf_counter() - started)
        return [examples[place] for place in reversed(found[0].tolist())]

    return nearest


def load_prepared(folder: Path) -> Prepared:
    """Open what `prepare` wrote.

    Raises:
        FileNotFoundError: when the folder is not there.
    """
    import datasets

    summary = from_json(DataSummary, (folder / "summary.json").read_bytes())
    return Prepared(summary, *(datasets.load_from_disk(str(folder / split)) for split in SPLITS))


def _summarize(
    splits: dict[str, list[Record]], dropped: Counter[str], source: str, labels: list[str] | None
) -> DataSummary:
    lengths = [len(r.prompt_ids) + len(r.answer_ids) for split in SPLITS for r in splits[split]]
    checked = check({split: [record._asdict() for record in splits[split]] for split in SPLITS}, dropped, labels)
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
        labels=labels,
        repeated_prompts=sum(o.same + o.same_prompt for o in checked.overlaps if (o.split, o.of) == ("test", "train")),
        check=checked,
    )


def _write(target: Path, splits: dict[str, list[Record]], summary: DataSummary) -> None:
    import datasets

    datasets.disable_progress_bars()
    for split in SPLITS:
        datasets.Dataset.from_list([record._asdict() for record in splits[split]]).save_to_disk(str(target / split))
    (target / "summary.json").write_text(to_json(summary))


# -------------------------------------------------------------------------------------------------------------- tokens
_UNREADABLE_SHOWN = 3  # examples that the chat template refuses, of a split: others mostly fail for the same cause


def _tokenize_split(
    config: RunConfig, tokenizer: Any, split: str, examples: Sequence[Example], shots: Shots | None,
    dropped: Counter[str],
) -> tuple[list[Record], list[str]]:  # fmt: skip
    """The first `task.SPLIT_examples` examples that fit, and what is wrong; shots are shown in test prompts only."""
    wanted: int | None = getattr(config.task, f"{split}_examples")
    records: list[Record] = []
    problems: list[str | None] = []
    unreadable: dict[str, None] = {}  # an ordered set
    for example in examples:
        if (wanted is not None and len(records) >= wanted) or len(unreadable) >= _UNREADABLE_SHOWN:
            break
        try:
            tokens = _usable(config, tokenizer, split, example)
        except ConfigurationError as error:
            unreadable |= dict.fromkeys(error.problems)
            continue
        if isinstance(tokens, str):
            dropped[f"{split}: {tokens}"] += 1
            continue
        problems.append(_too_long(config, split, example, tokens))
        if split == "test" and shots:
            tokens = render(tokenizer, config.task, example, shots(example))
            problems.append(_beyond_context(config, example, tokens))
        records.append(_record(tokenizer, split, example, tokens))
        if split == "test":
            problems.append(_unread_call(config, example, records[-1]))
    if unreadable:
        return records, list(unreadable)
    if wanted is not None and len(records) < wanted:
        problems.append(
            f"task.{split}_examples: {wanted} asked for, but {len(records)} of the {len(examples)} for {split} fit "
            f"train.max_length={config.train.max_length}; lower it, null takes all, or raise train.max_length"
        )
    elif not records:
        problems.append(f"{split}: none of {len(examples)} examples fits train.max_length={config.train.max_length}")
    return records, shortened([problem for problem in problems if problem])


def _usable(config: RunConfig, tokenizer: Any, split: str, example: Example) -> Tokens | str:
    """An example's tokens without solved examples, or why it is left out."""
    if any(token in example.prompt + example.target for token in special_tokens(tokenizer)):  # read as the token
        return "spells out a special token of the model"
    tokens = (render if split == "test" else render_learned)(tokenizer, config.task, example)
    if tokens is None:
        return f"no answer that task.loss={config.task.loss} learns"
    if config.task.overflow == "drop" and _too_long(config, split, example, tokens):
        return "longer than train.max_length"
    return tokens


def _record(tokenizer: Any, split: str, example: Example, tokens: Tokens) -> Record:
    """A call of tools is scored as the template writes it; metrics of the user's own read a test example's columns."""
    calls = example.turns and example.turns[-1].get("tool_calls")
    reference = tokenizer.decode(tokens.answer_ids, skip_special_tokens=True) if calls else example.target
    ids = tokens.prompt_ids, tokens.answer_ids, list(tokens.answer_mask)
    columns = example.columns if split == "test" else "{}"
    return Record(example.example_id, example.prompt or reference, reference, *ids, columns)


def _unread_call(config: RunConfig, example: Example, record: Record) -> str | None:
    """What is wrong when the metric `tool_call` cannot read what the chat template writes."""
    calls = [call["function"] for turn in example.turns[-1:] for call in turn.get("tool_calls", [])]
    if "tool_call" not in config.task.metrics or not calls or tool_calls(record.reference) == calls:
        return None
    return (
        f"task.metrics: tool_call reads JSON with a name and arguments, and the chat template writes "
        f"{record.reference[:60]!r} (test, example {example.example_id}); use exact_match"
    )


def fingerprint(splits: dict[str, list[Record]]) -> str:
    """SHA-256 over the (prompt_ids, answer_ids, answer_mask where it is not empty) of every split in order, in hex."""
    hashed = hashlib.sha256()
    for split in splits:
        hashed.update(f"{split}:{len(splits[split])}\n".encode())
        for record in splits[split]:
            hashed.update(f"{record.prompt_ids}{record.answer_ids}{record.answer_mask or ''}\n".encode())
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


def batches(
    lengths: Sequence[int], rows: int, beside: Sequence[int] | None = None, padding: float = 1.0
) -> Iterator[list[int]]:
    """Places of an evaluation's rows, longest first: a batch holds at most `rows` times `ROW` positions, padding too.

    Short rows come many at a time, long ones few, one at least: the memory of a batch does not depend on the task.

    Args:
        beside: positions that each row counts for in addition; they are not padded.
        padding: the largest share of it in a batch of more than `2 * ROW` positions.

    >>> list(batches([300, 1000, 500], rows=2))
    [[1], [2, 0]]
    """
    batch, longest, tokens, more = list[int](), 0, 0, 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        positions, own = (len(batch) + 1) * longest, beside[place] if beside else 0
        is_loose = positions > 2 * ROW and tokens + lengths[place] < (1 - padding) * positions
        if batch and (positions + more + own > rows * ROW or is_loose):
            yield batch
            batch, tokens, more = [], 0, 0
        longest = longest if batch else lengths[place]
        batch.append(place)
        tokens, more = tokens + lengths[place], more + own
    if batch:
        yield batch


def ids_of(row: Mapping[str, Any]) -> list[int]:
    """Prompt and answer."""
    return [*row["prompt_ids"], *row["answer_ids"]]


def labels_of(row: Mapping[str, Any]) -> list[int]:
    """As `ids_of`, `IGNORED` where a token carries no loss: in the prompt, and where the answer's mask has none."""
    answer = row["answer_ids"]
    mask = row.get("answer_mask") or [1] * len(answer)
    learned = [token if learns else IGNORED for token, learns in zip(answer, mask, strict=True)]
    return [*[IGNORED] * len(row["prompt_ids"]), *learned]


def padding_multiple(device_type: str) -> int:
    """What lengths are rounded up to: few lengths on CUDA, where compiled layers and kernels adapt to each new one."""
    return 64 if device_type == "cuda" else 1


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int, multiple: int = 1) -> dict[str, torch.Tensor]:
    """Right-pad rows; only what the answer learns is labelled. Each tensor is (batch, length).

    Args:
        multiple: the length is rounded up to a multiple of it (`padding_multiple`).
    """
    length = -(-max(map(row_length, rows)) // multiple) * multiple

    def padded(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([own + [value] * (length - len(own)) for own in lists])

    return {
        "input_ids": padded([ids_of(row) for row in rows], pad_id),
        "attention_mask": padded([[1] * row_length(row) for row in rows], 0),
        "labels": padded([labels_of(row) for row in rows], IGNORED),
    }


def pack(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows one after the other in a single row without padding; each tensor is (1, tokens).

    `position_ids` start at 0 with every example. Given these and no attention mask, transformers keeps the examples
    apart in every attention kernel: by a mask (sdpa, eager) or by sequence lengths (flash attention).
    """
    return {
        "input_ids": torch.tensor([[token for row in rows for token in ids_of(row)]]),
        "labels": torch.tensor([[label for row in rows for label in labels_of(row)]]),
        "position_ids": torch.cat([torch.arange(row_length(row)) for row in rows]).unsqueeze(0),
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
