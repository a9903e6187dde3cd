"""The statistic engine: against scipy, hand-computed layouts, invariants, and the faults that it must not have."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.stats import paired
from bench.stats.paired import (
    MEDIAN,
    Estimate,
    SeedPart,
    draws,
    holm,
    means,
    seed_part,
    seed_variance,
    verdict,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_one_seed_is_the_paired_t_test(rng: np.random.Generator) -> None:
    left, right = rng.normal(size=(2, 1, 40))
    result, oracle = means([left, right]).difference(0, 1), stats.ttest_rel(left[0], right[0])
    assert result.mean == pytest.approx(float((left - right).mean()))
    assert result.p_value() == pytest.approx(oracle.pvalue)
    assert result.interval() == pytest.approx(tuple(oracle.confidence_interval()))
    assert result.interval(0.9) == pytest.approx(tuple(oracle.confidence_interval(0.9)))


def test_seed_part_of_a_layout_by_hand() -> None:
    # Two seeds, two examples: run means 1 and 3, so mean square 2; no interaction.
    assert seed_part([np.array([[0.0, 2.0], [2.0, 4.0]])]) == SeedPart(2.0, 0.0, 1)
    # Rest only: deviations of +-1 in each cell; variance of a run's mean from it is 4 / (1 * 1) / 2.
    assert seed_part([np.array([[1.0, -1.0], [-1.0, 1.0]])]) == SeedPart(0.0, 2.0, 1)


def test_seed_part_is_pooled_over_arms_and_one_seed_adds_nothing(rng: np.random.Generator) -> None:
    arms = [rng.normal(size=(3, 20)), rng.normal(size=(2, 20)), rng.normal(size=(1, 20))]
    own = [seed_part([arm]) for arm in arms[:2]]
    pooled = seed_part(arms)
    assert pooled.degrees == 3
    assert pooled.mean_square == pytest.approx((2 * own[0].mean_square + own[1].mean_square) / 3)
    assert seed_part(arms[2:]) == SeedPart(0.0, 0.0, 0)


def test_an_estimate_of_zero_is_not_knowledge() -> None:
    """Seeds that happen to agree in the mean leave room for a seeds' part; many of them leave little."""
    few, many = SeedPart(0.2, 1.0, 2).points(), SeedPart(0.2, 1.0, 60).points()
    assert few[MEDIAN] > 0.3
    assert many[MEDIAN] < 0.1
    clear = SeedPart(50.0, 1.0, 20).points()  # nearly the untruncated posterior
    assert clear[MEDIAN] == pytest.approx(20 * 50 / stats.chi2.median(20) - 1, rel=0.05)


@pytest.mark.parametrize("degrees", [1, 2, 3, 12])
@pytest.mark.parametrize("p", [0.05, 0.002, 0.0001])
def test_small_p_values_have_the_tail_of_student_t(degrees: int, p: float) -> None:
    """Holm's adjustment asks for p of 0.002 and less: a mixture of few equally likely points would give 0 there."""
    variances = SeedPart(1.0, 0.0, degrees).points()  # the seeds' part is all there is
    far = -float(stats.t.ppf(p / 2, degrees))
    result = Estimate(far, variances, 0.0, 0.0, 0.0, 1e9, 10**9, 2, (-9, 9))
    assert result.p_value() == pytest.approx(p, rel=0.03)


def test_runs_that_agree_in_the_mean_leave_room_for_a_seeds_part() -> None:
    """Two seeds with as many right answers, but not the same ones: their spread is estimated as exactly 0."""
    arm = np.zeros((2, 60))
    arm[0, :30] = arm[1, 15:45] = 1
    part = seed_part([arm])
    assert part.mean_square == 0
    assert part.points()[MEDIAN] > part.rest


def test_a_large_seeds_part_gives_student_t_of_its_degrees() -> None:
    arms = [np.repeat([[a + s] for s in (0.0, 3.0, 6.0)], 50, axis=1) + np.linspace(0, 1e-6, 50) for a in (0.0, 1.0)]
    low, high = means(arms).difference(0, 1).interval()
    expected = stats.t.ppf(0.975, 4) * np.sqrt(2 * 9 / 3)  # variance 9, 3 seeds, 2 arms of 2 degrees each
    assert (high - low) / 2 == pytest.approx(expected, rel=0.03)


def test_an_untrained_arm_has_no_seeds_part(rng: np.random.Generator) -> None:
    base, tuned = rng.normal(size=(1, 60)), rng.normal(size=(3, 60)) + rng.normal(size=(3, 1)) * 3
    known = means([base, tuned], trained=[False, True])
    assert known.seed_share.tolist() == [0, pytest.approx(1 / 3)]
    low, high = known.of(0).interval()
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 59) * stats.sem(base[0]), rel=1e-6)


def test_weights_are_those_of_the_mean(rng: np.random.Generator) -> None:
    values, weights = rng.normal(size=(1, 30)), rng.integers(1, 9, 30).astype(float)
    assert means([values], weights=weights).mean[0] == pytest.approx(np.average(values[0], weights=weights))
    repeated = means([np.repeat(values, 2, axis=0)], weights=np.ones(30))
    assert repeated.of(0).interval() == pytest.approx(means([values]).of(0).interval())  # equal seeds tell nothing new
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="positive"):
            means([values], weights=np.where(np.arange(30) == 3, bad, weights))


def test_a_mean_over_tasks_has_the_error_of_its_tasks() -> None:
    rng = np.random.default_rng(1)
    task = np.repeat([0, 1], [1000, 20])
    values = np.where(task == 0, rng.normal(0, 1, 1020), rng.normal(50, 3, 1020))[None]
    weights = np.where(task == 0, 1 / 1000, 1 / 20)
    result = means([values], weights=weights, strata=task).of(0)
    parts = [values[0, task == t] for t in (0, 1)]
    assert result.mean == pytest.approx(sum(part.mean() for part in parts) / 2)
    welch = stats.ttest_ind(parts[0], -parts[1], equal_var=False).confidence_interval()  # of the sum of both means
    assert result.interval() == pytest.approx((welch.low / 2, welch.high / 2))


@pytest.mark.parametrize("task", [np.arange(12), np.array([0, *[1] * 4, *[2] * 7])])
def test_tasks_of_one_item_are_no_certainty(task: np.ndarray) -> None:
    """The spread of such a task cannot be seen: the interval is that of all items together, which is wider."""
    values = np.random.default_rng(2).normal(0, 1, (1, 12))
    assert means([values], strata=task).of(0).interval() == pytest.approx(means([values]).of(0).interval())


def test_the_test_is_of_the_shown_mean_over_tasks() -> None:
    """Task A of 1,000 items loses 60, task B of 20 gains 4: +7 points, and McNemar over all items would say worse."""
    base = np.ones((1, 1020))
    base[0, 1000:1004] = 0
    tuned = np.ones((1, 1020))
    tuned[0, :60] = 0
    task = np.repeat([0, 1], [1000, 20])
    known = means([tuned, base], weights=np.where(task == 0, 1 / 1000, 1 / 20), strata=task)
    result = known.difference(0, 1)
    assert result.mean == pytest.approx(0.07)
    assert result.discordant is None
    assert verdict(result, 0.02) != "worse"
    assert result.p_value() > 0.05


def test_right_and_wrong_of_one_seed_is_mcnemar() -> None:
    left, right = np.zeros((1, 30)), np.zeros((1, 30))
    left[0, :9] = 1
    right[0, 9:11] = 1
    result = means([left, right]).difference(0, 1)
    assert result.discordant == (9, 2)
    assert result.p_value() == pytest.approx(stats.binomtest(9, 11, 0.5).pvalue)
    swapped = np.roll(left, 1)  # as many right, but not the same ones
    assert means([left, swapped]).difference(0, 1).p_value() == 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_all_right_is_no_certainty(seeds: int) -> None:
    low, high = means([np.ones((seeds, 128))]).of(0).interval()
    exact = stats.binomtest(128, 128).proportion_ci()
    assert high == 1
    assert exact.low - 0.02 < low < 1
    assert means([np.zeros((seeds, 128))]).of(0).interval() == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("value", [0.3, 1.0])
def test_equal_on_every_example_is_no_certainty_about_others(value: float) -> None:
    """Nor are scores that are all alike: the interval of the difference is never [0, 0]."""
    scores = np.where(np.arange(128) < 64, value, value * 0.5 if value < 1 else 0.0)[None]
    result = means([scores, scores]).difference(0, 1)
    low, high = result.interval()
    assert (result.mean, verdict(result, 0.02)) == (0, "equal")
    assert low < -0.001 < 0.001 < high
    shifted = means([np.ones((1, 64)), np.zeros((1, 64))]).difference(0, 1)  # every answer changed the same way
    assert shifted.interval()[0] < 0.98


def test_few_changes_of_scores_count_one_more() -> None:
    """Two of 100 scores moved by .3 and .1: as if a third had, so large as these on average."""
    base = np.linspace(0.1, 0.6, 100)[None]
    moved = base.copy()
    moved[0, [7, 50]] += (0.3, 0.1)
    result = means([moved, base]).difference(0, 1)
    change = moved - base
    expected = change.var(ddof=1) / 100 + (0.3**2 + 0.1**2) / 2 / 100**2 * 0.98
    assert result.item_variance == pytest.approx(expected)
    assert not result.is_equivalent(0.01)


def test_agreeing_seeds_do_not_narrow_right_and_wrong() -> None:
    answers = [(np.arange(64) < right).astype(float)[None] for right in (62, 60)]
    one = means(answers).difference(0, 1)
    five = means([np.repeat(arm, 5, axis=0) for arm in answers]).difference(0, 1)
    assert five.interval(0.9) == pytest.approx(one.interval(0.9))
    assert not five.is_equivalent(0.02)


def test_intervals_stay_within_the_range_and_hold_the_mean(rng: np.random.Generator) -> None:
    scores = np.clip(rng.normal(0.97, 0.1, (1, 12)), 0, 1)
    low, high = means([scores], value_range=(0.0, 1.0)).of(0).interval()
    assert 0 <= low <= scores.mean() <= high <= 1
    assert means([scores[:, :1]], value_range=(0.0, 1.0)).of(0).interval() == (0, 1)  # one example


def test_examples_without_a_value_are_left_out_of_all(rng: np.random.Generator) -> None:
    arms = list(rng.normal(size=(2, 3, 50)))
    broken = [arm.copy() for arm in arms]
    broken[0][1, 4], broken[1][0, 7] = np.nan, np.inf
    kept = [np.delete(arm, [4, 7], axis=1) for arm in arms]
    result, expected = means(broken).difference(0, 1), means(kept).difference(0, 1)
    assert result.examples == 48
    assert result.interval() == pytest.approx(expected.interval())
    with pytest.raises(ValueError, match="no example has a finite value"):
        means([np.full((1, 3), np.nan)])
    with pytest.raises(ValueError, match="expected \\(seeds, examples\\)"):
        means([np.ones(3)])


def test_values_of_minus_one_in_every_row_give_a_finite_interval() -> None:
    values = np.zeros((3, 100))
    values[:, [1, 23, 49, 99]] = -1
    assert np.isfinite(means([values, np.zeros((3, 100))]).difference(0, 1).interval()).all()


def test_an_arm_against_itself_is_equal(rng: np.random.Generator) -> None:
    scores = rng.random((3, 40))
    result = means([scores, scores.copy()]).difference(0, 1)
    assert (result.identical, result.p_value(), verdict(result, 0.01)) == (True, 1.0, "equal")
    assert not means([scores, scores + 1e-9]).difference(0, 1).identical


@pytest.mark.parametrize(
    ("shift", "margin", "word"),
    [(1.0, 0.1, "better"), (-1.0, 0.1, "worse"), (0.0, 2.0, "equivalent"), (0.0, 0.001, "not settled")],
)
def test_verdicts(shift: float, margin: float, word: str) -> None:
    rng = np.random.default_rng(5)
    base = rng.normal(size=(1, 200))
    noise = rng.normal(0, 0.1, (1, 200))
    result = means([base + shift + noise - noise.mean(), base]).difference(0, 1)
    assert verdict(result, margin) == word
    flipped = {"better": "worse", "worse": "better"}.get(word, word)
    assert verdict(result, margin, higher_is_better=False) == flipped
    few = means([(base + shift)[:, :9] + noise[:, :9], base[:, :9]]).difference(0, 1)
    assert verdict(few, margin) == "not settled"  # fewer than FEWEST_EXAMPLES


def test_p_below_5_percent_exactly_when_the_interval_leaves_out_0() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        arms = list(rng.normal(0, 1, (3, 3, 40)) + rng.normal(0, 0.2, (3, 3, 1)) + rng.normal(0, 0.3, (3, 1, 1)))
        result = means(arms).difference(0, 1)
        low, high = result.interval()
        assert (result.p_value() < 0.05) == (low > 0 or high < 0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_examples_to_decide_shrinks_with_the_difference_and_stops_at_the_seeds() -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, (1, 100))
    noise -= noise.mean()
    near, far = (
        means([noise + gap, np.zeros((1, 100))]).difference(0, 1).examples_to_decide(0.01) for gap in (0.1, 0.4)
    )
    assert near is not None
    assert far is not None
    assert near == pytest.approx(16 * far, rel=0.1)
    scattered = list(rng.normal(0, 0.01, (2, 3, 100)) + np.array([[[1.0], [0], [-1]], [[-1.0], [0], [1.1]]]))
    assert means(scattered).difference(0, 1).examples_to_decide(0.05) is None


def test_draws_have_the_means_and_errors_of_the_data() -> None:
    rng = np.random.default_rng(3)
    arms = [rng.normal(level, 0.2, (5, 400)) + rng.normal(0, 0.004, (5, 1)) for level in (0.1, 0.5, 0.9)]
    known = means(arms)
    drawn = draws(known, np.random.default_rng(0), 20_000)
    assert drawn.mean(axis=0) == pytest.approx(known.mean, abs=0.01)
    gap = drawn[:, 0] - drawn[:, 1]
    error = np.sqrt(known.of(0).item_variance + known.of(1).item_variance + 2 * seed_variance(known) / 5)
    assert gap.std() == pytest.approx(error, rel=0.15)
    assert (drawn == draws(known, np.random.default_rng(0), 20_000)).all()


def test_arms_that_are_equal_in_every_example_are_drawn_too() -> None:
    known = means([np.zeros((1, 72))] * 2, value_range=(0.0, 1.0))  # every answer is wrong
    drawn = draws(known, np.random.default_rng(0), 1000)
    assert np.isfinite(drawn).all()
    assert abs(drawn).max() < 0.2


def test_one_seed_is_widened_by_the_stated_prior() -> None:
    values = np.random.default_rng(4).normal(0.5, 0.2, (2, 1, 5000))
    known = means(list(values))
    single = draws(known, np.random.default_rng(0), 20_000).std(axis=0)
    assert (
        single > 2 * np.sqrt([known.of(arm).item_variance for arm in (0, 1)])
    ).all()  # at 5,000 examples the seed is most of it
    assert np.sqrt(seed_variance(known)) == pytest.approx(0.2 * paired.SEED_SPREAD, rel=0.6)


def test_many_arms_within_their_errors_are_drawn_together() -> None:
    rng = np.random.default_rng(6)
    known = means(list(rng.normal(0.5, 0.2, (10, 1, 40))))
    drawn = draws(known, np.random.default_rng(0), 4000).mean(axis=0)
    assert np.ptp(drawn) < 0.9 * np.ptp(known.mean)
    alone = draws(known, np.random.default_rng(0), 4000, alike=[False] * 10).mean(axis=0)
    assert alone == pytest.approx(known.mean, abs=0.01)


@pytest.mark.parametrize(("seeds", "part"), [(2, 0.0), (2, 4.0), (3, 1.0), (5, 16.0)])
def test_false_positives_are_at_most_5_percent(seeds: int, part: float) -> None:
    """A small piece of `python -m benchmarks.statistics`: 400 experiments of 3 arms, so at most 8% within noise."""
    rng = np.random.default_rng(7)
    spread = (part * (1 + 1 / seeds) / 60 * seeds) ** 0.5
    found = 0
    for _ in range(400):
        arms = rng.normal(size=(3, 1, 60)) + rng.normal(size=(3, seeds, 60)) + rng.normal(0, spread, (3, seeds, 1))
        found += means(list(arms)).difference(0, 1).p_value() < 0.05
    assert found <= 32


def test_few_changes_seen_are_no_proof_of_equivalence() -> None:
    """At a true change of 10 in 500 items, 5 or fewer are seen in 7%: at the margin of 2 points that is not enough."""
    base = np.ones((1, 500))
    for lost, equivalent in ((3, True), (5, False)):
        changed = base.copy()
        changed[0, :lost] = 0
        assert means([changed, base]).difference(0, 1).is_equivalent(0.02) == equivalent


def test_one_example_tells_nothing_of_the_spread() -> None:
    result = means([np.array([[0.31]]), np.array([[0.72]])]).difference(0, 1)
    assert result.interval() == (-np.inf, np.inf)
    assert result.examples_to_decide(0.1) is None
    assert verdict(result, 0.1) == "not settled"
