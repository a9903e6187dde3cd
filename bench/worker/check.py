"""The data check: what prepared data hold, and what in them would make a score memory instead of skill.

Duplicates are the same prompt and answer; a repeated prompt is one but for its case and spaces. Near duplicates share
at least `NEAR` of their triples of words and symbols (Jaccard): candidates by MinHash, each verified on the whole sets;
of several that are near one another in a split, the first stands for all. An example is contaminated where `GRAM` words
in a row stand in a training example too (Brown et al. 2020, appendix C), or the whole of it where it has at least
`FEWEST` words. What more than one example in twenty (and more than ten) hold is the prompt's template, and no sign of
either.

    >>> check(prepared).overlaps[0]
    Overlap(split='test', of='train', same=3, same_prompt=1, near=2, examples=['test.jsonl:4 = train.jsonl:9', ...])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import regex
import xxhash
from numpy.typing import NDArray

from bench.metrics import WORD
from bench.record import DataCheck, Overlap
from bench.worker.sources import SPLITS

NEAR, SHINGLE = 0.8, 3
GRAM, FEWEST = 13, 8
_BANDS = (25, 5)  # of MinHash: misses 1 in 20,000 at a similarity of 0.8, proposes half of those at 0.5
_SHOWN = 5
_SAMPLE = 2000  # examples that the template is read from
_TOKEN = regex.compile(rf"{WORD}|\S")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: of the polynomial that hashes a sequence
Ids = NDArray[np.uint64]
T = TypeVar("T")


@cache
def _hashed(token: str) -> int:
    """Odd for words, even for symbols."""
    return xxhash.xxh64_intdigest(token.encode("utf-8", "surrogatepass")) & ~1 | token[0].isalnum()


def token_ids(text: str) -> Ids:
    """The words (odd) and symbols (even) of a text in lower case, shape (tokens,)."""
    return np.array([_hashed(token) for token in _TOKEN.findall(text.lower())], dtype=np.uint64)


def texts_of(rows: Iterable[Mapping[str, Any]]) -> list[list[Ids]]:
    """The prompt and the reference of each row of prepared data, as `token_ids`."""
    return [[token_ids(row["prompt"]), token_ids(row["reference"])] for row in rows]


def check(
    splits: Mapping[str, Sequence[Mapping[str, Any]]], dropped: Mapping[str, int], labels: Sequence[str] | None
) -> DataCheck:
    """Everything that the check finds.

    Args:
        splits: rows of the prepared data (`data.Record`) by split.
        dropped: reason -> examples that were left out; those that were too long count above every length.
        labels: the targets, where they are labels.
    """
    rows = [(split, row) for split in SPLITS for row in splits[split]]
    texts = texts_of([row for _, row in rows])
    train, test = ([own for own, (of, _) in zip(texts, rows, strict=True) if of == split] for split in SPLITS[::2])
    found, short = contaminated(train, test)
    targets = Counter(row["reference"] for row in splits["train"])
    lengths = np.array([len(row["prompt_ids"]) + len(row["answer_ids"]) for _, row in rows])
    edges = [2**power for power in range(5, max(int(lengths.max()).bit_length(), 5) + 1)]
    turns, supervised = zip(*(_learned(row) for row in splits["train"]), strict=True)
    tokens = sum(len(row["prompt_ids"]) + len(row["answer_ids"]) for row in splits["train"])
    longest = sum(count for reason, count in dropped.items() if "longer than" in reason)
    return DataCheck(
        overlaps=_overlaps(rows, [np.concatenate(text) for text in texts]),
        contaminated=len(found),
        contaminated_examples=[splits["test"][place]["example_id"] for place in found[:_SHOWN]],
        too_short=short,
        longer_than={edge: int((lengths > edge).sum()) + longest for edge in edges},
        answers_per_example_mean=sum(turns) / len(turns),
        answers_per_example_max=max(turns),
        supervised_share=sum(supervised) / tokens,
        distinct_targets=len(targets),
        commonest_target=targets.most_common(1)[0][0][:80],
        commonest_target_examples=targets.most_common(1)[0][1],
        unseen_labels=sum(row["reference"] not in targets for row in splits["test"]) if labels else None,
    )


def _learned(row: Mapping[str, Any]) -> tuple[int, int]:
    """(answers, tokens) of an example that carry loss: runs of ones in its mask, and ones."""
    mask = row.get("answer_mask") or [1] * len(row["answer_ids"])
    return sum(before < now for before, now in pairwise([0, *mask])), sum(mask)


# --- Duplicates ---


def _overlaps(rows: Sequence[tuple[str, Mapping[str, Any]]], texts: Sequence[Ids]) -> list[Overlap]:
    """Of every split with itself and with those before it; an example counts once, by its closest match."""
    exact: dict[tuple[str, str, str], int] = {}
    prompts: dict[tuple[str, str], int] = {}
    near = _near([split for split, _ in rows], [np.unique(_sequences(text, SHINGLE)) for text in texts])
    found: dict[tuple[str, str], dict[str, list[str]]] = {
        (split, of): {"same": [], "same_prompt": [], "near": []}
        for place, split in enumerate(SPLITS) for of in SPLITS[: place + 1]
    }  # fmt: skip
    for place, (split, row) in enumerate(rows):
        prompt = " ".join(row["prompt"].casefold().split())
        for of in SPLITS[: SPLITS.index(split) + 1]:
            matches = {
                "same": exact.get((of, row["prompt"], row["reference"])),
                "same_prompt": prompts.get((of, prompt)),
                "near": near[place].get(of),
            }
            kind, other = next(((kind, at) for kind, at in matches.items() if at is not None), ("", 0))
            if kind:
                found[split, of][kind].append(f"{row['example_id']} = {rows[other][1]['example_id']}")
        exact.setdefault((split, row["prompt"], row["reference"]), place)
        prompts.setdefault((split, prompt), place)
    first = {pair: [text for of in kinds.values() for text in of[:_SHOWN]] for pair, kinds in found.items()}
    return [
        Overlap(*pair, len(kinds["same"]), len(kinds["same_prompt"]), len(kinds["near"]), first[pair])
        for pair, kinds in found.items()
    ]


def _near(splits: Sequence[str], sets: Sequence[Ids]) -> list[dict[str, int]]:
    """By example: split -> the first earlier example of it that is nearly the same."""
    from datasketch import MinHash, MinHashLSH

    template = _common(_sample(sets))
    kept = [own[~np.isin(own, template)] for own in sets] if len(template) else sets
    index = MinHashLSH(threshold=NEAR, num_perm=_BANDS[0] * _BANDS[1], params=_BANDS)
    narrow = ((own & np.uint64(0xFFFFFFFF)).tolist() for own in kept)
    near: list[dict[str, int]] = []
    for place, sketch in enumerate(MinHash.generator(narrow, num_perm=_BANDS[0] * _BANDS[1], hashfunc=int)):
        found: dict[str, int] = {}
        for other in sorted(index.query(sketch)) if len(kept[place]) else ():
            alike = (_jaccard(of[place], of[other]) for of in (kept, sets))  # without the template, and with it
            if splits[other] not in found and min(alike) >= NEAR:
                found[splits[other]] = other
        if len(kept[place]) and splits[place] not in found:  # one of each kind stands for its copies
            index.insert(place, sketch, check_duplication=False)
        near.append(found)
    return near


def _jaccard(left: Ids, right: Ids) -> float:
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def _sequences(ids: Ids, length: int) -> Ids:
    """A hash of every `length` ids in a row, shape (len(ids) - length + 1,); of fewer ids one of all."""
    length = max(1, min(length, len(ids)))
    hashed = np.zeros(max(len(ids) - length + 1, 0), dtype=np.uint64)
    for offset in range(length):
        hashed = hashed * _BASE + ids[offset : len(ids) - length + 1 + offset]
    return hashed


def _common(sets: Sequence[Ids]) -> Ids:
    """What more than one in twenty (and more than ten) of the sets hold: the template of the prompts."""
    values, counts = np.unique(np.concatenate([np.unique(own) for own in sets]), return_counts=True)
    return np.asarray(values[counts > max(10, len(sets) / 20)])


def _sample(values: Sequence[T]) -> Sequence[T]:
    """At most `_SAMPLE` of them, evenly spaced."""
    return values[:: -(-len(values) // _SAMPLE)]


# --- Contamination ---


def contaminated(train: Sequence[Sequence[Ids]], items: Sequence[Sequence[Ids]]) -> tuple[list[int], int]:
    """(places of the items that training examples hold a part of, number of items that are too short to tell).

    Args:
        train: the texts of each training example, as `token_ids`.
        items: the texts of each item; one of them is enough.
    """
    words = [[text[text % 2 == 1] for text in example] for example in train]
    template = _common([np.concatenate([_sequences(text, FEWEST) for text in example]) for example in _sample(words)])
    wanted: dict[int, list[tuple[int, Ids]]] = {}  # length of the sequence -> (item, its sequences)
    for place, item in enumerate(items):
        for text in item:
            for piece in _pieces(text[text % 2 == 1], template):
                wanted.setdefault(min(GRAM, len(piece)), []).append((place, _sequences(piece, GRAM)))
    found: set[int] = set()
    for length, of in wanted.items():
        known = np.unique(np.concatenate([own for _, own in of]))
        seen = np.zeros(len(known), dtype=bool)
        for text in (text for example in words for text in example):
            if len(text) >= length:
                at = np.searchsorted(known, sequences := _sequences(text, length)).clip(max=len(known) - 1)
                seen[at[known[at] == sequences]] = True
        found |= {place for place, own in of if seen[np.searchsorted(known, own)].any()}
    return sorted(found), len(items) - len({place for of in wanted.values() for place, _ in of})


def _pieces(ids: Ids, template: Ids) -> list[Ids]:
    """The runs of at least `FEWEST` ids that no sequence of the template covers."""
    free = np.ones(len(ids), dtype=bool)
    for start in np.flatnonzero(np.isin(_sequences(ids, FEWEST), template)):
        free[start : start + FEWEST] = False
    runs = np.split(ids, np.flatnonzero(free[1:] != free[:-1]) + 1)
    kept = runs[0 if free[:1].any() else 1 :: 2]
    return [run for run in kept if len(run) >= FEWEST]


def of_documents(
    train: Sequence[Sequence[Ids]], documents: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, int]:
    """Task of the regression suite -> documents that training examples hold a part of."""
    names = [name for name, of_task in documents.items() for _ in of_task]
    items = [[token_ids(text) for text in _texts(document)] for of_task in documents.values() for document in of_task]
    return dict.fromkeys(documents, 0) | Counter(names[place] for place in contaminated(train, items)[0])


def _texts(value: Any) -> Iterator[str]:
    """The texts in a document, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)
