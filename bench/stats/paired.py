"""The one statistic engine: means of arms over crossed seeds and examples, and what is known of their error.

Values are arms x seeds x examples, and every arm answered the same examples:

    value[a, s, e] = mean[a] + seed[a, s] + example[a, e] + rest[a, s, e]

The covariance of the arms' means follows from the mean squares of this two-way layout (Searle, Casella and McCulloch
1992, chapter 4). Examples are shared by the arms, so their part covaries; seeds of different arms are taken to be
independent, and to scatter alike in every arm, so that arms are pooled: three arms of three seeds give 6 degrees of
freedom instead of 2. The few degrees of freedom of that one number are the whole difficulty:

- An estimate of 0 is not knowledge. The variance among seeds has Box and Tiao's posterior (1973, section 5.2: a
  reference prior, truncated where the seeds would add nothing), an interval is a quantile of the mixture of Student's t
  over it: it holds the truth in at least 95%, whatever the seeds' part, and more where few seeds are known.
- One seed tells nothing of it: intervals and tests then speak of the seed at hand, `draws` has a prior (`SEED_SPREAD`).

What was not seen may still happen. Where two arms differ in few examples, or in none, one changed example more is
counted (half an example to each way of changing: Agresti and Min 2005), and an interval's end is the farthest truth
that the data do not reject, with the variance that so much change would have: a score interval, as Wilson's of a
proportion and Tango's of a paired difference. Changes are counted by example and not by seed and example, so that seeds
which agree add none. docs/statistics.md has the rules for ragged layouts.

    >>> result = means([full_scores, lora_scores]).difference(1, 0)      # each of shape (seeds, examples)
    >>> result.mean, result.interval(), result.p_value()
    (-0.011, (-0.026, 0.004), 0.14)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]
ALPHA, POWER = 0.05, 0.80
FEWEST_EXAMPLES = 10  # below, normal theory does not hold: nothing is shown
# Priors of `draws`, in units of the spread of one example's value: the logarithm is Student's t of 4 degrees about the
# median, so that spreads far from it are soon believed when the data show them (docs/statistics.md).
SEED_SPREAD, SEED_SPREAD_LOG_SCALE = 0.035, 0.5  # how far a seed moves one run's mean
ARM_SPREAD, ARM_SPREAD_LOG_SCALE = 0.20, 0.4  # how far the true means of trained arms lie from their mean
_LOGS = np.linspace(-2, 4, 16)  # of spreads over their medians, where the priors are taken
# Points of the posterior of the seeds' part: quantiles, dense where the variance is large, as small p-values lie there.
_EDGES = np.linspace(0, 1, 65) ** 4
POINTS, WEIGHTS = (_EDGES[1:] + _EDGES[:-1]) / 2, np.diff(_EDGES)
MEDIAN = int(np.searchsorted(POINTS, 0.5))


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
        """Values of the seeds' variance given the data, of probability `WEIGHTS`; zeros where nothing is known."""
        seen = max(self.mean_square, 1e-4 * self.rest)  # runs that agree in the mean: an estimate of 0, no knowledge
        if self.degrees == 0 or seen <= 0:
            return np.zeros_like(POINTS)
        half, total = self.degrees / 2, self.degrees * seen
        most = special.gammainc(half, total / self.rest / 2) if self.rest > 0 else 1.0
        chi_square = 2 * special.gammaincinv(half, most * POINTS)
        return np.asarray(np.maximum(total / chi_square - self.rest, 0.0))


def seed_part(arms: Sequence[Floats], weights: Floats | None = None) -> SeedPart:
    """Pooled over arms, each of shape (seeds, examples); arms of one seed add nothing. Examples may differ by arm."""
    square, rest, degrees = 0.0, 0.0, 0
    for values in arms:
        kept = np.asarray(np.isfinite(values).all(axis=0))
        values = values[:, kept]
        seeds, examples = values.shape
        if seeds < 2 or examples < 2:
            continue
        share = np.ones(examples) if weights is None else weights[kept]
        share = share / share.sum()
        run_means = values @ share
        left = values - values.mean(axis=0) - (run_means - run_means.mean())[:, None]
        square += float(((run_means - run_means.mean()) ** 2).sum())
        rest += float((share**2 * left**2).sum()) * examples / (examples - 1)
        degrees += seeds - 1
    return SeedPart(square / degrees, rest / degrees, degrees) if degrees else SeedPart()


@dataclass(frozen=True, eq=False)
class Means:
    """The means of arms over seeds and examples. Made by `means`.

    Attributes:
        values: of each arm, shape (seeds, examples); finite.
        share: of each example in the mean, shape (examples,); they sum to 1.
        task: its number where the mean is one over tasks, shape (examples,), else 0.
        seed_share: by how much the seeds' variance enters each mean's, shape (arms,): 1 / seeds; 0 untrained.
        value_range: least and most possible value.
        right_or_wrong: whether every value is 0 or 1.
    """

    values: list[Floats]
    share: Floats
    task: NDArray[np.int64]
    seed_share: Floats
    seed_part: SeedPart
    value_range: tuple[float, float]
    right_or_wrong: bool

    @cached_property
    def by_example(self) -> Floats:
        """Means over seeds, shape (arms, examples)."""
        return np.stack([arm.mean(axis=0) for arm in self.values])

    @cached_property
    def mean(self) -> Floats:
        """Shape (arms,)."""
        return self.by_example @ self.share

    @cached_property
    def influence(self) -> Floats:
        """What each example adds to the error of each mean, shape (arms, examples): covariances are sums of products.

        An example counts about the mean of its task.
        """
        sums = np.stack([np.bincount(self.task, self.share * arm) for arm in self.by_example])
        about = (sums / np.bincount(self.task, self.share))[:, self.task]
        size = np.bincount(self.task)[self.task]
        return np.asarray(self.share * (self.by_example - about) * np.sqrt(size / np.maximum(size - 1, 1)))

    @property
    def examples(self) -> int:
        """That have a finite value in every run."""
        return len(self.share)

    @property
    def seeds(self) -> NDArray[np.int64]:
        """Runs averaged, shape (arms,)."""
        return np.array([len(arm) for arm in self.values])

    @cached_property
    def spread(self) -> float:
        """Of one example's value, averaged over arms: standard deviation."""
        return float(np.mean([arm.std() for arm in self.values]))

    def of(self, arm: int) -> Estimate:
        """One arm's own mean."""
        return self._estimate([arm], self.value_range)

    def difference(self, arm: int, baseline: int) -> Estimate:
        """arm - baseline, paired by example."""
        widest = self.value_range[1] - self.value_range[0]
        result = self._estimate([arm, baseline], (-widest, widest))
        if self.right_or_wrong and self.seeds.max() == 1 and np.ptp(self.share) <= 1e-12:
            change = self.by_example[arm] - self.by_example[baseline]
            result = replace(result, discordant=(int((change > 0).sum()), int((change < 0).sum())))
        left, right = self.values[arm], self.values[baseline]
        paired = len(left) == len(right) or 1 in (len(left), len(right))  # a single run stands for every seed
        return replace(result, identical=paired and bool((left == right).all()))

    def unseen(self, arm: int) -> float:
        """Variance of the difference from another arm for one changed example more; the largest over these."""
        others = [other for other in range(len(self.values)) if other != arm]
        return max((self._changes(self.by_example[arm] - self.by_example[other])[0] for other in others), default=0.0)

    def _estimate(self, arms: list[int], value_range: tuple[float, float]) -> Estimate:
        """Of an arm's mean, or of its difference from a second one's."""
        signs = np.array([1.0, -1.0])[: len(arms)]
        variance, freedom = self._moments(signs @ self.influence[arms])
        unseen, growth, origin = self._changes(signs @ self.by_example[arms])
        if len(arms) > 1:  # of a mean nothing is tested: its interval's ends have what would be unseen there
            variance += unseen
        return Estimate(
            mean=float(signs @ self.mean[arms]),
            variances=variance + float(self.seed_share[arms].sum()) * self.seed_part.points(),
            item_variance=variance,
            growth=growth,
            origin=origin,
            freedom=freedom,
            examples=self.examples,
            seeds=int(self.seeds[arms].max()),
            value_range=value_range,
        )

    def _moments(self, influence: Floats) -> tuple[float, float]:
        """(variance of a mean, its degrees of freedom: by Satterthwaite over tasks), by the examples seen."""
        if self.examples < 2:
            return np.inf, 1.0
        variances, sizes = np.bincount(self.task, influence**2), np.bincount(self.task)
        total, squares = float(variances.sum()), float((variances**2 / (sizes - 1)).sum())
        return total, total**2 / squares if squares > 0 else float(self.examples - len(sizes))

    def _changes(self, values: Floats) -> tuple[float, float, float]:
        """(unseen, growth, origin): what may happen in examples that show no change; 0 where all show one.

        unseen: variance of the mean for one changed example more. growth: by how much the variance is larger per unit
        by which the truth lies farther from the origin than what was seen, as so much more would have changed. origin:
        the value where nothing changed: the median, mostly 0 of a difference. A change is one of 1 where all answers
        are right or wrong, and of the usual spread where none was seen.
        """
        origin, weight = float(np.median(values)), float((self.share**2).sum())
        away = values[values != origin] - origin
        same = 1 - len(away) / len(values)
        square, size = self.spread**2, self.spread
        if self.right_or_wrong:
            square, size = 1.0, 1.0
        elif len(away):
            square, size = float((away**2).mean()), float((away**2).sum() / np.abs(away).sum())
        return square * same * weight**2, size * same * weight, origin


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
    values, share, kept = _usable(arms, weights)
    right_or_wrong = bool(all(np.isin(arm, (0.0, 1.0)).all() for arm in values))
    task = np.zeros(len(share), dtype=np.int64)
    if strata is not None and np.unique(strata[kept], return_counts=True)[1].min() > 1:
        task = np.unique(strata[kept], return_inverse=True)[1]  # one item tells nothing of its task's spread: no tasks
    number = np.array([len(arm) for arm in values])
    has_seeds = (np.ones(len(arms), dtype=bool) if trained is None else np.asarray(trained, dtype=bool)) | (number > 1)
    return Means(
        values=values,
        share=share,
        task=task,
        seed_share=np.where(has_seeds, 1 / number, 0.0),
        seed_part=seed_part(values, share) if seeds is None else seeds,
        value_range=(0.0, 1.0) if right_or_wrong else value_range,
        right_or_wrong=right_or_wrong,
    )


def _usable(arms: Sequence[Floats], weights: Floats | None) -> tuple[list[Floats], Floats, NDArray[np.bool_]]:
    """The arms on the examples that have a finite value in every run, shares of these in the mean, which these are."""
    shapes = {values.shape[1:] for values in arms}
    if len(shapes) != 1 or any(values.ndim != 2 or values.size == 0 for values in arms):
        raise ValueError(f"arms: shapes {[v.shape for v in arms]}; expected (seeds, examples) with the same examples")
    kept = np.asarray(np.isfinite(np.concatenate(arms)).all(axis=0))
    if not kept.any():
        raise ValueError("arms: no example has a finite value in every run")
    if weights is not None and not (np.isfinite(weights[kept]) & (weights[kept] > 0)).all():
        raise ValueError("weights: must be finite and positive; drop examples of weight 0")
    share = (np.ones(len(kept)) if weights is None else weights)[kept]
    return [np.asarray(arm, dtype=float)[:, kept] for arm in arms], share / share.sum(), kept


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference with what is known of its error.

    Attributes:
        mean: in the unit of the values.
        variances: values of its variance, of probability `WEIGHTS`.
        item_variance: the part that shrinks with more examples; `freedom`: its degrees.
        growth, origin: as in `Means._changes`.
        discordant: (gained, lost) examples, for one seed of right and wrong answers.
        identical: a difference of arms that agree in every value.
    """

    mean: float
    variances: Floats
    item_variance: float
    growth: float
    origin: float
    freedom: float
    examples: int
    seeds: int
    value_range: tuple[float, float]
    discordant: tuple[int, int] | None = None
    identical: bool = False

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided score interval: the truths that the data do not reject, each with the variance that it would have;
        within the range of the values."""
        below, above = (self._error(1 - (1 - level) / 2, side) for side in (-1, 1))
        low, high = self.value_range
        return min(max(self.mean - below, low), self.mean), max(min(self.mean + above, high), self.mean)

    def _error(self, probability: float, side: int) -> float:
        """How far the truth may lie below (-1) or above (1); infinite where one example tells nothing of the spread."""
        if self.examples < 2 or not np.isfinite(self.variances).all():
            return np.inf
        quantile = float(special.stdtrit(self.freedom, probability))
        widest = quantile * float(np.sqrt(self.variances.max())) + quantile**2 * self.growth
        if widest <= 0:
            return 0.0
        return float(optimize.brentq(self._nearer, 0.0, widest * (1 + 1e-9), (side, probability), xtol=1e-9 * widest))

    def _nearer(self, half: float, side: int, less: float = 0.0) -> float:
        """Probability of a mean nearer than `half` to the truth, which lies so far below (-1) or above (1) of it."""
        away = side * (self.mean - self.origin)  # positive: the truth lies farther from the origin than the mean
        passed = max(-2 * away, 0.0)  # beyond the origin, from as far on the other side
        variances = np.maximum(self.variances + self.growth * max(half - passed, 0.0), 1e-300)
        return float(special.stdtr(self.freedom, half / np.sqrt(variances)) @ WEIGHTS) - less

    def p_beyond(self, bound: float, side: int) -> float:
        """One-sided p that is small where the truth is shown to lie above (1) or below (-1) of a bound."""
        if self.examples < 2 or not np.isfinite(self.variances).all():
            return 1.0
        return 1.0 - self._nearer(side * (self.mean - bound), -side)

    def p_value(self) -> float:
        """Two-sided p of "no difference": McNemar's exact test (1947, binomial form) for right and wrong answers of one
        seed, else by t."""
        if self.discordant is not None and any(self.discordant):
            return float(stats.binomtest(self.discordant[0], sum(self.discordant)).pvalue)
        if self.identical or self.examples < 2:
            return 1.0
        scale = np.maximum(np.sqrt(self.variances), 1e-300)
        return float(2 * special.stdtr(self.freedom, -abs(self.mean) / scale) @ WEIGHTS)

    def within(self, margin: float) -> tuple[bool, bool]:
        """Whether the difference is shown to lie above -margin, and below margin, each by a one-sided test at 5%."""
        low, high = self.interval(1 - 2 * ALPHA)
        enough = self.examples >= FEWEST_EXAMPLES
        return enough and low > -margin, enough and high < margin

    def is_equivalent(self, margin: float) -> bool:
        """Two one-sided tests (Schuirmann 1987): the 90% interval lies inside +-margin."""
        return all(self.within(margin))

    def examples_to_decide(self, margin: float) -> int | None:
        """Examples (same seeds) that would show a difference or an equivalence with 80% power, if the true difference
        is the one seen; None where more examples cannot: the seeds scatter too much."""
        seen, upper = abs(self.mean), stats.norm.ppf
        goals = [seen / (upper(1 - ALPHA / 2) + upper(POWER))]
        if seen < margin:  # at a true difference of 0, each of the two tests has half of the error of the second kind
            goals.append((margin - seen) / (upper(1 - ALPHA) + upper((1 + POWER) / 2 if seen == 0 else POWER)))
        return self._examples_for(max(goals))

    def examples_to_pass(self, bound: float) -> int | None:
        """Examples (same seeds) that would show on which side of a bound the truth lies, with 80% power, if it is the
        mean seen; None where more examples cannot."""
        error = abs(self.mean - bound) / (stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(POWER))
        return self._examples_for(error, FEWEST_EXAMPLES)

    def _examples_for(self, error: float, least: int = 2) -> int | None:
        """Examples that bring the standard error down to this; None where the seeds' part alone is larger."""
        allowed = error**2 - (float(self.variances[MEDIAN]) - self.item_variance)
        if allowed <= 0 or not np.isfinite(self.item_variance):
            return None
        return max(least, int(np.ceil(self.examples * self.item_variance / allowed)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979) over one family; order kept, each at most 1."""
    p, order = np.asarray(p_values, dtype=float), np.argsort(p_values, kind="stable")
    rising = np.maximum.accumulate(np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0))
    return list(map(float, rising[np.argsort(order)]))


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


def _seed_variances(known: Means) -> tuple[Floats, Floats]:
    """Values of the seeds' variance, and the logarithm of how likely each is: by the prior and what the seeds show."""
    variances, part = (max(known.spread, 1e-12) * SEED_SPREAD * np.exp(_LOGS)) ** 2, known.seed_part
    expected = np.maximum(variances + part.rest, 1e-300)
    log_likelihood = -part.degrees / 2 * (np.log(expected) + part.mean_square / expected)  # up to a constant
    return variances, _log_prior(SEED_SPREAD_LOG_SCALE) + log_likelihood


def _log_prior(scale: float) -> Floats:
    return np.asarray(stats.t.logpdf(_LOGS / scale, 4))


def seed_variance(known: Means) -> float:
    """Variance of one run's mean from seed to seed, by the prior and what several seeds show: the likeliest value."""
    variances, log_weight = _seed_variances(known)
    return float(variances[log_weight.argmax()])


def draws(known: Means, rng: np.random.Generator, count: int, alike: Sequence[bool] | None = None) -> Floats:
    """Draws of the arms' true means given the data, shape (count, arms); what decisions are made from.

    The seeds' variance has the prior `SEED_SPREAD`, weighed by what several seeds show. The means of the arms that are
    `alike` (trained; None: all) scatter about a common mean by an unknown spread with the prior `ARM_SPREAD`: where
    many arms lie within their errors, the highest is drawn towards the others.
    """
    size, unit = len(known.mean), max(known.spread, 1e-12)
    seed_variances, seed_weight = _seed_variances(known)
    together = np.ones(size, dtype=bool) if alike is None else np.asarray(alike, dtype=bool)
    arm_variance = (unit * ARM_SPREAD * np.exp(_LOGS)) ** 2
    # The covariance is itself estimated, from so many examples: Student's t in as many dimensions as there are arms.
    freedom = max(min(known.of(arm).freedom for arm in range(size)) + 1 - size, 1.0)
    unseen = np.array([known.unseen(arm) for arm in range(size)])
    items = known.influence @ known.influence.T + np.diag(unseen / 2 + 1e-9 * unit**2)
    items = items * (freedom + size - 1) / freedom
    # Far below the errors it changes nothing, but for a singular matrix where arms are equal in every example.
    arm_variance = np.maximum(arm_variance, 1e-9 * float(np.diag(items).max()))
    errors = items + seed_variances[:, None, None] * np.diag(known.seed_share)
    log_weight = seed_weight[:, None] + _log_prior(ARM_SPREAD_LOG_SCALE)
    precision = np.repeat(np.linalg.inv(errors)[:, None], len(_LOGS), axis=1)
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
