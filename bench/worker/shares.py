"""Who of several processes computes which micro-batch of a step: the step as a whole stays what one process would do.

The micro-batches of every step are dealt in turn, so that those computed at the same moment are of like length and
nobody waits long. All processes compute equally many, because each takes part in every collective operation: where a
last, smaller step does not go up, some are idle micro-batches of one token without a label, which change no gradient
and are not counted.

    >>> deal(6, batch_size=4, micro_batch=1, rank=1, size=2)
    [[1], [3], [5]]
    >>> deal(5, batch_size=4, micro_batch=1, rank=1, size=2)
    [[1], [3], [5]]       # 5 is the row after the last: `idle_row`
    >>> in_order([[a, c], [b, d]])
    [a, b, c, d]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from bench.worker.instruments.tokens import IGNORED
from bench.worker.team import Team

T = TypeVar("T")


def deal(rows: int, *, batch_size: int, micro_batch: int, rank: int, size: int) -> list[list[int]]:
    """The micro-batches of one process over the whole training, as indices of rows; `rows` itself is the idle row."""
    mine: list[list[int]] = []
    for start in range(0, rows, batch_size):
        end = min(start + batch_size, rows)
        step = [list(range(at, min(at + micro_batch, end))) for at in range(start, end, micro_batch)]
        step += [[rows]] * (-len(step) % size)
        mine += step[rank::size]
    return mine


def idle_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One token of the first row, without a label."""
    first = [*rows[0]["prompt_ids"], *rows[0]["answer_ids"]]
    return {"prompt_ids": first[:1], "answer_ids": []}


def is_idle(batch: dict[str, Any]) -> bool:
    """Whether a collated micro-batch holds the idle row alone: every other has labels."""
    return not bool((batch["labels"] != IGNORED).any())


def share_of_rows(rows: list[dict[str, Any]], team: Team) -> list[dict[str, Any]]:
    """Every `team.size`-th row, longest first, so that all have equally much to evaluate; idle rows even it out."""
    if team.size == 1:
        return rows
    ordered = sorted(rows, key=lambda row: -len(row["prompt_ids"]) - len(row["answer_ids"]))
    ordered += [idle_row(rows)] * (-len(rows) % team.size)
    return ordered[team.rank :: team.size]


def in_order(shares: Sequence[Sequence[T]]) -> list[T]:
    """What was dealt (equally many to each), in the order of one process."""
    return [part for together in zip(*shares, strict=True) for part in together]
