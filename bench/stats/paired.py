"""The one statistic engine: means of arms over crossed seeds and examples, and what is known of their error.

Values are arms x seeds x examples, and every arm answered the same examples:

    value[a, s, e] = mean[a] + seed[a, s] + example[a, e] + rest[a, s, e]

The covariance of the arms' means follows from the mean squares of this two-way layout (Searle, Casella and McCulloch
1992, chapter 4). Examples are shared by the arms, so their part covaries; seeds of different arms are taken to be
independent, and to scatter alike in every arm, so that arms are pooled: three arms of three seeds give 6 degrees of
freedom instead of 2. The few degrees of freedom of that one number are the whole difficulty:

- An estimate of 0 is not knowledge. The variance among seeds has Box and Tiao's posterior (1973, section 5.2: a
  reference prior, truncated where the seeds would add nothing), an interval is a quantile of the mixture of Student's t
  over it. So an interval holds the truth in at least 95%, whatever the seeds' part, and more where few seeds are known.
- One seed tells nothing of it. Intervals and tests then speak of the seed at hand; `draws`, from which decisions are
  made, puts a stated prior in its place (`SEED_SPREAD`).

Ragged layouts: an arm's mean is that over its own seeds. An arm that trains nothing has no seeds' part. Examples
without a finite value in some run are left out of all. Weighted means (a loss by its tokens) are linearised. In a mean
over tasks of unequal size (`strata`) every task counts alike, in its error and in its test too.

Right and wrong answers near 0 and 1: two right and two wrong examples are added to each arm, as Agresti and Coull
(1998), half an example to each way of changing between two arms, as Agresti and Min (2005). They are added by example
and not by seed and example, so that seeds which agree do not make them vanish.

    >>> result = means([full_scores, lora_scores]).difference(1, 0)      # each of shape (seeds, examples)
    >>> result.mean, result.interval(), result.p_value()
    (-0.011, (-0.026, 0.004), 0.14)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]
ALPHA, POWER = 0.05, 0.80
FEWEST_EXAMPLES = 10  # below, normal theory does not hold: nothing is shown
# Priors of `draws`, in units of the spread of one example's value (0.2 for a ROUGE-L, 0.4 for right and wrong at 80%):
SEED_SPREAD = 0.035  # median of how far a seed moves one run's mean; log-normal,
SEED_SPREAD_LOG_SD = 0.6  # so that two thirds lie within a factor of 1.8
ARM_SPREAD = 0.20  # median of how far the true means of trained arms lie from their mean; log-normal,
ARM_SPREAD_LOG_SD = 0.5  # two thirds within a factor of 1.6
_POINTS = 64  # of the posterior of the seeds' part
_SEED_POINTS, _ARM_POINTS = 16, 12  # of the priors of `draws`


@dataclass(frozen=True)
class SeedPart:
    """How much the mean of one run moves with its seed, pooled over arms.

    Attributes:
        mean_square: variance of the runs' means about those of their arms; expected are the seeds' variance and `rest`.
        rest: what of it the interaction of seeds and examples explains, however large the seeds' own variance.
        degrees: of freedom of `mean_square`; 0 when every arm has one seed.
    """

    mean_square: float = 0.0
    rest: float = 0.0
    degrees: int = 0

    def points(self) -> Floats:
        """Equally likely values of the seeds' variance given the data, shape (points,); [0] where nothing is known."""
        if self.degrees == 0 or self.mean_square <= 0:
            return np.zeros(1)
        half, total = self.degrees / 2, self.degrees * self.mean_square
        most = special.gammainc(half, total / self.rest / 2) if self.rest > 0 else 1.0
        chi_square = 2 * special.gammaincinv(half, most * (np.arange(_POINTS) + 0.5) / _POINTS)
        return np.asarray(np.maximum(total / chi_square - self.rest, 0.0))

    def log_likelihood(self, variance: Floats) -> Floats:
        """Of values of the seeds' variance, up to a constant."""
        expected = np.maximum(variance + self.rest, 1e-300)
        return np.asarray(-self.degrees / 2 * (np.log(expected) + self.mean_square / expected))


def seed_part(arms: Sequence[Floats], weights: Floats | None = None) -> SeedPart:
    """Pooled over arms, each of shape (seeds, examples); arms of one seed add nothing. Examples may differ by arm."""
    square = rest = 0.0
    degrees = 0
    for values in arms:
        kept = np.isfinite(values).all(axis=0)
        values = values[:, kept]
        seeds, examples = values.shape
        if seeds < 2 or examples < 2:
            continue
        share = _normalised(None if weights is None else weights[kept], examples)
        run_means = values @ share
        left = values - values.mean(axis=0) - (run_means - run_means.mean())[:, None]
        square += float(((run_means - run_means.mean()) ** 2).sum())
        rest += float((share**2 * left**2).sum()) * examples / (examples - 1)
        degrees += seeds - 1
    return SeedPart(square / degrees, rest / degrees, degrees) if degrees else SeedPart()


def _normalised(weights: Floats | None, examples: int) -> Floats:
    return np.full(examples, 1 / examples) if weights is None else weights / weights.sum()


@dataclass(frozen=True)
class Means:
    """The means of arms over seeds and examples. Made by `means`.

    Attributes:
        mean: shape (arms,).
        centre: the same with the added examples, where answers are right or wrong; else `mean`.
        covariance: of the means, without the seeds' part, shape (arms, arms).
        seeds: runs averaged, shape (arms,).
        seed_share: by how much the seeds' variance enters each mean's, shape (arms,): 1 / seeds; 0 untrained.
        spread: of one example's value, averaged over arms: standard deviation.
        discordant: for one seed of right and wrong answers that count alike: [a, b] holds how many examples arm a has
            right and arm b wrong; None otherwise.
        identical: whether two arms agree in every value, shape (arms, arms).
        value_range: least and most possible value.
    """

    mean: Floats
    centre: Floats
    covariance: Floats
    seeds: NDArray[np.int64]
    seed_share: Floats
    seed_part: SeedPart
    examples: int
    spread: float
    discordant: NDArray[np.int64] | None
    identical: NDArray[np.bool_]
    right_or_wrong: bool
    value_range: tuple[float, float]

    def of(self, arm: int) -> Estimate:
        """One arm's own mean."""
        variances = self.covariance[arm, arm] + self.seed_share[arm] * self.seed_part.points()
        return Estimate(
            float(self.mean[arm]), float(self.centre[arm]), variances, float(self.covariance[arm, arm]),
            self.examples, int(self.seeds[arm]), self.value_range,
        )  # fmt: skip

    def difference(self, arm: int, baseline: int) -> Estimate:
        """arm - baseline, paired by example."""
        c, widest = self.covariance, self.value_range[1] - self.value_range[0]
        items = max(float(c[arm, arm] + c[baseline, baseline] - 2 * c[arm, baseline]), 0.0)
        variances = items + (self.seed_share[arm] + self.seed_share[baseline]) * self.seed_part.points()
        changed = None if self.discordant is None else (
            int(self.discordant[arm, baseline]), int(self.discordant[baseline, arm])
        )  # fmt: skip
        return Estimate(
            float(self.mean[arm] - self.mean[baseline]), float(self.centre[arm] - self.centre[baseline]), variances,
            items, self.examples, int(max(self.seeds[arm], self.seeds[baseline])), (-widest, widest), changed,
            bool(self.identical[arm, baseline]), self.right_or_wrong,
        )  # fmt: skip


def means(
    arms: Sequence[Floats],
    *,
    weights: Floats | None = None,
    strata: NDArray[np.int64] | None = None,
    trained: Sequence[bool] | None = None,
    seeds: SeedPart | None = None,
    value_range: tuple[float, float] = (-np.inf, np.inf),
) -> Means:
    """The means of arms that answered the same examples.

    Args:
        arms: each of shape (seeds, examples), numbers of seeds may differ; NaN or infinite: no value.
        weights: of the examples in the mean, shape (examples,), positive; None: all count alike.
        strata: the task of each example, shape (examples,), where the mean is one over tasks.
        trained: whether an arm has a seeds' part; None: all.
        seeds: the seeds' part where more arms than these are known; None: of these.

    Raises:
        ValueError: for other shapes, weights that are not positive, or no example with a value in every run.
    """
    values, kept = _usable(arms, weights)
    share = _normalised(None if weights is None else weights[kept], int(kept.sum()))
    by_example = np.stack([arm.mean(axis=0) for arm in values])
    right_or_wrong = bool(all(np.isin(arm, (0.0, 1.0)).all() for arm in values))
    exact = right_or_wrong and all(len(arm) == 1 for arm in values) and np.ptp(share) <= 1e-12
    number = np.array([len(arm) for arm in values])
    has_seeds = (np.ones(len(arms), dtype=bool) if trained is None else np.asarray(trained, dtype=bool)) | (number > 1)
    centre, covariance = _moments(by_example, share, None if strata is None else strata[kept], right_or_wrong)
    return Means(
        mean=by_example @ share,
        centre=centre,
        covariance=covariance,
        seeds=number,
        seed_share=np.where(has_seeds, 1 / number, 0.0),
        seed_part=seed_part(values, share) if seeds is None else seeds,
        examples=int(kept.sum()),
        spread=float(np.mean([arm.std() for arm in values])),
        discordant=(by_example @ (1 - by_example).T).round().astype(np.int64) if exact else None,
        identical=np.array([[_identical(left, right) for right in values] for left in values]),
        right_or_wrong=right_or_wrong,
        value_range=(0.0, 1.0) if right_or_wrong else value_range,
    )


def _usable(arms: Sequence[Floats], weights: Floats | None) -> tuple[list[Floats], NDArray[np.bool_]]:
    """The arms on the examples that have a finite value in every run, and which these are."""
    shapes = {values.shape[1:] for values in arms}
    if len(shapes) != 1 or any(values.ndim != 2 or values.size == 0 for values in arms):
        raise ValueError(f"arms: shapes {[v.shape for v in arms]}; expected (seeds, examples) with the same examples")
    stacked = np.concatenate([np.asarray(values, dtype=float) for values in arms])
    kept = np.isfinite(stacked).all(axis=0)
    if not kept.any():
        raise ValueError("arms: no example has a finite value in every run")
    if weights is not None and not (np.isfinite(weights[kept]) & (weights[kept] > 0)).all():
        raise ValueError("weights: must be finite and positive; drop examples of weight 0")
    return [np.asarray(arm, dtype=float)[:, kept] for arm in arms], kept


def _moments(
    by_example: Floats, share: Floats, strata: NDArray[np.int64] | None, right_or_wrong: bool
) -> tuple[Floats, Floats]:
    """Where the intervals of the arms' means lie, and the covariance of these means but for the seeds' part.

    Args:
        by_example: means over seeds, shape (arms, examples); `share`: weights that sum to 1, shape (examples,).
    """
    (arms, examples), mean = by_example.shape, by_example @ share
    task = np.zeros(examples, dtype=int) if strata is None else np.unique(strata, return_inverse=True)[1]
    of_task = np.stack([np.bincount(task, share * row) for row in by_example]) / np.bincount(task, share)
    influence = share * (by_example - of_task[:, task])
    if right_or_wrong:  # with two right and two wrong examples more in each arm, half an example for each change
        effective = 1 / float((share**2).sum())  # examples that count alike and give this error
        added = (np.eye(arms) + 1) / 2 + 4 * np.outer(0.5 - mean, 0.5 - mean) * effective / (effective + 4)
        covariance = (influence @ influence.T + added / effective**2) * (effective / (effective + 4)) ** 2
        return (effective * mean + 2) / (effective + 4), covariance
    if examples < 2:
        return mean, np.diag(np.full(arms, np.inf))
    return mean, influence @ influence.T * (examples / max(examples - len(of_task[0]), 1))


def _identical(left: Floats, right: Floats) -> bool:
    """Whether two arms agree in every value of every seed; a single run stands for every seed."""
    return (len(left) == len(right) or 1 in (len(left), len(right))) and bool((left == right).all())


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference with what is known of its error.

    Attributes:
        mean: as shown, in the unit of the values; `centre`: where its interval lies.
        variances: equally likely values of its variance, shape (points,).
        item_variance: the part that shrinks with more examples.
        discordant: (gained, lost) examples, for one seed of right and wrong answers.
        identical: a difference of arms that agree in every value.
    """

    mean: float
    centre: float
    variances: Floats
    item_variance: float
    examples: int
    seeds: int
    value_range: tuple[float, float]
    discordant: tuple[int, int] | None = None
    identical: bool = False
    right_or_wrong: bool = False

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval that holds the mean, within the range of the values."""
        low, high = self.value_range
        if self.examples < 2:
            return low, high
        half = self._quantile(1 - (1 - level) / 2)
        return min(max(self.centre - half, low), self.mean), max(min(self.centre + half, high), self.mean)

    def _quantile(self, probability: float) -> float:
        """Of the error: the half width of an interval; infinite where one example tells nothing of the spread."""
        if self.examples < 2 or not np.isfinite(self.variances).all():
            return np.inf
        scale = np.sqrt(self.variances)
        if scale[-1] == scale[0]:
            return float(special.stdtrit(self.examples - 1, probability) * scale[0])
        df, scale = self.examples - 1, np.maximum(scale, 1e-300)
        widest = float(special.stdtrit(df, probability) * scale.max())

        def beyond(half: float) -> float:
            return float(special.stdtr(df, half / scale).mean()) - probability

        return float(optimize.brentq(beyond, 0.0, widest * (1 + 1e-9), xtol=1e-9 * widest))

    def p_value(self) -> float:
        """Two-sided p of "no difference": McNemar's exact test for right and wrong answers of one seed, else by t."""
        if self.discordant is not None:
            return mcnemar(*self.discordant)
        if self.identical or self.examples < 2:
            return 1.0
        scale = np.maximum(np.sqrt(self.variances), 1e-300)
        return float(2 * special.stdtr(self.examples - 1, -abs(self.centre) / scale).mean())

    def is_equivalent(self, margin: float) -> bool:
        """Two one-sided tests (Schuirmann 1987): the 90% interval lies inside +-margin.

        Of right and wrong answers at least `margin` must have changed where the truth lies at the margin, so that the
        variance is at least that of so many changes: few changes seen do not make the test sure of itself.
        """
        least = margin * (1 - margin) / self.examples if self.right_or_wrong else 0.0
        low, high = replace(self, variances=np.maximum(self.variances, least)).interval(1 - 2 * ALPHA)
        return self.examples >= FEWEST_EXAMPLES and -margin < low and high < margin

    def detectable(self) -> float:
        """The smallest true difference that data of this size and spread show with 80% power, two-sided."""
        return float(self._quantile(1 - ALPHA / 2) + self._quantile(POWER))

    def examples_to_decide(self, margin: float) -> int | None:
        """Examples (same seeds) that would show a difference or an equivalence with 80% power, if the true difference
        is the one seen; None where more examples cannot: the seeds scatter too much."""
        if not np.isfinite(self.item_variance):
            return None
        seen, upper = abs(self.mean), stats.norm.ppf
        goals = [seen / (upper(1 - ALPHA / 2) + upper(POWER))]
        if seen < margin:  # at a true difference of 0, each of the two tests has half of the error of the second kind
            goals.append((margin - seen) / (upper(1 - ALPHA) + upper((1 + POWER) / 2 if seen == 0 else POWER)))
        allowed = max(goals) ** 2 - (float(np.median(self.variances)) - self.item_variance)
        return max(2, int(np.ceil(self.examples * self.item_variance / allowed))) if allowed > 0 else None


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p (McNemar 1947, binomial form): gained are right with the method and wrong with the baseline."""
    changed = gained + lost
    return float(stats.binomtest(gained, changed, 0.5).pvalue) if changed else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979) over one family; order kept, each at most 1."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[int(index)] = largest
    return adjusted


def verdict(result: Estimate, margin: float, *, p: float | None = None, higher_is_better: bool = True) -> str:
    """equal (on every example), better, worse, equivalent or not settled, of a difference arm - baseline.

    Args:
        margin: the largest difference that does not matter, in the unit of the values, positive.
        p: adjusted for the family shown; None takes the difference's own.
    """
    if result.identical:
        return "equal"
    if result.examples < FEWEST_EXAMPLES:
        return "not settled"
    if (result.p_value() if p is None else p) < ALPHA and result.mean != 0:
        return "better" if (result.mean > 0) == higher_is_better else "worse"
    return "equivalent" if result.is_equivalent(margin) else "not settled"


def _seed_prior(known: Means) -> tuple[Floats, Floats]:
    """Values of the seeds' variance, equally likely a priori, and the log-likelihood of each."""
    places = (np.arange(_SEED_POINTS) + 0.5) / _SEED_POINTS
    spread = max(known.spread, 1e-12) * SEED_SPREAD * np.exp(SEED_SPREAD_LOG_SD * special.ndtri(places))
    return spread**2, known.seed_part.log_likelihood(spread**2)


def seed_variance(known: Means) -> float:
    """Expected variance of one run's mean from seed to seed, by the prior and what several seeds show."""
    variances, log_weight = _seed_prior(known)
    return float(np.average(variances, weights=np.exp(log_weight - log_weight.max())))


def draws(known: Means, rng: np.random.Generator, count: int, alike: Sequence[bool] | None = None) -> Floats:
    """Draws of the arms' true means given the data, shape (count, arms); what decisions are made from.

    The seeds' variance has the prior `SEED_SPREAD`, weighed by what several seeds show. The means of the arms that are
    `alike` (trained; None: all) scatter about a common mean by an unknown spread with the prior `ARM_SPREAD`: where
    many arms lie within their errors, the highest is drawn towards the others.
    """
    size, unit = len(known.mean), max(known.spread, 1e-12)
    seed_variances, seed_weight = _seed_prior(known)
    together = np.ones(size, dtype=bool) if alike is None else np.asarray(alike, dtype=bool)
    places = (np.arange(_ARM_POINTS) + 0.5) / _ARM_POINTS
    arm_variance = (unit * ARM_SPREAD * np.exp(ARM_SPREAD_LOG_SD * special.ndtri(places))) ** 2
    # The covariance is itself estimated, from so many examples: Student's t in as many dimensions as there are arms.
    freedom = max(known.examples - size, 1)
    items = known.covariance * max(known.examples - 1, 1) / freedom + 1e-9 * unit**2 * np.eye(size)
    errors = items + seed_variances[:, None, None] * np.diag(known.seed_share)
    log_weight = np.repeat(seed_weight[:, None], _ARM_POINTS, axis=1)
    precision = np.repeat(np.linalg.inv(errors)[:, None], _ARM_POINTS, axis=1)
    data = precision @ known.mean
    if together.sum() > 1:
        y, ones = known.mean[together], np.ones(int(together.sum()))
        block = errors[:, None][..., together, :][..., :, together] + arm_variance[:, None, None] * np.eye(len(ones))
        inverse = np.linalg.inv(block)
        a, b = inverse @ ones, inverse @ y
        fit = b @ y - (b @ ones) ** 2 / (a @ ones)  # about the best common mean, which is unknown
        log_weight = log_weight - (np.linalg.slogdet(block)[1] + np.log(a @ ones) + fit) / 2
        about_mean = np.zeros((size, size))
        about_mean[np.ix_(together, together)] = np.eye(len(ones)) - 1 / len(ones)
        precision = precision + about_mean / arm_variance[:, None, None]
    weight = np.exp(log_weight - log_weight.max()).ravel()
    covariance = np.linalg.inv(precision).reshape(-1, size, size)
    middle = (covariance @ data.reshape(-1, size, 1))[..., 0]
    root = np.linalg.cholesky(covariance)
    picked = rng.choice(len(weight), size=count, p=weight / weight.sum())
    noise = (root[picked] @ rng.standard_normal((count, size, 1)))[..., 0]
    heavier = np.sqrt(freedom / rng.chisquare(freedom, count))[:, None]
    return np.asarray(np.clip(middle[picked] + noise * heavier, *known.value_range))
