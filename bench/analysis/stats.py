"""Is a difference real? Paired intervals, tests, equivalence and how many examples would decide.

Pure functions on one array shape, `(seeds, examples)`: row s holds the per-example differences (or scores) of
seed s, and column e is the *same* example in every row. Randomness is a `numpy.random.Generator` passed in.

    >>> result = paired(lora_scores - full_scores, rng=np.random.default_rng(0))
    >>> result.mean, result.interval(0.95), result.p_value()
    >>> verdict(result, margin=0.01)
    'equivalent'

The interval comes from `bootstrap.paired`; here are the tests and the words drawn from it.
"""

from __future__ import annotations

import numpy as np
from scipy import stats as scipy_stats

from bench.analysis.bootstrap import Paired, Resampler, paired

__all__ = [
    "Paired",
    "Resampler",
    "detectable_difference",
    "equivalence_interval",
    "examples_to_decide",
    "holm",
    "is_equivalent",
    "is_not_worse",
    "mcnemar",
    "paired",
    "sign_flip",
    "verdict",
]

POWER = 0.80
FEWEST_EXAMPLES = 10  # below, neither percentiles nor normal theory hold: nothing is shown


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p of right/wrong answers (McNemar 1947; binomial form).

    Args:
        gained: examples right with the method and wrong with the baseline; `lost`: the reverse.
    """
    discordant = gained + lost
    return float(scipy_stats.binomtest(gained, discordant, 0.5).pvalue) if discordant else 1.0


def sign_flip(result: Paired, rng: np.random.Generator, draws: int = 10_000) -> float:
    """Two-sided p of the paired permutation test: under "no difference" an example's sign is a coin's (Fisher 1935).

    It treats the seeds as given, and so answers for these seeds only; with one seed it answers what the bootstrap does.
    """
    moved = result.shares[result.shares != 0]
    if not len(moved):
        return 1.0
    flipped = np.abs(rng.choice((-1.0, 1.0), size=(draws, len(moved))) @ moved)
    as_far = np.count_nonzero(flipped >= abs(result.mean) * (1 - 1e-9))
    return float((as_far + 1) / (draws + 1))


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment (1979) over one family; order kept, each at most 1."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[int(index)] = largest
    return adjusted


def equivalence_interval(result: Paired, alpha: float = 0.05) -> tuple[float, float]:
    """The interval that two one-sided tests at `alpha` compare with the margin: level 1 - 2 alpha.

    For right/wrong scores it is united with the interval of Agresti and Min (2005), which adds half an example to
    each cell of the paired table: without it, 0 changed answers of 20 would pass as proof of no change.
    """
    low, high = result.interval(1 - 2 * alpha)
    if result.discordant is None:
        return low, high
    pairs = result.examples * result.seeds
    gained, lost = (count + 0.5 for count in result.discordant)
    total = pairs + 2
    centre = (gained - lost) / total
    spread = np.sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    # Seeds share their examples, so they count as one where they agree: the error of one seed's examples.
    half = float(scipy_stats.norm.ppf(1 - alpha) * spread * np.sqrt(result.seeds))
    return min(low, centre - half), max(high, centre + half)


def is_equivalent(result: Paired, margin: float, alpha: float = 0.05) -> bool:
    """Two one-sided tests (Schuirmann 1987): the (1 - 2 alpha) interval lies inside +-margin."""
    if result.examples < FEWEST_EXAMPLES:
        return False
    low, high = equivalence_interval(result, alpha)
    return -margin < low and high < margin


def is_not_worse(result: Paired, margin: float, *, higher_is_better: bool = True, alpha: float = 0.05) -> bool:
    """Non-inferiority: worse by `margin` or more is ruled out, one-sided at `alpha`. `result` is method - baseline."""
    if result.examples < FEWEST_EXAMPLES:
        return False
    low, high = equivalence_interval(result, alpha)
    return low > -margin if higher_is_better else high < margin


def verdict(
    result: Paired, margin: float, *, p: float | None = None, higher_is_better: bool = True, alpha: float = 0.05
) -> str:
    """`better`, `worse`, `equivalent` or `inconclusive` of a difference method - baseline.

    Args:
        margin: the largest difference that is of no matter, in the unit of the values, positive.
        p: adjusted for the family shown; None takes the bootstrap's own.
    """
    if result.examples < FEWEST_EXAMPLES:
        return "inconclusive"
    p = result.p_value() if p is None else p
    if p < alpha and result.mean != 0:
        return "better" if (result.mean > 0) == higher_is_better else "worse"
    return "equivalent" if is_equivalent(result, margin, alpha) else "inconclusive"


def detectable_difference(result: Paired, alpha: float = 0.05, power: float = POWER) -> float:
    """The smallest true difference that data of this size and spread show with this power, two-sided."""
    degrees = result.error.degrees_of_freedom
    quantiles = scipy_stats.t.ppf(1 - alpha / 2, degrees) + scipy_stats.t.ppf(power, degrees)
    return float(quantiles * result.error.total)


def examples_to_decide(result: Paired, margin: float, alpha: float = 0.05, power: float = POWER) -> int | None:
    """Examples (same seeds) that would decide it with this power, if the true difference is the one seen.

    Decided is either "different" (the two-sided test) or "equivalent" (inside the margin), whichever comes first.

    Returns:
        None when more examples cannot decide: the seeds differ too much among themselves, so more seeds are needed.
        None too when the spread is unknown (one example).
    """
    if not np.isfinite(result.error.total):
        return None
    difference = abs(result.mean)
    upper = scipy_stats.norm.ppf
    goals = [difference / (upper(1 - alpha / 2) + upper(power))]
    if difference < margin:
        # At a true difference of 0 both one-sided tests must pass, each with half of the error of the second kind.
        beta_level = (1 + power) / 2 if difference == 0 else power
        goals.append((margin - difference) / (upper(1 - alpha) + upper(beta_level)))
    allowed_variance = max(goals) ** 2 - result.error.seed_part**2
    if allowed_variance <= 0:
        return None
    return max(2, int(np.ceil(result.examples * result.error.example_part**2 / allowed_variance)))
