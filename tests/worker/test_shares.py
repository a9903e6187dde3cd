"""Who computes which micro-batch: every step whole, every process equally often, in the order of one process."""

from __future__ import annotations

import pytest

from bench.worker import data
from bench.worker.multi import Team, deal, idle_row, in_order, is_idle, share_of_rows

ROWS = [{"prompt_ids": [1] * (i + 1), "answer_ids": [2, 3]} for i in range(5)]


def dealt(rows: int, size: int, batch_size: int = 8, micro_batch: int = 2) -> list[list[list[int]]]:
    return [deal(rows, batch_size=batch_size, micro_batch=micro_batch, rank=rank, size=size) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("rows", [8, 16, 19, 25, 1, 40])
def test_together_they_do_what_one_does(rows: int, size: int) -> None:
    (alone,) = dealt(rows, 1)
    shares = dealt(rows, size)
    assert len({len(share) for share in shares}) == 1
    assert [batch for batch in in_order(shares) if batch != [rows]] == alone
    assert [row for batch in alone for row in batch] == list(range(rows))


def test_a_step_of_each_is_its_part_of_that_step() -> None:
    first, second = dealt(19, 2)  # 8, 8 and 3 rows, in micro-batches of 2
    assert first == [[0, 1], [4, 5], [8, 9], [12, 13], [16, 17]]
    assert second == [[2, 3], [6, 7], [10, 11], [14, 15], [18]]
    assert dealt(17, 2)[1][-1] == [17]  # nothing is left for the second in the last step


def test_the_idle_row_has_no_label() -> None:
    assert is_idle(data.collate([idle_row(ROWS)], pad_id=0))
    assert is_idle(data.pack([idle_row(ROWS)]))
    assert not is_idle(data.collate(ROWS[:1], pad_id=0))


def test_held_out_rows_are_dealt_once_and_evenly() -> None:
    shares = [share_of_rows(ROWS, Team(rank, 2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    dealt_rows = [row for share in shares for row in share if row["answer_ids"]]
    assert sorted(map(str, dealt_rows)) == sorted(map(str, ROWS))
    assert share_of_rows(ROWS, Team()) is ROWS
