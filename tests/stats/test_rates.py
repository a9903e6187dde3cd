"""Choosing a learning rate, walking to the next one, naming who ran untuned, and how well the optimum is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from synthetic import make_record, make_tuning, with_rate

from bench.compose import Trial, with_settings
from bench.record import Record
from bench.stats import rates
from bench.stats.frames import Group, Sweep, groups
from bench.stats.rates import (
    TuneConfig,
    best,
    best_of_rates,
    edge,
    is_tuned,
    next_rate,
    optimum_cell,
    remarks,
    warnings,
)

LORA = with_rate(make_record("lora", 0), 2e-4)


def tried(rate: float, loss: float | None) -> Trial:
    return Trial(rate, loss, 20, 100.0, f"run-{rate:g}")


TUNING = make_tuning(LORA, [tried(1e-4, 2.5), tried(2e-4, 2.4), tried(4e-4, 2.5)])


def walk(loss_at: Callable[[float], float | None], settings: TuneConfig, middle: float) -> list[float]:
    """The rates that a search tries, in order."""
    trials: list[Trial] = []
    while (rate := next_rate(settings, middle, trials)) is not None:
        trials.append(tried(rate, loss_at(rate)))
    return [trial.learning_rate for trial in trials]


def valley(lowest: float) -> Callable[[float], float]:
    return lambda rate: abs(math.log(rate / lowest))


def test_the_best_has_the_lowest_finite_loss_and_of_equal_ones_the_lower_rate() -> None:
    trials = [tried(1e-4, 2.5), tried(2e-4, 2.4), tried(8e-4, None)]
    assert best(trials) == trials[1]
    assert best([tried(2e-4, 2.4), tried(1e-4, 2.4)]) == tried(1e-4, 2.4)
    assert best([tried(1e-4, None)]) is None


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([tried(1e-4, 2.5)], "high"),
        ([tried(1e-4, 2.5), tried(2e-4, 2.4)], "high"),
        ([tried(1e-4, 2.4), tried(2e-4, 2.5)], "low"),
        ([tried(1e-4, 2.5), tried(2e-4, 2.4), tried(4e-4, None)], None),
        ([tried(1e-4, None)], "low"),
    ],
)
def test_an_edge_is_an_end_of_what_was_tried(trials: list[Trial], expected: str | None) -> None:
    assert edge(trials) == expected


@pytest.mark.parametrize(
    ("lowest", "settings", "middle", "expected"),
    [
        (5e-5, TuneConfig(), 5e-5, [5e-5, 1.25e-4, 2e-5, 7.91e-5, 3.16e-5]),
        (1.2e-4, TuneConfig(), 5e-5, [5e-5, 1.25e-4, 3.13e-4, 1.98e-4, 7.91e-5]),
        (8e-6, TuneConfig(), 5e-5, [5e-5, 1.25e-4, 2e-5, 8e-6, 3.2e-6]),
        (1.0, TuneConfig(max_points=4), 1e-4, [1e-4, 2.5e-4, 6.25e-4, 1.56e-3]),
        (1e-4, TuneConfig(factor=10), 1e-4, [1e-4, 1e-3, 1e-5, 3.16e-4, 3.16e-5]),
        (1e-2, TuneConfig(factor=10), 1e-4, [1e-4, 1e-3, 1e-2, 1e-1, 3.16e-2]),
        (1.0, TuneConfig(rates=[1e-4, 1e-5], max_points=9), 1e-4, [1e-4, 1e-5]),
        (1.0, TuneConfig(factor=10, max_points=9), 0.5, [0.5]),  # no rate is above 1
    ],
)
def test_the_search_walks_until_the_best_is_inside(
    lowest: float, settings: TuneConfig, middle: float, expected: list[float]
) -> None:
    assert walk(valley(lowest), settings, middle) == expected


def test_diverged_trials_send_the_search_to_lower_rates() -> None:
    found = walk(lambda rate: None if rate > 3e-5 else rate, TuneConfig(max_points=9), 2e-4)
    assert found[:3] == [2e-4, 8e-5, 3.2e-5]
    assert min(found) < 2e-5


def test_a_run_is_tuned_by_its_own_word_or_by_the_rate_that_a_search_chose() -> None:
    assert is_tuned(LORA, [TUNING])
    assert not is_tuned(LORA, [])
    assert not is_tuned(with_rate(LORA, 1e-4), [TUNING])
    assert not is_tuned(with_rate(make_record("full", 0), 2e-4), [TUNING])
    by_file = with_settings(LORA.config, {"learning_rate_source": "tuned: a.yaml sha256 12"})
    assert is_tuned(replace(LORA, config=by_file), [])


def group_of(*records: Record, tuned: bool) -> Group:
    (group,) = groups(Sweep([], list(records), tunings=[TUNING] if tuned else []))
    return group


def test_warnings_name_the_untuned_and_say_when_only_some_were_tuned() -> None:
    base, full = make_record("base", 0), with_rate(make_record("full", 0), 5e-5)
    (text,) = warnings(group_of(base, full, LORA, tuned=False))
    assert text.startswith("Learning rates untuned: full and lora ran")
    (text,) = warnings(group_of(base, full, LORA, tuned=True))
    assert text.startswith("Only lora ran")
    assert "full ran untuned" in text
    assert warnings(group_of(LORA, tuned=True)) == warnings(group_of(base, tuned=False)) == []
    assert rates.tunings_of(group_of(base, LORA, tuned=True)) == {"lora": TUNING}


def test_remarks_name_the_edge_the_shorter_trials_and_other_data() -> None:
    tuning = make_tuning(with_rate(LORA, 4e-4), [tried(1e-4, 2.5), tried(2e-4, 2.4), tried(4e-4, 2.3)])
    (text,) = remarks(tuning)
    assert "0.0004, is the highest that was tried; a higher one may be better" in text
    assert "at most 10 steps" in remarks(replace(TUNING, max_steps=10))[0]
    assert "other data" in remarks(replace(TUNING, data_fingerprint="0" * 64), [LORA])[0]
    assert remarks(TUNING, [LORA]) == []


def test_the_optimum_lies_in_the_cell_of_the_best_rate() -> None:
    assert optimum_cell({1e-4: 2.9, 4e-4: 2.7, 1.6e-3: 2.8}) == pytest.approx((4e-4, 2e-4, 8e-4))
    assert optimum_cell({1e-4: 2.6, 4e-4: 2.7}) == pytest.approx((1e-4, 1e-5, 2e-4))  # open below


def test_of_arms_that_differ_in_the_rate_alone_the_one_of_lowest_validation_loss_stands() -> None:
    assert LORA.train is not None
    low = with_rate(LORA, 1e-5)
    better = replace(low, train=replace(LORA.train, heldout=[replace(LORA.train.heldout[-1], loss=2.0)]))
    other = with_rate(make_record("qlora", 0), 1e-5)
    arms = {"high": [LORA], "low": [better], "qlora": [other]}
    assert list(best_of_rates(arms)) == ["low", "qlora"]
    assert rates.tried({"high": [LORA], "low": [better]}, []) == [{1e-5: 2.0, 2e-4: 2.6}]
