"""Sources of task examples: one module each, all with the same shape.

    docstrings   installed Python packages; the embedded default
    files        the user's .jsonl, .json, .csv or .parquet
    hub          data sets of the Hugging Face hub
    general      prose of installed packages, mixed into training by `task.general_share`

A source's `load(task)` returns `Loaded`: three lists of `Example` (`layouts` makes them of records) and a count of
everything it left out. Orders and cuts follow from SHA-256 of the content, so the same data give the same splits on
every machine.

    >>> loaded.splits["train"][0]
    Example(example_id='train.jsonl:12', prompt='What is 2 + 2?', target='4', group='...')
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from charset_normalizer import from_bytes

SPLITS = ("train", "validation", "test")
CUT_FRACTION = 10  # a missing validation or test split is one example in ten of the training split ...
CUT_MAXIMUM = 1000  # ... but never more than this
LABELS_MAXIMUM = 1000


Message = dict[str, Any]  # role, content, and what a chat template reads besides: tool_calls, reasoning_content


@dataclass(frozen=True)
class Example:
    """One prompt with its answer; or a conversation; or, where the prompt is empty, a raw text.

    Attributes:
        example_id: where it came from, for a person: a file and line, a split and row, or a function's name.
        prompt: of a conversation, all before the last answer as one text, for a person.
        target: of a conversation, its last answer.
        group: examples of one group are never divided between splits (a module; a repeated prompt).
        turns: the messages of a conversation, the last from the assistant; (): prompt and target are all there is.
            "weight" (0 or 1) and "given" (True: never learned) are ours, the template does not see them.
        tools: definitions of functions (JSON schema) that the conversation may call.
        columns: the record that it was made from, as JSON, for metrics of the user's own.
    """

    example_id: str
    prompt: str
    target: str
    group: str
    turns: tuple[Message, ...] = ()
    tools: tuple[Message, ...] = ()
    columns: str = "{}"


@dataclass(frozen=True)
class Loaded:
    """The examples of a source, by split."""

    splits: dict[str, list[Example]]  # train, validation, test; each in content order
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> examples
    source: str = ""  # for a person


def content_hash(*parts: str) -> str:
    """SHA-256 in hex over texts and their borders."""
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def in_content_order(examples: Iterable[Example]) -> list[Example]:
    """A fixed shuffle.

    Files are often sorted by label or length: their first N lines would be a biased training set. A hash order
    makes every prefix a fair sample, and the same one everywhere.
    """
    return sorted(examples, key=lambda e: (content_hash(e.prompt, e.target), e.example_id))


def label_set(targets: Iterable[str]) -> list[str] | None:
    """The distinct targets, sorted, where they are labels: at most 1,000, each of which occurs twice on average."""
    counts = Counter(targets)
    return sorted(counts) if len(counts) <= min(LABELS_MAXIMUM, counts.total() / 2) else None


def overlaps(given: Mapping[str, list[Example]]) -> dict[tuple[str, str], list[tuple[Example, Example]]]:
    """(a split, one tested later) -> their pairs of equal examples; split pairs that share none are left out."""
    found: dict[tuple[str, str], list[tuple[Example, Example]]] = {}
    for split, held_out in (("train", "test"), ("validation", "test"), ("train", "validation")):
        there = {(e.prompt, e.target): e for e in reversed(given.get(split, []))}
        later = [(there[key], e) for e in given.get(held_out, []) if (key := (e.prompt, e.target)) in there]
        found |= {(split, held_out): later} if later else {}
    return found


def divided(given: Mapping[str, list[Example]]) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """(the three splits in content order, reason -> how many examples were dropped).

    Training is without duplicates, and no split holds what is also in one tested later: the test split stays whole. A
    split that is not given is cut from training.
    """
    splits, dropped = dict(given), dict[str, int]()
    for (split, held_out), pairs in overlaps(given).items():
        taken = {(e.prompt, e.target) for _, e in pairs}
        kept = [e for e in splits[split] if (e.prompt, e.target) not in taken]
        dropped[f"{split}: also in {held_out}"] = len(splits[split]) - len(kept)
        splits[split] = kept
    distinct = {(e.prompt, e.target): e for e in reversed(splits["train"])}
    dropped["train: duplicate"] = len(splits["train"]) - len(distinct)
    splits["train"] = list(distinct.values())
    for split in ("test", "validation"):
        if split not in given:
            splits["train"], splits[split] = cut(splits["train"], len(distinct))
    return (
        {split: in_content_order(splits[split]) for split in SPLITS},
        {reason: count for reason, count in dropped.items() if count},
    )


def cut(examples: list[Example], total: int) -> tuple[list[Example], list[Example]]:
    """Part off a held-out split: (what stays, what is cut).

    A tenth of `total` is cut, at least 1 and at most 1000, in whole groups: a prompt that occurs twice with two
    answers never sits on both sides.
    """
    wanted = min(CUT_MAXIMUM, max(1, total // CUT_FRACTION))
    sizes = Counter(example.group for example in examples)
    chosen: set[str] = set()
    for group in sorted(sizes, key=content_hash):
        if wanted <= 0:
            break
        chosen.add(group)
        wanted -= sizes[group]
    stays = [e for e in examples if e.group not in chosen]
    return stays, [e for e in examples if e.group in chosen]


def shortened(problems: list[str], limit: int = 10) -> list[str]:
    """At most `limit` problems, then how many more there are."""
    if len(problems) <= limit:
        return problems
    return [*problems[:limit], f"... and {len(problems) - limit} more like these"]


_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # byte-order marks
_GUESSED_BYTES = 1 << 16  # around the first byte that is not UTF-8


def decoded(content: bytes, where: str) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
        ValueError: another encoding; the message leads with `where` and the line, and names the likely encoding.
    """
    mark = next((name for start, name in _MARKS.items() if content.startswith(start)), "utf-8")
    if mark == "UTF-16":
        raise ValueError(f"{where}:1: the file is in UTF-16, not UTF-8; save it as UTF-8")
    try:
        return content.decode(mark)
    except UnicodeDecodeError as error:
        at = error.start
        guess = from_bytes(content[max(0, at - _GUESSED_BYTES) : at + _GUESSED_BYTES]).best()
        likely = f" (it looks like {guess.encoding})" if guess else ""
        line = content.count(b"\n", 0, at) + 1
        raise ValueError(
            f"{where}:{line}: byte {content[at]:#04x} is not UTF-8{likely}; save the file as UTF-8"
        ) from None
