"""Are the statistics what they say? Simulated experiments with a known truth: coverage, false positives, power.

    python -m benchmarks.statistics                        the tables of docs/statistics.md, in about five minutes
    python -m benchmarks.statistics --repetitions 200

Every experiment draws seeds and examples anew: value = seed effect + example effect + rest. What should come out:
intervals that hold the truth in 95%, "different" in at most 5% where nothing differs, "different" in 80% at the
smallest difference that is said to be detectable, "equivalent" in at most 5% where the truth lies at the margin.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.progress import track
from tabulate import tabulate

from bench.analysis import stats

Floats = np.ndarray
DRAWS = 1000  # bootstrap draws in each experiment; reports take 10,000


@dataclass(frozen=True)
class World:
    """Where experiments come from: the kind of value, and how much seeds differ beside one example's spread of 1."""

    kind: str
    seeds: int
    examples: int
    seed_spread: float = 0.0

    def draw(self, rng: np.random.Generator, shift: float = 0.0) -> Floats:
        """Paired differences of one experiment, (seeds, examples), with the true mean `shift`."""
        if self.kind == "right/wrong":
            return _right_or_wrong(rng, self.seeds, self.examples, shift)
        of_seeds = rng.normal(0, self.seed_spread, (self.seeds, 1))
        of_examples = _NOISE[self.kind](rng, (1, self.examples)) * 0.5**0.5
        return shift + of_seeds + of_examples + _NOISE[self.kind](rng, (self.seeds, self.examples)) * 0.5**0.5

    @property
    def label(self) -> list[object]:
        return [self.kind, self.seeds, self.examples, self.seed_spread]


def _right_or_wrong(rng: np.random.Generator, seeds: int, examples: int, shift: float) -> Floats:
    """Differences of 0/1 answers: each example has its own chance to be gained or lost, equal but for the shift."""
    changed = np.maximum(rng.beta(1, 4, (1, examples)), abs(shift))  # else no chance could differ by the shift
    side = rng.random((seeds, examples))
    gained, lost = changed / 2 + shift / 2, changed / 2 - shift / 2
    return np.where(side < gained, 1.0, np.where(side > 1 - lost, -1.0, 0.0))


_NOISE: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {  # mean 0, standard deviation 1
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape) - 1,
    "mostly equal": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.3) / 0.3**0.5,
}
WORLDS = [
    *(World(kind, 1, examples) for kind in (*_NOISE, "right/wrong") for examples in (30, 128, 500)),
    *(World("normal", seeds, 128, spread) for seeds in (3, 5) for spread in (0.0, 0.05, 0.2)),
    *(World("skewed", 3, 128, spread) for spread in (0.0, 0.05)),
    World("right/wrong", 3, 128),
]


def main() -> None:
    """Run the experiments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    for world in track(WORLDS, description="simulating"):
        rng = np.random.default_rng(options.seed)
        rows.append([*world.label, *_rates(world, options.repetitions, rng)])
    headers = ["values", "seeds", "examples", "seeds' spread", "coverage, %", "false positives, %", "permutation, %",
               "McNemar, %", "power, %", "equivalent at the margin, %"]  # fmt: skip
    print(tabulate(rows, headers, "github", floatfmt=("", "", "", ".2f", *[".1f"] * 6)))
    error = 100 * (0.05 * 0.95 / options.repetitions) ** 0.5
    print(f"\n{options.repetitions} experiments a row; a share of 5% has a standard error of {error:.1f} points.")
    wrong = 100 * family_error(np.random.default_rng(options.seed), options.repetitions)
    print(f"Any false positive among 12 tasks of 80 items, Holm-adjusted: {wrong:.1f}% of experiments.")


def _rates(world: World, repetitions: int, rng: np.random.Generator) -> list[float | None]:
    """Percentages: coverage, false positives of three tests, power, equivalence declared at the margin."""
    spread = float(np.std([world.draw(rng).mean() for _ in range(400)]))  # true standard error of a mean
    detectable = float(np.median([stats.detectable_difference(_paired(world.draw(rng), rng)) for _ in range(100)]))
    margin = 4 * spread
    counts = dict.fromkeys(("covered", "found", "permuted", "mcnemar", "power", "equivalent"), 0)
    for _ in range(repetitions):
        result = _paired(world.draw(rng), rng)
        low, high = result.interval()
        counts["covered"] += low <= 0 <= high
        counts["found"] += result.p_value() < 0.05
        if world.seeds == 1:
            counts["permuted"] += stats.sign_flip(result, rng, draws=DRAWS) < 0.05
            counts["mcnemar"] += result.discordant is not None and stats.mcnemar(*result.discordant) < 0.05
        counts["power"] += _paired(world.draw(rng, detectable), rng).p_value() < 0.05
        counts["equivalent"] += stats.is_equivalent(_paired(world.draw(rng, margin), rng), margin)
    shares: dict[str, float | None] = {name: 100 * count / repetitions for name, count in counts.items()}
    if world.seeds > 1:
        shares["permuted"] = shares["mcnemar"] = None
    if world.kind != "right/wrong":
        shares["mcnemar"] = None
    return list(shares.values())


def _paired(values: Floats, rng: np.random.Generator) -> stats.Paired:
    return stats.paired(values, rng=rng, draws=DRAWS)


def family_error(rng: np.random.Generator, repetitions: int) -> float:
    """How often at least one of 12 tasks is called different where none is."""
    wrong = 0
    for _ in range(repetitions):
        draws = [World("right/wrong", 1, 80).draw(rng) for _ in range(12)]
        counted = [(int((d > 0).sum()), int((d < 0).sum())) for d in draws]
        wrong += min(stats.holm([stats.mcnemar(*pair) for pair in counted])) < 0.05
    return wrong / repetitions


if __name__ == "__main__":
    main()
