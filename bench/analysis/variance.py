"""The standard error of a mean over crossed seeds and examples, and its degrees of freedom.

    value[s, e] = mean + seed[s] + example[e] + rest[s, e]

The variance of the mean is estimated by the mean squares of the two-way layout (Searle, Casella and McCulloch
1992, chapter 4), the degrees of freedom by Satterthwaite (1946). Weighted means are linearised first: the value
of an example becomes its influence on the ratio sum(w x) / sum(w).

    >>> standard_error(np.array([[1.0, 2.0, 3.0]]), np.ones((1, 3))).total   # one seed: s / sqrt(n)
    0.5773502691896257
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StandardError:
    """In the unit of the values.

    Attributes:
        total: of the mean; sqrt(seed_part^2 + example_part^2).
        seed_part: shrinks with more seeds only.
        example_part: shrinks with more examples.
        degrees_of_freedom: of Student's t for `total`.
    """

    total: float
    seed_part: float
    example_part: float
    degrees_of_freedom: float


def standard_error(values: Floats, weights: Floats) -> StandardError:
    """Standard error of sum(w x) / sum(w); both of shape (seeds, examples).

    With one seed nothing is known of the spread among seeds: `seed_part` is 0 and the result speaks of that seed.
    With one example the error is unknown: infinite.
    """
    seeds, examples = values.shape
    if examples < 2:
        return StandardError(np.inf, 0.0, np.inf, 1.0)
    mean = (weights * values).sum() / weights.sum()
    influence = weights * (values - mean) / weights.mean()
    example_square = seeds * float(influence.mean(axis=0).var(ddof=1))  # E[.] = rest + seeds * example
    cells = seeds * examples
    if seeds == 1:
        part = float(np.sqrt(example_square / cells))
        return StandardError(part, 0.0, part, examples - 1)
    seed_square = examples * float(influence.mean(axis=1).var(ddof=1))  # E[.] = rest + examples * seed
    rest = influence - influence.mean(axis=0) - influence.mean(axis=1, keepdims=True) + influence.mean()
    rest_square = float((rest**2).sum() / ((seeds - 1) * (examples - 1)))
    seed_variance = max(seed_square - rest_square, 0.0) / cells
    example_variance = example_square / cells
    total = seed_variance + example_variance
    spread = (example_square / cells) ** 2 / (examples - 1)
    if seed_variance:
        spread += (seed_square / cells) ** 2 / (seeds - 1)
        spread += (rest_square / cells) ** 2 / ((seeds - 1) * (examples - 1))
    # Satterthwaite's ratio can fall below every component's own degrees of freedom; it means the smallest of them.
    degrees = max(total**2 / spread if spread else examples - 1, min(seeds, examples) - 1)
    return StandardError(
        float(np.sqrt(total)), float(np.sqrt(seed_variance)), float(np.sqrt(example_variance)), degrees
    )
