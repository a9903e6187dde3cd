"""Every metric against answers computed by hand."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import get_args

import pytest

from bench.config import Metric
from bench.stats.metrics import METRICS, final_number, score, score_all


def test_every_metric_of_the_config_is_scored() -> None:
    assert set(get_args(Metric)) == {*METRICS, "label"}


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "expected"),
    [
        # "the cat sat" / "the cat ran off": 2 shared words of 3 and 4 -> F1 = 2*2/(3+4)
        ("rouge1", "the cat sat", "the cat ran off", 4 / 7),
        # bigrams: 1 shared of 2 and 3
        ("rouge2", "the cat sat", "the cat ran off", 2 / 5),
        # longest common subsequence of "a c b" and "a b c d": 2 -> 2*2/(3+4)
        ("rougeL", "a c b", "a b c d", 4 / 7),
        ("rougeL", "returns", "return", 0.0),  # no stemming
        ("rougeL", "", "word", 0.0),
        ("bleu", "a b c d", "a b c d", 1.0),
        ("bleu", "a b", "a b", 1.0),  # effective order: only uni- and bigrams exist
        # precisions 3/3, 2/2, 1/1 and brevity penalty exp(1 - 4/3)
        ("bleu", "a b c", "a b c d", math.exp(1 - 4 / 3)),
        ("bleu", "", "a b", 0.0),
        ("chrf", "abcdef", "abcdef", 1.0),
        ("chrf", "abc", "xyz", 0.0),
        ("exact_match", "  two\n words ", "two words", 1.0),
        ("exact_match", "Two words", "two words", 0.0),
        # words: {quick, fox} and {quick, brown, fox}
        ("token_f1", "The quick fox!", "a quick brown fox", 4 / 5),
        ("token_f1", "", "fox", 0.0),
        ("token_f1", "the", "a", 1.0),  # both empty without articles
        ("numeric", "First 5, then 1,234.", "#### 1234", 1.0),
        ("numeric", "#### 7\nNext question: 8", "7", 1.0),
        ("numeric", r"so \boxed{12.50} of 99", "12.5", 1.0),
        ("numeric", "1000000.5", "1000000", 1.0),  # within a relative 1e-6
        ("numeric", "1000002", "1000000", 0.0),
        ("numeric", "1e99999999", "5", 0.0),  # no overflow
        ("numeric", "none", "0", 0.0),
        ("numeric", "0", "0", 1.0),
        ("json_valid", '{"a": [1, null]}', "", 1.0),
        ("json_valid", '```json\n{"a": 1}\n```', "", 1.0),
        ("json_valid", "```\n[]\n```", "", 1.0),
        ("json_valid", 'Here: {"a": 1}', "", 0.0),
        ("json_valid", "{'a': 1}", "", 0.0),
        ("json_valid", "NaN", "", 0.0),
        ("json_valid", "[" * 100_000, "", 0.0),
    ],
)
def test_by_hand(metric: str, prediction: str, reference: str, expected: float) -> None:
    assert score(metric, prediction, reference) == pytest.approx(expected)


def test_chrf_of_one_letter_order() -> None:
    """'ab' / 'ac': unigram P = R = 1/2, bigram 0, higher orders do not exist: chrF2 = mean P, mean R = 1/4."""
    assert score("chrf", "ab", "ac") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It costs $1,250.50.", "1250.50"),
        ("-$5", "-5"),
        ("from 3-4", "4"),
        ("x = -2", "-2"),
        ("\N{MINUS SIGN}3", "-3"),
        ("1.5e3", "1500"),
        (".5", "0.5"),
        ("12kg", "12"),
        ("18 eggs, version 1.2.", "1.2"),
    ],
)
def test_final_number(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


def test_marked_answer_without_a_number_is_none() -> None:
    assert final_number("5 and 6 #### unknown") is None
    assert final_number("words") is None


def test_label_must_be_right_and_allowed() -> None:
    labels = ["card_arrival", "lost_card"]
    assert score("label", " Card arrival. ", "card_arrival", labels=labels) == 1.0
    assert score("label", "lost_card", "card_arrival", labels=labels) == 0.0
    assert score("label", "other", "other", labels=labels) == 0.0
    assert score("label", "the answer is card_arrival", "card_arrival", labels=labels) == 0.0


def test_score_all_keeps_the_order() -> None:
    assert score_all(["exact_match", "json_valid"], ["1", "x"], ["1", "y"]) == [
        {"exact_match": 1.0, "json_valid": 1.0},
        {"exact_match": 0.0, "json_valid": 0.0},
    ]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="allowed: bleu"):
        score("rouge9", "", "")
    with pytest.raises(ValueError, match="needs labels"):
        score("label", "a", "a")
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        score_all(["bleu"], ["a", "b"], ["a"])
