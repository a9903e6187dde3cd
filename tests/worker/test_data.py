"""The order of training depends on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.worker import data
from bench.worker.instruments.tokens import TokenStream
from bench.worker.observe import heldout_steps

LENGTHS = list(np.random.default_rng(7).integers(5, 50, size=50))


def order(seed: int = 0, epochs: int = 1, max_steps: int | None = None) -> list[int]:
    return data.training_order(LENGTHS, seed=seed, epochs=epochs, batch_size=8, max_steps=max_steps)


def test_every_example_comes_once_an_epoch() -> None:
    assert sorted(order()) == list(range(50))
    assert sorted(order(epochs=3)) == sorted(list(range(50)) * 3)


def test_the_seed_decides() -> None:
    assert order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2)


def test_sorting_by_length_keeps_each_batch_as_drawn() -> None:
    drawn = np.random.default_rng(0).permutation(50)
    for start in range(0, 50, 8):
        batch = order()[start : start + 8]
        assert set(batch) == set(drawn[start : start + 8])
        assert [LENGTHS[i] for i in batch] == sorted((LENGTHS[i] for i in batch), reverse=True)


def test_max_steps_cuts_the_order() -> None:
    assert order(max_steps=2) == order()[:16]
    assert data.steps_of(order(), 8) == 7  # the last batch is smaller, and is trained on


def test_only_the_answer_is_labelled() -> None:
    rows = [{"prompt_ids": [1, 2], "answer_ids": [3, 4]}, {"prompt_ids": [5], "answer_ids": [6]}]
    batch = data.collate(rows, pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4], [-100, 6, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_the_stream_hash_depends_neither_on_the_micro_batch_nor_on_padding(micro_batch: int, multiple: int) -> None:
    rows = [{"prompt_ids": list(range(2, n)), "answer_ids": [n, 1]} for n in (9, 7, 6, 4, 8, 5, 3, 3)]
    stream, counts = TokenStream(), []
    for start in range(0, 8, micro_batch):
        batch = data.collate(rows[start : start + micro_batch], pad_id=0, multiple=multiple)
        assert batch["input_ids"].shape[1] % multiple == 0
        counts.append(stream.consume(batch["input_ids"], batch["labels"], batch["attention_mask"]))
    whole = TokenStream()
    for row in rows:
        alone = data.collate([row], pad_id=9)  # another padding token
        whole.consume(alone["input_ids"], alone["labels"], alone["attention_mask"])
    assert stream.hexdigest() == whole.hexdigest()
    assert sum(c.tokens for c in counts) == sum(len(r["prompt_ids"]) + 2 for r in rows)
    assert sum(c.supervised_tokens for c in counts) == 16
    assert sum(c.examples for c in counts) == 8


def test_the_stream_hash_sees_order_tokens_and_labels() -> None:
    def digest(ids: list[list[int]], labels: list[list[int]]) -> str:
        stream = TokenStream()
        stream.consume(torch.tensor(ids), torch.tensor(labels), torch.ones(len(ids), len(ids[0])))
        return stream.hexdigest()

    base = digest([[1, 2], [3, 4]], [[-100, 2], [-100, 4]])
    assert digest([[3, 4], [1, 2]], [[-100, 4], [-100, 2]]) != base
    assert digest([[1, 2], [3, 5]], [[-100, 2], [-100, 4]]) != base
    assert digest([[1, 2], [3, 4]], [[1, 2], [-100, 4]]) != base


def test_heldout_points_are_spread_and_end_at_the_end() -> None:
    assert heldout_steps(32, 4) == {8, 16, 24, 32}
    assert heldout_steps(3, 4) == {1, 2, 3}
    assert heldout_steps(10, 1) == {10}


def test_packing_keeps_examples_apart_and_can_be_undone() -> None:
    rows = [{"prompt_ids": [1, 2], "answer_ids": [3, 4]}, {"prompt_ids": [5], "answer_ids": [6]}]
    batch = data.pack(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4, -100, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    parts = data.unpack(batch)
    assert [part["input_ids"].tolist() for part in parts] == [[[1, 2, 3, 4]], [[5, 6]]]
    assert [part["labels"].tolist() for part in parts] == [[[-100, -100, 3, 4]], [[-100, 6]]]
