"""Scores with shared prefixes equal lm-eval's own, one sequence at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from bench.config import ModelConfig
from bench.worker import models
from bench.worker.scoring import PrefixScorer, branched

TEXTS = [
    ("The capital of France is", [" Paris", " Rome", " Berlin", " Madrid and more"]),
    ("The capital of Norway is", [" Oslo", " Bergen", " Rome", " x"]),
    ("Q", [" a", " an answer much longer than its question"]),
    ("", ["The keys to the cabinet are here.", "The keys to the cabinet is here."]),
]


@pytest.fixture(scope="module")
def loaded(shared_cache: Path):
    config = ModelConfig(name="tiny-random", source="random")
    source = models.locate(config, shared_cache)
    model = models.load_weights(config, source, dtype=torch.float32, device_map={"": "cpu"})
    return {"pretrained": model, "tokenizer": models.load_tokenizer(config, source), "batch_size": 4}


def requests(lm: HFLM) -> list[tuple]:
    made = []
    for context, continuations in TEXTS:
        for continuation in continuations:
            start = lm.tok_encode(context) if context else [lm.prefix_token_id]
            made.append(((context, continuation), start, lm.tok_encode(continuation)))
    return made


@pytest.mark.parametrize("max_length", [256, 40])  # 40: long sequences are cut on the left
def test_the_scores_equal_lm_evals(loaded, max_length: int) -> None:
    theirs, ours = (kind(**loaded, max_length=max_length) for kind in (HFLM, PrefixScorer))
    wanted = theirs._loglikelihood_tokens(requests(theirs), disable_tqdm=True)
    given = ours._loglikelihood_tokens(requests(ours))
    assert [nats for nats, _ in given] == pytest.approx([nats for nats, _ in wanted], rel=1e-5)
    assert [greedy for _, greedy in given] == [greedy for _, greedy in wanted]


def test_a_likely_continuation_is_greedy(loaded) -> None:
    lm = PrefixScorer(**loaded, max_length=256)
    prompt = lm.tok_encode("abc")
    best = loaded["pretrained"](torch.tensor([prompt])).logits[0, -1].argmax().item()
    (first, second) = lm._loglikelihood_tokens([(None, prompt, [best]), (None, prompt, [best - 1])])
    assert first[1]
    assert not second[1]


def test_items_are_joined_when_half_is_shared() -> None:
    question = list(range(10))
    rows = branched([(None, question, [1, 2]), (None, question, [3]), (None, [7], [8]), (None, [7], [9, 9, 9])], 100)
    assert [row.members for row in rows] == [[0, 1], [2], [3]]
    assert rows[0].shared == 10
    assert rows[0].length == 11  # the prefix and one token: last tokens are never read


def test_rows_stay_within_the_models_length() -> None:
    question = list(range(10))
    rows = branched([(None, question, [i, i, i]) for i in range(6)], 17)
    assert [len(row.members) for row in rows] == [3, 3]
    assert all(row.length <= 17 for row in rows)
