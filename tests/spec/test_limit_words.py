"""Limits are read from words, and every mistake is told at once."""

from __future__ import annotations

import pytest

from bench.config import ConfigurationError
from bench.stats.limits import WORDS, Limits, limits_from_words


@pytest.mark.parametrize(
    ("word", "limits"),
    [
        ("memory_gb=24", Limits(memory_bytes=24e9)),
        ("memory_gib=24", Limits(memory_bytes=24 * 2**30)),
        ("time_hours=2", Limits(time_seconds=7200)),
        ("time_minutes=1.5", Limits(time_seconds=90)),
        ("cost_usd=0", Limits(cost_usd=0)),
        ("price_usd_per_hour=2.5", Limits(price_usd_per_hour=2.5)),
        ("forgetting_tolerance=2", Limits(forgetting_share=0.02)),
        ("quality_tolerance=0.01", Limits(quality_tolerance=0.01)),
        ("quality_tolerance=3%", Limits(quality_relative=0.03)),
        ("mergeable=yes", Limits(mergeable=True)),
        ("mergeable=No", Limits(mergeable=False)),
        ("adapters=20", Limits(adapters=20)),
    ],
)
def test_a_word_sets_its_limit(word: str, limits: Limits) -> None:
    assert limits_from_words([word]) == limits


def test_every_word_was_tried() -> None:
    given = {"memory_gb=1", "memory_gib=1", "time_hours=1", "time_minutes=1", "cost_usd=1", "price_usd_per_hour=1",
             "forgetting_tolerance=1", "quality_tolerance=1", "mergeable=1", "adapters=1"}  # fmt: skip
    assert {word.partition("=")[0] for word in given} == set(WORDS)
    assert all(limits_from_words([word]) != Limits() for word in given)


def test_no_words_are_no_limits() -> None:
    assert limits_from_words([]) == Limits()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("memory_gb=lots", "expected a number above 0; given 'lots'"),
        ("memory_gb=0", "expected a number above 0"),
        ("memory_gb=", "given ''"),
        ("memory_gib=nan", "expected a number above 0"),
        ("time_hours=inf", "expected a number above 0"),
        ("time_hours=-1", "given '-1'"),
        ("forgetting_tolerance=101", "from 0 on, at most 100"),
        ("quality_tolerance=3", "a share of the best's score (3%)"),
        ("quality_tolerance=101%", "points of the score"),
        ("mergeable=maybe", "expected yes or no"),
        ("adapters=2.5", "a whole number from 1 on"),
        ("adapters=0", "a whole number from 1 on"),
    ],
)
def test_a_bad_value_says_what_is_expected(word: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        limits_from_words([word])
    (problem,) = error.value.problems
    assert problem.startswith(f"{word}: ")
    assert told in problem


def test_all_mistakes_are_told_at_once_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError) as error:
        limits_from_words(["memry_gb=24", "adapters=x", "time_hours=2", "time_minutes=3"])
    unknown, bad, twice = error.value.problems
    assert "did you mean 'memory_gb'?" in unknown
    assert all(name in unknown for name in WORDS)
    assert bad.startswith("adapters=x: expected")
    assert twice == "time_minutes=3: time_hours=2 has set this limit already; give one of the two"


def test_quality_margin() -> None:
    assert Limits().quality_margin(0.3, 0.009) == 0.009
    assert Limits(quality_tolerance=0.02).quality_margin(0.3, 0.009) == 0.02
    assert Limits(quality_relative=0.1).quality_margin(0.3, 0.009) == pytest.approx(0.03)
