"""The mean of paired values over crossed seeds and examples, with its bootstrap distribution.

Seeds and examples are both samples of larger populations and they cross: the same examples are answered under
every seed. A draw resamples the examples, together for all seeds, and then moves by a resampled mean of the seeds,
scaled to that part of the spread among seeds which the examples do not explain (`variance.py`). Drawing examples
anew within each drawn seed, as for nested data, would count every example several times over and give intervals
that are too narrow; drawing both without the scaling counts their interaction twice and gives wide ones (Owen 2007,
"The pigeonhole bootstrap"). Percentiles of few units are too narrow as well, so the draws are widened about the
mean to the unbiased standard error and Student's t (Hesterberg 2015, "What teachers should know about the
bootstrap", section 4.3).

    >>> paired(np.array([[0.1, 0.3, 0.2]]), rng=np.random.default_rng(0)).mean
    0.2
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bench.analysis.variance import StandardError, standard_error

Floats = NDArray[np.float64]
DRAWS = 10_000
_CHUNK_CELLS = 8_000_000  # draws x examples multiplied at once: 64 MB
_KEPT_CELLS = 200_000_000  # draws x examples kept: 200 MB, a byte each


@dataclass(frozen=True, eq=False)
class Paired:
    """A mean over seeds and examples with its bootstrap distribution. Made by `paired`.

    Attributes:
        mean: weighted mean of the values, in their unit.
        draws: sorted bootstrap means, shape (draws,).
        error: standard error and its parts.
        seeds, examples: the numbers of rows and columns with a value.
        discordant: for differences of 0/1 scores, (gained, lost) over all rows; else None.
        shares: what each example adds to the mean, shape (examples,); they sum to it.
    """

    mean: float
    draws: Floats
    error: StandardError
    seeds: int
    examples: int
    discordant: tuple[int, int] | None
    shares: Floats

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval: percentiles of the draws, widened for few seeds and examples. Infinite for 1 example."""
        if self.examples < 2:
            return -np.inf, np.inf
        tail = (1 - level) / 2
        low, high = np.interp([tail, 1 - tail], self._ranks, self.draws)
        widening = self._widening(level)
        return self.mean + (float(low) - self.mean) * widening, self.mean + (float(high) - self.mean) * widening

    def p_value(self) -> float:
        """Two-sided p of "the mean is 0": the smallest alpha whose interval at 1 - alpha leaves 0 out.

        So p < 0.05 exactly when the 95% interval leaves 0 out. Not below 2 / (draws + 1).
        """
        smallest = 2 / (len(self.draws) + 1)
        low_alpha, high_alpha = smallest, 1.0
        if self.mean == 0:
            return 1.0
        if self._leaves_out_zero(smallest):
            return smallest
        for _ in range(40):
            middle = (low_alpha + high_alpha) / 2
            if self._leaves_out_zero(middle):
                high_alpha = middle
            else:
                low_alpha = middle
        return high_alpha

    def _leaves_out_zero(self, alpha: float) -> bool:
        low, high = self.interval(1 - alpha)
        return low > 0 or high < 0

    @cached_property
    def _ranks(self) -> Floats:
        return (np.arange(len(self.draws)) + 0.5) / len(self.draws)

    @cached_property
    def _spread(self) -> float:
        return float(self.draws.std())

    def _widening(self, level: float) -> float:
        if self._spread <= 1e-12 * max(1.0, abs(self.mean)):
            return 1.0
        upper = (1 + level) / 2
        student = special.stdtrit(self.error.degrees_of_freedom, upper) / special.ndtri(upper)  # quantiles
        # Never below 1: narrower than its percentiles, an interval could leave out values that were drawn.
        return max(1.0, float(student * self.error.total / self._spread))


class Resampler:
    """Draws with replacement, kept for the next sample of the same size: many measures share their examples.

    Sharing changes no single result's distribution and makes a report's hundred intervals ten times faster.
    """

    def __init__(self, rng: np.random.Generator, draws: int = DRAWS):
        self.draws = draws
        self._rng = rng
        self._kept: dict[int, list[NDArray[np.uint8]]] = {}  # by units, in chunks of draws

    def ratios(self, numerators: Floats, denominators: Floats) -> Floats:
        """sum(numerators) / sum(denominators) over resampled units; inputs of shape (units,), output (draws,)."""
        units = len(numerators)
        if units == 1:
            return np.full(self.draws, numerators[0] / denominators[0])
        sums = np.stack([numerators, denominators], axis=1)
        return np.concatenate([(part := counts @ sums)[:, 0] / part[:, 1] for counts in self._counts(units)])

    def _counts(self, units: int) -> Iterator[Floats]:
        """How often each unit is drawn in `units` draws, shape (draws, units), in chunks of draws."""
        if units in self._kept:
            yield from (counts.astype(float) for counts in self._kept[units])
            return
        room = _KEPT_CELLS // self.draws - sum(self._kept)
        keep: list[NDArray[np.uint8]] | None = [] if units <= room else None
        chunk = max(1, _CHUNK_CELLS // units)
        for start in range(0, self.draws, chunk):
            size = min(chunk, self.draws - start)
            picks = self._rng.integers(0, units, size=(size, units)) + np.arange(size)[:, None] * units
            counts = np.bincount(picks.ravel(), minlength=size * units).reshape(size, units)
            if keep is not None:
                keep.append(counts.astype(np.uint8))  # of the same unit 256 times in a draw there is no chance
            yield counts.astype(float)
        if keep is not None:
            self._kept[units] = keep


def paired(
    values: Floats,
    *,
    rng: np.random.Generator | Resampler,
    weights: Floats | None = None,
    draws: int = DRAWS,
    right_or_wrong: bool | None = None,
) -> Paired:
    """Mean of paired differences (or of scores) with its bootstrap over seeds and examples.

    Args:
        values: shape (seeds, examples); column e is the same example in every row.
        rng: the only source of randomness; a `Resampler` keeps its draws for the next call, and sets their number.
        weights: shape (examples,) or (seeds, examples), for example tokens of a loss or bytes of bits per byte;
            the mean is sum(weight * value) / sum(weight). None weighs all alike.
        draws: bootstrap draws.
        right_or_wrong: whether the values are differences of 0/1 scores; None looks whether all are -1, 0 or 1.

    Raises:
        ValueError: for another shape, nothing, a value that is not finite, or weights that are not positive.
    """
    values, weights = _checked(values, weights)
    seeds, examples = values.shape
    mean = float((weights * values).sum() / weights.sum())
    error = standard_error(values, weights)
    resampler = rng if isinstance(rng, Resampler) else Resampler(rng, draws)
    resampled = np.sort(_draws(values, weights, mean, error, resampler))
    discordant = None
    if np.isin(values, (-1.0, 0.0, 1.0)).all() if right_or_wrong is None else right_or_wrong:
        discordant = int((values > 0).sum()), int((values < 0).sum())
    shares = (weights * values).sum(axis=0) / weights.sum()
    return Paired(mean, resampled, error, seeds, examples, discordant, shares)


def _checked(values: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"values: shape {values.shape}; expected (seeds, examples), each at least 1")
    if not np.isfinite(values).all():
        raise ValueError(f"values: {int((~np.isfinite(values)).sum())} are not finite; drop these examples, pairwise")
    weights = np.broadcast_to(np.ones(1) if weights is None else np.asarray(weights, dtype=float), values.shape)
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError("weights: must be finite and positive; drop examples of weight 0")
    return values, weights


def _draws(values: Floats, weights: Floats, mean: float, error: StandardError, resampler: Resampler) -> Floats:
    """Bootstrap means, shape (draws,): resampled examples, moved by resampled seeds."""
    products = weights * values
    of_examples = resampler.ratios(products.sum(axis=0), weights.sum(axis=0))
    if not error.seed_part:
        return of_examples
    of_seeds = resampler.ratios(products.sum(axis=1), weights.sum(axis=1))
    return of_examples + (of_seeds - mean) * (error.seed_part / of_seeds.std())
