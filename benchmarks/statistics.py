"""Are the statistics what they say? Simulated experiments with a known truth, in Markdown tables.

    python -m benchmarks.statistics                        the tables of docs/statistics.md, in some minutes
    python -m benchmarks.statistics --repetitions 200      quick

Each experiment draws seeds and examples anew. Intervals should hold the truth in at least 95%; a difference should be
shown in at most 5% where there is none, and so should any of a family; equivalence in at most 5% where the truth lies
at the margin; and of the sweeps whose decision says "80% sure", at least 77% should be right.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.progress import track
from tabulate import tabulate

from bench.stats.decide import Evidence, choose
from bench.stats.limits import COLUMNS, Limits
from bench.stats.paired import SEED_SPREAD, SEED_SPREAD_LOG_SD, Floats, draws, holm, means

DRAWS = 1000  # of each decision; reports take 4,000
SEEDS, PARTS = (1, 2, 3, 5), (0, 0.25, 1, 4, 16)
SPREAD, ARM_BY_EXAMPLE, REST = 0.2, 0.06, 0.1  # of a ROUGE-L: of examples, of arms by example, of what is left
BINS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
TOLERANCE, BEST = 0.0135, 0.27
TRUTHS = {
    "full better by .01": (0.28, 0.27, 0.27),
    "full better by the tolerance": (0.2836, 0.27, 0.27),
    "full better by .03": (0.30, 0.27, 0.27),
    "full better by .05": (0.32, 0.27, 0.27),
    "all equal": (0.27, 0.27, 0.27),
    "qlora worse by .02": (0.27, 0.27, 0.25),
}


@dataclass(frozen=True)
class World:
    """Where experiments come from: three arms of scores, with a seeds' part that is `part` times the rest of the error
    of a mean."""

    seeds: int
    examples: int
    part: float = 0.0

    @property
    def error(self) -> float:
        """Standard error of a difference of two arms, its seeds' part left out."""
        return float((2 * (ARM_BY_EXAMPLE**2 + REST**2 / self.seeds) / self.examples) ** 0.5)

    def draw(self, rng: np.random.Generator, truth: Sequence[float], seed_spread: float | None = None) -> list[Floats]:
        """Scores of arms with these true means, each of shape (seeds, examples)."""
        spread = self.error * (self.part * self.seeds / 2) ** 0.5 if seed_spread is None else seed_spread
        shape = (len(truth), self.seeds, self.examples)
        scores = np.array(truth)[:, None, None] + rng.normal(0, SPREAD, shape[2]) + rng.normal(0, REST, shape)
        scores += rng.normal(0, ARM_BY_EXAMPLE, (shape[0], 1, shape[2])) + rng.normal(0, spread, (*shape[:2], 1))
        return list(scores)


def answers(
    rng: np.random.Generator, seeds: int, examples: int, chances: Sequence[float], agree: float, seed_spread: float = 0
) -> list[Floats]:
    """Right and wrong answers of arms. `agree`: share of examples on which an arm's seeds and the arms answer alike."""
    chance = np.array(chances)[:, None, None] + rng.normal(0, seed_spread, (len(chances), seeds, 1))
    own = rng.random((len(chances), seeds, examples))
    luck = np.where(rng.random(examples) < agree, rng.random(examples), own)
    return list((luck < chance).astype(float))


def intervals(repetitions: int, rng: np.random.Generator) -> Iterator[list[object]]:
    """Rows: seeds, part; %: coverage of a difference, false positives, equivalent at the margin, coverage of a mean.

    With one seed the truth is that of the seed at hand: nothing else can be known.
    """
    for seeds in SEEDS:
        for part in PARTS if seeds > 1 else (0,):
            world = World(seeds, 128, part)
            margin = 2.5 * world.error * (1 + part) ** 0.5
            count = np.zeros(4)
            for _ in range(repetitions):
                known = means(world.draw(rng, (0.0, 0.0, 0.0)))
                at_margin = means(world.draw(rng, (margin, 0.0, 0.0))).difference(0, 1)
                result, own = known.difference(0, 1), known.of(0)
                low, high = own.interval()
                covered = result.interval()[0] <= 0 <= result.interval()[1]
                count += (covered, result.p_value() < 0.05, at_margin.is_equivalent(margin), low <= 0 <= high)
            yield [seeds, part, *(100 * count / repetitions)]


def edges(repetitions: int, rng: np.random.Generator) -> Iterator[list[object]]:
    """Rows: accuracy, seeds, examples; %: coverage of a mean, of a difference of equal arms, false positives, and
    equivalence called at a true difference of the margin of 2 points."""
    for chance in (0.98, 0.9, 0.6):
        for seeds, examples in ((1, 64), (3, 64), (1, 500), (3, 500)):
            count = np.zeros(4)
            for _ in range(repetitions):
                known = means(answers(rng, seeds, examples, (chance, chance), 0.9))
                low, high = known.of(0).interval()
                result = known.difference(0, 1)
                ends = result.interval()
                worse = means(answers(rng, seeds, examples, (chance - 0.02, chance), 0.95)).difference(0, 1)
                count += (low <= chance <= high, ends[0] <= 0 <= ends[1], result.p_value() < 0.05,
                          worse.is_equivalent(0.02))  # fmt: skip
            yield [chance, seeds, examples, *(100 * count / repetitions)]


def families(repetitions: int, rng: np.random.Generator) -> Iterator[list[object]]:
    """Rows: seeds, seeds' spread in points; %: any false positive among 3 arms x 8 tasks of 64 items."""
    for seeds in (1, 2, 3, 5):
        for spread in (0.0, 0.025) if seeds > 1 else (0.0,):
            wrong = 0
            for _ in range(repetitions):
                p_values = []
                for _ in range(8):
                    known = means(answers(rng, seeds, 64, (0.75,) * 4, 0.8, spread), trained=(False, True, True, True))
                    p_values += [known.difference(arm, 0).p_value() for arm in (1, 2, 3)]
                wrong += min(holm(p_values)) < 0.05
            yield [seeds, 100 * spread, 100 * wrong / repetitions]


def decided(world: World, rng: np.random.Generator, truth: Sequence[float], spread: float) -> tuple[int, float, bool]:
    """(the chosen arm, how sure, whether it falls short by no more than the tolerance); costs fall from arm to arm."""
    known = means(world.draw(rng, truth, spread), value_range=(0.0, 1.0))
    size = len(truth)
    costs = pd.DataFrame({"peak_memory_bytes": np.arange(size, 0.0, -1)})
    needs = dict.fromkeys(COLUMNS, np.tile(costs["peak_memory_bytes"], (DRAWS, 1)))
    scores, arms = draws(known, rng, DRAWS), [str(place) for place in range(size)]
    choice = choose(Evidence(arms, [True] * size, known, 1.0, scores, needs, {}, costs), Limits(), TOLERANCE)
    assert choice.arm is not None
    return choice.arm, choice.sureness, max(truth) - truth[choice.arm] <= TOLERANCE


def calibration(sweeps: int, rng: np.random.Generator) -> Iterator[list[object]]:
    """Rows: seeds, examples, seeds' spread, arms; said/right in % and number of sweeps by bin of sureness.

    Prior of truths: gaps between arms normal with standard deviation .02; the seeds' spread as `paired.draws` supposes,
    or fixed.
    """
    unit = (SPREAD**2 + ARM_BY_EXAMPLE**2 + REST**2) ** 0.5
    cases = [(s, n, spread, 3) for s in (1, 3, 5) for spread in (None, 0.006, 0.012) for n in (128, 500)]
    by_seeds: dict[int, list[tuple[float, bool]]] = {}
    for seeds, examples, fixed, arms in track([*cases, (1, 128, None, 8), (3, 128, None, 8)], description="decisions"):
        found: list[tuple[float, bool]] = []
        for _ in range(sweeps):
            prior = SEED_SPREAD * unit * np.exp(SEED_SPREAD_LOG_SD * rng.normal())
            truth = BEST + np.array([0, *rng.normal(0, 0.02, arms - 1)])
            found.append(decided(World(seeds, examples), rng, list(truth), prior if fixed is None else fixed)[1:])
        by_seeds.setdefault(seeds, []).extend(found)
        yield [seeds, examples, "prior" if fixed is None else fixed, arms, *_by_sureness(found)]
    for seeds, together in by_seeds.items():
        yield [seeds, "all", "all", "all", *_by_sureness(together)]


def _by_sureness(found: Sequence[tuple[float, bool]]) -> list[str]:
    """said/right in % (sweeps): of all, then by bin of the sureness said."""
    said, right = np.array(found, dtype=float).T
    place = np.digitize(said, BINS[1:-1])
    parts = [np.ones(len(said), dtype=bool), *(place == number for number in range(len(BINS) - 1))]
    return [
        f"{100 * said[part].mean():.0f}/{100 * right[part].mean():.0f} ({part.sum()})" if part.sum() >= 30 else ""
        for part in parts
    ]


def fixed_truths(sweeps: int, rng: np.random.Generator) -> Iterator[list[object]]:
    """Rows: truth, seeds, examples; % right, mean sureness in %, and how often full, lora and qlora are chosen."""
    for name, truth in track(TRUTHS.items(), description="fixed truths"):
        for seeds, examples in ((1, 64), (1, 128), (3, 128), (3, 500), (5, 500)):
            arms, said, right = zip(
                *(decided(World(seeds, examples), rng, truth, 0.006) for _ in range(sweeps)), strict=True
            )
            shares = 100 * np.bincount(arms, minlength=3) / sweeps
            yield [name, seeds, examples, 100 * np.mean(right), 100 * np.mean(said), *shares]


def main() -> None:
    """Run the experiments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--sweeps", type=int, default=2800, help="decisions a row")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, count = np.random.default_rng(options.seed), options.repetitions
    bins = [f"{100 * a:.0f}-{100 * b:.0f}" for a, b in itertools.pairwise(BINS)]
    tables = [
        ("Differences of scores (128 examples, 3 arms)", intervals(count, rng),
         ["seeds", "seeds' part / rest", "coverage, %", "false positives, %", "equivalent at the margin, %",
          "coverage of a mean, %"]),
        ("Right and wrong answers", edges(count, rng),
         ["accuracy", "seeds", "examples", "coverage of a mean, %", "coverage of a difference, %", "false positives, %",
          "equivalent at a true -2.0 points, %"]),
        ("Families: 3 arms x 8 tasks, Holm", families(count // 4, rng),
         ["seeds", "seeds' spread, points", "any false positive, %"]),
        ("Decisions: said/right in % (sweeps), by sureness said", calibration(options.sweeps, rng),
         ["seeds", "examples", "seeds' spread", "arms", "all", *bins]),
        ("Decisions at fixed truths (tolerance .0135, seeds' spread .006)", fixed_truths(options.sweeps // 7, rng),
         ["truth", "seeds", "examples", "right, %", "sure, %", "full", "lora", "qlora"]),
    ]  # fmt: skip
    for title, rows, headers in tables:
        print(f"\n## {title}\n\n{tabulate(list(rows), headers, 'github', floatfmt='.4g')}", flush=True)


if __name__ == "__main__":
    main()
