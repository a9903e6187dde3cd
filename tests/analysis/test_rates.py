"""Choosing a rate, walking to the next one, giving up on a trial, and telling who ran untuned."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from synthetic import make_record, make_tuning, with_rate

from bench.analysis.rates import best, best_rates, edge, hopeless, is_tuned, next_rate, remarks, warnings
from bench.config import TrialConfig, with_settings
from bench.record import HeldoutPoint, Trial, TuneConfig


def tried(rate: float, loss: float | None, stopped: str | None = None) -> Trial:
    return Trial(rate, loss, 20, stopped, 100.0, f"run-{rate:g}")


def walk(losses_at, settings: TuneConfig, middle: float) -> list[float]:
    """The rates that a search tries, in order, where `losses_at` gives the loss of a rate."""
    trials: list[Trial] = []
    while (rate := next_rate(settings, middle, trials)) is not None:
        trials.append(tried(rate, losses_at(rate)))
    return [trial.learning_rate for trial in trials]


def valley(lowest: float):
    return lambda rate: abs(math.log(rate / lowest))


def test_the_best_has_the_lowest_loss_and_ran_to_its_end() -> None:
    trials = [tried(1e-4, 2.5), tried(2e-4, 2.4), tried(4e-4, 2.1, "hopeless"), tried(8e-4, None)]
    assert best(trials) == trials[1]
    assert best([tried(2e-4, 2.4), tried(1e-4, 2.4)]).learning_rate == 1e-4
    assert best([tried(1e-4, None)]) is None


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([tried(1e-4, 2.5)], "high"),
        ([tried(1e-4, 2.5), tried(2e-4, 2.4)], "high"),
        ([tried(1e-4, 2.4), tried(2e-4, 2.5)], "low"),
        ([tried(1e-4, 2.5), tried(2e-4, 2.4), tried(4e-4, 2.6, "hopeless")], None),
        ([tried(1e-4, 2.5), tried(2e-4, 2.4), tried(4e-4, None)], None),
        ([tried(1e-4, None)], "low"),
    ],
)
def test_an_edge_is_an_end_of_what_was_tried(trials: list[Trial], expected: str | None) -> None:
    assert edge(trials) == expected


def test_a_good_middle_takes_three_trials() -> None:
    assert walk(valley(5e-5), TuneConfig(), 5e-5) == [5e-5, 1.25e-4, 2e-5]


def test_the_search_walks_towards_lower_loss_until_the_best_is_inside() -> None:
    assert walk(valley(1.2e-4), TuneConfig(), 5e-5) == [5e-5, 1.25e-4, 3.13e-4]
    assert walk(valley(8e-6), TuneConfig(), 5e-5) == [5e-5, 1.25e-4, 2e-5, 8e-6, 3.2e-6]


def test_the_search_ends_at_its_limit_and_the_best_is_then_at_an_edge() -> None:
    rates = walk(valley(1.0), TuneConfig(max_points=4), 1e-4)
    assert rates == [1e-4, 2.5e-4, 6.25e-4, 1.56e-3]
    assert edge([tried(rate, valley(1.0)(rate)) for rate in rates]) == "high"


def test_a_grid_comes_first_and_grows_at_its_edge_only() -> None:
    assert walk(valley(1e-4), TuneConfig(points=3, factor=10), 1e-4) == [1e-4, 1e-3, 1e-5]
    assert walk(valley(1e-2), TuneConfig(points=3, factor=10), 1e-4) == [1e-4, 1e-3, 1e-5, 1e-2, 1e-1]
    assert len(walk(valley(1e-4), TuneConfig(points=5, max_points=5), 1e-4)) == 5


def test_diverged_trials_send_the_search_to_lower_rates() -> None:
    rates = walk(lambda rate: None if rate > 3e-5 else rate, TuneConfig(max_points=9), 2e-4)
    assert rates[:3] == [2e-4, 8e-5, 3.2e-5]
    assert min(rates) < 2e-5


def test_given_rates_are_tried_and_nothing_else() -> None:
    assert walk(valley(1.0), TuneConfig(rates=[1e-4, 1e-5], max_points=9), 1e-4) == [1e-4, 1e-5]


def test_no_rate_is_above_one() -> None:
    assert walk(valley(1.0), TuneConfig(factor=10, max_points=9), 0.5) == [0.5]


def points(*losses: float | None) -> list[HeldoutPoint]:
    return [HeldoutPoint(10 * i, 0, 0.0, loss) for i, loss in enumerate(losses)]


def test_a_trial_is_hopeless_when_it_fell_less_than_its_share() -> None:
    rule = TrialConfig(best_losses=[(0, 3.4), (10, 2.6), (20, 2.4)], hopeless_below=0.5)
    assert hopeless(rule, points(3.4, 2.9)) is None  # 0.5 of 0.8
    assert "fell by 0.300, less than 0.5 of the 0.800" in hopeless(rule, points(3.4, 3.1))
    assert hopeless(rule, points(3.4, 4.4)) is not None
    assert "not finite at step 10" in hopeless(rule, points(3.4, None))


def test_without_a_rival_only_divergence_is_hopeless() -> None:
    assert hopeless(TrialConfig(), points(3.4, 9.9)) is None
    assert hopeless(TrialConfig(), points(3.4, None)) is not None
    assert hopeless(TrialConfig(best_losses=[(0, 3.4), (10, 3.5)]), points(3.4, 3.6)) is None  # the rival rose too


def test_best_rates_are_by_method() -> None:
    lora = with_rate(make_record("lora", 0), 2e-4)
    failed = replace(make_tuning(with_rate(make_record("full", 0), 1e-5), []), learning_rate=None)
    assert best_rates([make_tuning(lora, [tried(2e-4, 2.4)]), failed]) == {"lora": 2e-4}


def test_a_run_is_tuned_by_its_own_word_or_by_the_rate_that_a_search_chose() -> None:
    run = with_rate(make_record("lora", 0), 2e-4)
    tuning = make_tuning(run, [tried(1e-4, 2.5), tried(2e-4, 2.4), tried(4e-4, 2.5)])
    assert is_tuned(run, [tuning])
    assert not is_tuned(run, [])
    assert not is_tuned(with_rate(make_record("lora", 0), 1e-4), [tuning])
    assert not is_tuned(with_rate(make_record("full", 0), 2e-4), [tuning])
    assert is_tuned(
        replace(run, config=with_settings(run.config, {"learning_rate_source": "tuned: a.yaml sha256 12"})), []
    )


def test_warnings_name_the_untuned_and_say_when_only_some_were_tuned() -> None:
    base, full, lora = (
        make_record("base", 0),
        with_rate(make_record("full", 0), 5e-5),
        with_rate(make_record("lora", 0), 2e-4),
    )
    tuning = make_tuning(lora, [tried(1e-4, 2.5), tried(2e-4, 2.4), tried(4e-4, 2.5)])
    (all_untuned,) = warnings({"base": [base], "full": [full], "lora": [lora]}, [])
    assert all_untuned.startswith("Learning rates untuned: full and lora ran")
    (some,) = warnings({"base": [base], "full": [full], "lora": [lora]}, [tuning])
    assert some.startswith("Only lora ran")
    assert "full ran untuned" in some
    assert warnings({"lora": [lora]}, [tuning]) == []
    assert warnings({"base": [base]}, []) == []


def test_remarks_name_the_edge_the_shorter_trials_and_other_data() -> None:
    lora = with_rate(make_record("lora", 0), 4e-4)
    tuning = make_tuning(lora, [tried(1e-4, 2.5), tried(2e-4, 2.4), tried(4e-4, 2.3)])
    (text,) = remarks(tuning)
    assert "0.0004, is the highest that was tried; a higher one may be better" in text
    assert "at most 10 steps" in remarks(replace(tuning, at_edge=None, max_steps=10))[0]
    assert "other data" in remarks(replace(tuning, at_edge=None, data_fingerprint="0" * 64), [lora])[0]
    assert remarks(replace(tuning, at_edge=None), [lora]) == []
