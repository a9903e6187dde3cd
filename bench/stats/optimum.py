"""The best learning rate by a fit: a parabola of the validation loss against the log of the rate, near its minimum.

The lowest of a few noisy losses is too low, and its rate is one of those tried. The parabola by least squares through
the rates nearest to it says where the minimum is, with Fieller's interval (1954) for its place, and what the loss is
there. It is refused where the minimum is not inside, or the losses scatter too much to show one.

    >>> found = fit({1e-4: 2.52, 1.6e-4: 2.44, 2.5e-4: 2.41, 4e-4: 2.45, 6.3e-4: 2.53})
    >>> found.learning_rate, found.low, found.high, found.loss
    (0.00025, 0.00023, 0.00027, 2.412)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bench.compose import Trial
from bench.stats.paired import Floats

FEWEST, MOST = 4, 5  # rates that a parabola is fitted to: with three, nothing is left to tell its error from
WIDEST = 10.0  # of an interval's end: its log distance from the best rate that was tried


@dataclass(frozen=True, eq=False)
class Optimum:
    """The minimum of a fitted parabola.

    Attributes:
        learning_rate: the best. `low`, `high`: its 95% interval.
        loss: of a training at that rate, nats a token, with `error` (standard).
        optimism: by how much the lowest loss that was seen is below it.
        rates: fitted to.
        coefficients, covariance: of loss = a + b x + c x^2, x = log(rate / `centre`); `freedom`: degrees.
    """

    learning_rate: float
    low: float
    high: float
    loss: float
    error: float
    optimism: float
    rates: int
    coefficients: Floats
    covariance: Floats
    centre: float
    freedom: int

    def draws(self, rng: np.random.Generator, count: int) -> Floats:
        """Draws of the best rate given the data, shape (count,); the few in which no minimum exists are drawn again."""
        found = np.empty(0)
        while len(found) < count:
            noise = rng.multivariate_normal(np.zeros(3), self.covariance, count)
            heavier = np.sqrt(self.freedom / rng.chisquare(self.freedom, (count, 1)))
            drawn = self.coefficients + noise * heavier
            found = np.append(found, [-b / (2 * c) for _, b, c in drawn if c > 0])
        return np.asarray(self.centre * np.exp(np.clip(found[:count], -WIDEST, WIDEST)))


def fit(losses: Mapping[float, float | None]) -> Optimum | str:
    """The optimum, or why there is none and what to try.

    Args:
        losses: learning rate -> validation loss, nats a token; None or infinite: it diverged.
    """
    ended = {rate: loss for rate, loss in losses.items() if loss is not None and math.isfinite(loss)}
    if len(ended) < FEWEST:
        return f"{len(ended)} rates ended with a finite loss, {FEWEST} are needed: raise tune.max_points"
    centre = min(ended, key=lambda rate: ended[rate])
    if outside := {min(ended): "lower", max(ended): "higher"}.get(centre):
        beyond = f"try {outside} ones (tune.rates, tune.max_points)"
        return f"the lowest loss is at an end of the rates, {centre:g}: {beyond}"
    near = sorted(ended, key=lambda rate: abs(math.log(rate / centre)))[:MOST]
    x, freedom = np.log(np.array(near) / centre), len(near) - 3
    coefficients, covariance = np.polyfit(x, [ended[rate] for rate in near], 2, cov=True)
    coefficients, covariance = coefficients[::-1], covariance[::-1, ::-1]  # of 1, x, x^2
    a, b, c = coefficients
    # Fieller: the places x at which a slope b + 2 c x of 0 is not rejected.
    square = float(stats.t.ppf(0.975, freedom)) ** 2
    second = 4 * (c**2 - square * covariance[2, 2])
    if c <= 0 or second <= 0:
        return "the losses scatter too much to show a minimum: try rates farther apart (tune.factor)"
    half, last = 2 * (b * c - square * covariance[1, 2]), b**2 - square * covariance[1, 1]
    ends = (-half + np.array([-1, 1]) * math.sqrt(max(half**2 - second * last, 0.0))) / second
    place = -b / (2 * c)
    if not x.min() <= place <= x.max():
        end = "lower" if place < 0 else "higher"
        return f"the parabola's minimum, {centre * math.exp(place):.2g}, is outside of the rates: try {end} ones"
    at, slope = np.array([1, place, place**2]), np.array([0, 1, 2 * place])
    # A fitted minimum lies too low by c times the variance of its place, and the loss there too high by as much.
    loss = float(a - b**2 / (4 * c) + slope @ covariance @ slope / (2 * c))
    low, high = centre * np.exp(np.clip(ends, -WIDEST, WIDEST))
    return Optimum(
        float(f"{centre * math.exp(place):.3g}"), float(low), float(high), loss,
        error=math.sqrt(float(at @ covariance @ at)), optimism=loss - ended[centre],
        rates=len(near), coefficients=coefficients, covariance=covariance, centre=centre, freedom=freedom,
    )  # fmt: skip


def of_search(trials: Sequence[Trial]) -> Optimum | str:
    """The optimum of a search's trials, or why there is none."""
    return fit({tried.learning_rate: tried.loss for tried in trials})


def words(found: Optimum | str) -> str:
    """What a fit found, a sentence."""
    if isinstance(found, str):
        return f"No fitted optimum: {found}."
    side = "below" if found.optimism >= 0 else "above"
    return (
        f"A parabola through {found.rates} rates has its minimum at {found.learning_rate:g} [{found.low:.2g}, "
        f"{found.high:.2g}], with a loss of {found.loss:.4f} (+-{found.error:.4f}); the lowest that was seen is "
        f"{abs(found.optimism):.4f} {side} it."
    )


def ratios(found: Mapping[str, Optimum | str]) -> list[str]:
    """The ratio of the best rates of every two methods that have one, a sentence each."""
    known = {name: one for name, one in found.items() if isinstance(one, Optimum)}
    rng, sentences = np.random.default_rng(0), []
    for left, right in itertools.combinations(known, 2):
        value, low, high = ratio(known[left], known[right], rng)
        sentences.append(f"Best rate of {left} over that of {right}: {value:.2g} [{low:.2g}, {high:.2g}].")
    return sentences


def ratio(left: Optimum, right: Optimum, rng: np.random.Generator, count: int = 4000) -> tuple[float, float, float]:
    """(best rate of one method over that of another, its 95% interval)."""
    low, high = np.percentile(np.log(left.draws(rng, count) / right.draws(rng, count)), (2.5, 97.5))
    return left.learning_rate / right.learning_rate, float(np.exp(low)), float(np.exp(high))
