"""Statistics against scipy, against answers computed by hand, and by simulation."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.analysis import stats
from bench.analysis.variance import standard_error


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def differences(generator: np.random.Generator, shape: tuple[int, int], seed_sd: float, shared_sd: float) -> np.ndarray:
    """Crossed seeds and examples around 0, with a rest of standard deviation 0.7."""
    seeds, examples = shape
    of_seeds = generator.normal(0, seed_sd, (seeds, 1))
    return of_seeds + generator.normal(0, shared_sd, (1, examples)) + generator.normal(0, 0.7, shape)


def test_one_seed_agrees_with_student() -> None:
    values = rng(3).normal(0.1, 1, (1, 400))
    result = stats.paired(values, rng=rng())
    student = scipy_stats.ttest_1samp(values[0], 0)
    assert result.mean == pytest.approx(values.mean())
    assert result.error.total == pytest.approx(scipy_stats.sem(values[0]))
    assert result.interval() == pytest.approx(tuple(student.confidence_interval(0.95)), abs=0.006)
    assert result.p_value() == pytest.approx(student.pvalue, abs=0.02)


def test_p_value_and_interval_agree() -> None:
    for shift in np.linspace(0, 0.3, 13):
        result = stats.paired(rng(5).normal(shift, 1, (2, 80)), rng=rng(), draws=2000)
        low, high = result.interval()
        assert (result.p_value() < 0.05) == (low > 0 or high < 0)


def test_weights_are_a_ratio_of_sums() -> None:
    result = stats.paired(np.array([[1.0, 4.0]]), weights=np.array([3.0, 1.0]), rng=rng())
    assert result.mean == pytest.approx((3 * 1 + 1 * 4) / 4)
    assert (result.draws.min(), result.draws.max()) == (1.0, 4.0)  # one example drawn twice


def test_equal_weights_change_nothing() -> None:
    values = rng(1).normal(size=(3, 50))
    plain = stats.paired(values, rng=rng())
    weighted = stats.paired(values, weights=np.full(50, 7.0), rng=rng())
    assert weighted.interval() == pytest.approx(plain.interval())
    assert weighted.error == standard_error(values, np.ones((3, 50)))


def test_two_way_standard_error_by_hand() -> None:
    """Seed means 1 and 3, no example or rest: only the seeds vary: variance of the mean 2 / 2 = 1, 1 degree."""
    error = standard_error(np.array([[1.0] * 4, [3.0] * 4]), np.ones((2, 4)))
    assert (error.seed_part, error.example_part) == (pytest.approx(1.0), 0.0)
    assert error.degrees_of_freedom == pytest.approx(1.0)


def test_same_generator_same_result_and_fast() -> None:
    values = rng(2).normal(size=(3, 200))
    started = time.perf_counter()
    first = stats.paired(values, rng=rng(9)).interval()
    assert time.perf_counter() - started < 1.0
    assert first == stats.paired(values, rng=rng(9)).interval()
    assert first != stats.paired(values, rng=rng(10)).interval()


def test_shared_draws_give_the_interval_of_own_draws() -> None:
    resampler = stats.Resampler(rng())
    values = rng(2).normal(size=(1, 100))
    stats.paired(values, rng=resampler)
    assert stats.paired(values, rng=resampler).interval() == stats.paired(values, rng=rng()).interval()


@pytest.mark.parametrize(("seeds", "examples", "seed_sd"), [(1, 50, 0.0), (3, 60, 0.0), (3, 60, 0.1), (5, 60, 0.2)])
def test_intervals_cover_the_truth(seeds: int, examples: int, seed_sd: float) -> None:
    """Nominal 95%; 600 repetitions have a standard error of 0.9 points."""
    generator = rng(11)
    covered = 0
    for _ in range(600):
        values = differences(generator, (seeds, examples), seed_sd, 0.5)
        low, high = stats.paired(values, rng=generator, draws=500).interval()
        covered += low <= 0 <= high
    assert 0.92 <= covered / 600 <= 0.985


def test_independent_seeds_are_not_taken_for_more_examples() -> None:
    """The same examples under 5 seeds that agree: the interval is that of one seed, not narrower by sqrt(5)."""
    one = rng(4).normal(size=(1, 200))
    single = stats.paired(one, rng=rng()).interval()
    fivefold = stats.paired(np.repeat(one, 5, axis=0), rng=rng()).interval()
    assert fivefold == pytest.approx(single, rel=0.02)


def test_mcnemar_agrees_with_the_binomial_test() -> None:
    assert stats.mcnemar(0, 0) == 1.0
    assert stats.mcnemar(5, 0) == pytest.approx(2 * 0.5**5)
    assert stats.mcnemar(3, 9) == pytest.approx(scipy_stats.binomtest(3, 12).pvalue)


def test_sign_flips_agree_with_scipy() -> None:
    values = rng(7).normal(0.3, 1, (1, 12))
    exact = scipy_stats.permutation_test(
        (values[0],), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    mine = stats.sign_flip(stats.paired(values, rng=rng()), rng(), draws=50_000)
    assert mine == pytest.approx(exact.pvalue, abs=0.01)
    assert stats.sign_flip(stats.paired(np.zeros((1, 12)), rng=rng()), rng()) == 1.0


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


@pytest.mark.parametrize(
    ("shift", "spread", "margin", "higher", "word"),
    [
        (0.20, 0.2, 0.01, True, "better"),
        (0.20, 0.2, 0.01, False, "worse"),
        (-0.2, 0.2, 0.01, True, "worse"),
        (0.00, 0.1, 0.05, True, "equivalent"),
        (0.00, 0.5, 0.01, True, "inconclusive"),
    ],
)
def test_verdicts(shift: float, spread: float, margin: float, higher: bool, word: str) -> None:
    values = rng(8).normal(0, spread, (1, 100))
    result = stats.paired(values - values.mean() + shift, rng=rng())
    assert stats.verdict(result, margin, higher_is_better=higher) == word


def test_few_examples_decide_nothing() -> None:
    certain = stats.paired(np.full((3, 5), 0.5), rng=rng())
    assert stats.verdict(certain, 0.1) == "inconclusive"
    assert not stats.is_not_worse(certain, 0.1)
    one = stats.paired(np.array([[0.5]]), rng=rng())
    assert one.interval() == (-np.inf, np.inf)
    assert one.p_value() == 1.0


def test_unchanged_answers_prove_equivalence_only_in_number() -> None:
    """No answer of 30 changed: a change of 5 points is not ruled out. Of 300: it is."""
    assert not stats.is_equivalent(stats.paired(np.zeros((1, 30)), rng=rng()), 0.05)
    assert stats.is_equivalent(stats.paired(np.zeros((1, 300)), rng=rng()), 0.05)


def test_power_is_as_computed() -> None:
    """At the detectable difference, 80% of experiments reject; 400 repetitions have a standard error of 2 points."""
    generator, rejected = rng(12), 0
    detectable = stats.detectable_difference(stats.paired(generator.normal(size=(1, 4000)), rng=rng()))
    shift = detectable * np.sqrt(4000 / 100)
    for _ in range(400):
        rejected += stats.paired(generator.normal(shift, 1, (1, 100)), rng=generator, draws=500).p_value() < 0.05
    assert 0.74 <= rejected / 400 <= 0.87


def test_examples_to_decide() -> None:
    """Difference 0.1, standard deviation 1: n = ((1.960 + 0.842) / 0.1)^2 = 785."""
    values = rng(6).normal(size=(1, 100))
    values = (values - values.mean()) / values.std(ddof=1) + 0.1
    assert stats.examples_to_decide(stats.paired(values, rng=rng()), margin=0.01) == 785
    seeds_disagree = np.array([[-1.0], [1.2]]) + rng(6).normal(0, 0.1, (2, 100))
    assert stats.examples_to_decide(stats.paired(seeds_disagree, rng=rng()), margin=0.01) is None


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 3)), np.array([[np.nan, 1.0]])])
def test_unusable_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="values"):
        stats.paired(values, rng=rng())


def test_weights_must_be_positive() -> None:
    with pytest.raises(ValueError, match="weights"):
        stats.paired(np.ones((1, 2)), weights=np.array([1.0, 0.0]), rng=rng())
