"""Copies and near-copies among documented functions: what must not be repeated, nor held out after training on it.

Library code is full of copies: the same method in ten classes, the same docstring on forty functions, one module
derived from another by renaming. A copy in the test split would be scored as skill.

    >>> renamed("def chebadd(c1, c2):  # add") == renamed("def hermadd(a, b):")
    True
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from bench.worker.sources.example import Example, content_hash
from bench.worker.sources.sentence import near_keys
from bench.worker.sources.template import Row

NEAR_COPY_CHARACTERS = 150  # shorter functions resemble one another by nature

_COMMENT = re.compile(r"#.*")
_WORD = re.compile(r"[A-Za-z_]\w*")


def distinct(rows: Iterator[Row], dropped: Counter[str]) -> list[Row]:
    """One row a name, a sentence and a code; the first by the hash of its name stays."""
    kept = []
    seen: dict[str, set[str]] = {"name": set(), "docstring": set(), "code": set()}
    for row in sorted(rows, key=lambda r: content_hash(r.where)):
        keys = {
            "name": row.where,
            "docstring": " ".join(_WORD.findall(row.columns["docstring"].lower())),
            "code": squeezed(row.columns["code"], row.columns["name"].rpartition(".")[2]),
        }
        repeated = next((kind for kind, key in keys.items() if key in seen[kind]), None)
        if repeated:
            dropped[f"duplicate: same {repeated}"] += 1
            continue
        for kind, key in keys.items():
            seen[kind].add(key)
        kept.append(row)
    return kept


def squeezed(code: str, name: str) -> str:
    """Code without comments, white space and its own name: equal for copies under another name."""
    return "".join(_COMMENT.sub("", code).split()).replace(name, "")


def renamed(code: str) -> str:
    """Code with its words numbered in order of appearance: equal for copies with other names throughout."""
    numbers: dict[str, str] = {}
    return "".join(_WORD.sub(lambda m: numbers.setdefault(m[0], f"v{len(numbers)}"), _COMMENT.sub("", code)).split())


def without_near_copies(
    train: list[Example], held_out: list[Example], rows: dict[str, Row], dropped: Counter[str]
) -> list[Example]:
    """Held-out examples whose answer or code is not a variation of one in the training split."""
    train_rows = [rows[e.example_id].columns for e in train]
    answers = {key for r in train_rows for key in near_keys(str(r["docstring"]))}
    codes = {renamed(str(r["code"])) for r in train_rows}
    kept = []
    for example in held_out:
        columns = rows[example.example_id].columns
        code = str(columns["code"])
        if not answers.isdisjoint(near_keys(str(columns["docstring"]))):
            dropped["held out: the docstring is a training one but for a word"] += 1
        elif len(code) >= NEAR_COPY_CHARACTERS and renamed(code) in codes:
            dropped["held out: the code is a training one but for names"] += 1
        else:
            kept.append(example)
    return kept
