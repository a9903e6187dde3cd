"""Are the statistics what they say? Simulated experiments with a known truth, in Markdown tables.

    python -m benchmarks.statistics                      all tables: about 15 minutes of one core
    python -m benchmarks.statistics edges --scale 0.1    some of them, with a tenth of the repetitions

Each experiment draws seeds and examples anew. Intervals should hold the truth in at least 95%; a difference should be
shown in at most 5% where there is none, and so should any of a family; equivalence in at most 5% where the truth lies
at the margin; and of the sweeps whose decision says "80% sure", at least 77% should be right.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from tabulate import tabulate

from bench.stats.decide import choose
from bench.stats.evidence import COSTS, WALL, Evidence
from bench.stats.limits import COLUMNS, Limits
from bench.stats.measures import Measure
from bench.stats.paired import SEED_SPREAD, Estimate, Floats, Means, draws, holm, means
from bench.stats.settling import Design, first_design, settle

SEEDS, PARTS = (1, 2, 3, 5), (0, 0.25, 1, 4, 16)  # seeds; their part in the error of a difference, in units of the rest
SPREAD, ARM_BY_EXAMPLE, REST = 0.2, 0.06, 0.1  # of a ROUGE-L: of examples, of arms by example, of what is left
UNIT = (SPREAD**2 + ARM_BY_EXAMPLE**2 + REST**2) ** 0.5
DRAWS = 1000  # of each decision; reports take 4,000
BINS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
TOLERANCE, BEST, GAP = 0.0135, 0.27, 0.02
TRUTHS = {
    "full better by .01": (0.28, 0.27, 0.27),
    "full better by a hair less than the tolerance": (0.2834, 0.27, 0.27),
    "full better by a hair more than the tolerance": (0.2836, 0.27, 0.27),
    "full better by .03": (0.30, 0.27, 0.27),
    "full better by .05": (0.32, 0.27, 0.27),
    "all equal": (0.27, 0.27, 0.27),
    "qlora worse by .02": (0.27, 0.27, 0.25),
    "qlora better by .02": (0.27, 0.27, 0.29),
}
Row = Sequence[object]


def scores(
    rng: np.random.Generator, truth: Sequence[float], seeds: int, examples: int, seed_spread: Sequence[float] | float
) -> list[Floats]:
    """Scores of arms with these true means, each of shape (seeds, examples); `seed_spread`: of all arms, or of each."""
    shape = (len(truth), seeds, examples)
    made = np.array(truth)[:, None, None] + rng.normal(0, SPREAD, examples) + rng.normal(0, REST, shape)
    made += rng.normal(0, ARM_BY_EXAMPLE, (shape[0], 1, examples))
    return list(made + rng.normal(0, 1, (*shape[:2], 1)) * np.reshape(seed_spread, (-1, 1, 1)))


def answers(
    rng: np.random.Generator,
    chances: Sequence[float],
    seeds: int,
    examples: int,
    arms_agree: float,
    seeds_agree: float,
    seed_spread: Sequence[float] | float = 0.0,
) -> list[Floats]:
    """Right and wrong answers of arms; `..._agree`: the share of examples on which arms, or an arm's seeds, do."""
    shape = (len(chances), seeds, examples)
    own = np.where(
        rng.random((shape[0], 1, examples)) < arms_agree, rng.random(examples), rng.random((shape[0], 1, examples))
    )
    luck = np.where(rng.random(shape) < seeds_agree, own, rng.random(shape))
    chance = np.array(chances)[:, None, None] + rng.normal(0, 1, (*shape[:2], 1)) * np.reshape(seed_spread, (-1, 1, 1))
    return list((luck < chance).astype(float))


def holds(estimate: Estimate, truth: float) -> bool:
    """Whether the 95% interval does."""
    low, high = estimate.interval()
    return low <= truth <= high


def shares(repetitions: int, experiment: Callable[[], Sequence[bool]]) -> list[float]:
    """How often each outcome of an experiment occurs, in %."""
    return list(100 * np.mean([experiment() for _ in range(repetitions)], axis=0))


def differences(scale: float, rng: np.random.Generator) -> Iterator[Row]:
    """Of scores, 128 examples, three arms; at the right the base (one run) against one arm alone."""
    for seeds, part in ((s, p) for s in SEEDS for p in PARTS if s > 1 or not p):
        error = (2 * (ARM_BY_EXAMPLE**2 + REST**2 / seeds) / 128) ** 0.5
        spread, margin = error * (part * seeds / 2) ** 0.5, 2.5 * error * (1 + part) ** 0.5

        def experiment(seeds: int = seeds, spread: float = spread, margin: float = margin) -> Sequence[bool]:
            known = means(scores(rng, (0.0, 0.0, 0.0), seeds, 128, spread))
            worse = means(scores(rng, (margin, 0.0, 0.0), seeds, 128, spread)).difference(0, 1)
            base, arm = scores(rng, (0.0, 0.0), seeds, 128, (0.0, spread * 2**0.5))
            alone = means([base[:1], arm], trained=(False, True)).difference(1, 0)
            result = known.difference(0, 1)
            return (holds(known.of(0), 0), holds(result, 0), result.p_value() < 0.05, worse.is_equivalent(margin),
                    holds(alone, 0), alone.p_value() < 0.05)  # fmt: skip

        yield [seeds, part, *shares(int(2000 * scale), experiment)]


def edges(scale: float, rng: np.random.Generator) -> Iterator[Row]:
    """Right and wrong answers; equivalence is asked at a true -2 points with a margin of 2."""
    for chance, arms_agree in ((0.98, 0.97), (0.98, 0.8), (0.9, 0.97), (0.9, 0.8), (0.6, 0.8)):
        for seeds, seeds_agree in ((1, 1.0), (3, 1.0), (3, 0.8)):
            for examples in (64, 128, 500):
                layout = (seeds, examples, arms_agree, seeds_agree)

                def experiment(
                    chance: float = chance, layout: tuple[int, int, float, float] = layout
                ) -> Sequence[bool]:
                    known = means(answers(rng, (chance, chance), *layout))
                    worse = means(answers(rng, (chance - 0.02, chance), *layout)).difference(0, 1)
                    result = known.difference(0, 1)
                    return (holds(known.of(0), chance), holds(result, 0), holds(worse, -0.02), result.p_value() < 0.05,
                            worse.is_equivalent(0.02))  # fmt: skip

                yield [chance, arms_agree, seeds, seeds_agree, examples, *shares(int(1000 * scale), experiment)]


def rare(scale: float, rng: np.random.Generator) -> Iterator[Row]:
    """Scores that differ in few examples, by .3 on average or by 0 on average; seeds agree."""
    for share, seeds, examples in ((c, s, n) for c in (0.02, 0.05, 0.2) for s in (1, 3) for n in (64, 128, 500)):

        def experiment(share: float = share, seeds: int = seeds, examples: int = examples) -> Sequence[bool]:
            base, changed = rng.uniform(0, 1, examples), rng.random(examples) < share
            moved = [base + changed * rng.normal(by, 0.2, examples) for by in (0.3, 0.0)]
            known = means([np.tile(arm, (seeds, 1)) for arm in (base, *moved)])
            better, alike = known.difference(1, 0), known.difference(2, 0)
            return holds(better, 0.3 * share), alike.p_value() < 0.05, better.is_equivalent(0.3 * share)

        yield [share, seeds, examples, *shares(int(1000 * scale), experiment)]


def families(scale: float, rng: np.random.Generator) -> Iterator[Row]:
    """Three arms against one run of the base in 8 tasks of 64 scores, adjusted by Holm; one test alone."""
    for seeds, part in ((s, p) for s in SEEDS for p in PARTS if s > 1 or not p):
        rest = (2 * ARM_BY_EXAMPLE**2 + REST**2 * (1 + 1 / seeds)) / 64
        spread = (part * rest * seeds) ** 0.5

        def experiment(seeds: int = seeds, spread: float = spread) -> Sequence[bool]:
            p_values = []
            for _ in range(8):
                base, *arms = scores(rng, (0.0,) * 4, seeds, 64, (0.0, spread, spread, spread))
                known = means([base[:1], *arms], trained=(False, True, True, True))
                p_values += [known.difference(arm, 0).p_value() for arm in (1, 2, 3)]
            return min(holm(p_values)) < 0.05, p_values[0] < 0.05

        yield [seeds, part, *shares(int(1000 * scale), experiment)]


def ragged(scale: float, rng: np.random.Generator) -> Iterator[Row]:
    """The mean over a task of 1,000 items and one of 20; equivalence is asked at a true -2 points, margin 2."""
    task = np.repeat([0, 1], [1000, 20])
    weights = np.where(task == 0, 1 / 1000, 1 / 20)
    for chance, arms_agree, seeds in ((c, a, s) for c in (0.95, 0.75) for a in (0.9, 0.6) for s in (1, 3)):

        def experiment(chance: float = chance, agree: float = arms_agree, seeds: int = seeds) -> Sequence[bool]:
            known, worse = (
                means(answers(rng, (chance - by, chance), seeds, 1020, agree, 0.8), weights=weights, strata=task)
                for by in (0.0, 0.02)
            )
            result = known.difference(0, 1)
            return (holds(known.of(0), chance), holds(result, 0), result.p_value() < 0.05,
                    worse.difference(0, 1).is_equivalent(0.02))  # fmt: skip

        yield [chance, arms_agree, seeds, *shares(int(1000 * scale), experiment)]


def evidence_from(known: Means, seconds: Sequence[float] = (), draw: np.random.Generator | None = None) -> Evidence:
    """Of arms whose costs fall from arm to arm; `seconds`: of an arm's training and of an example's evaluation."""
    size = len(known.mean)
    costs = pd.DataFrame({"peak_memory_bytes": np.arange(size, 0.0, -1)}).reindex(columns=[*COSTS, *WALL])
    if seconds:
        costs["train_wall_seconds"], costs["evaluate_wall_seconds"] = seconds[0], seconds[1] * known.examples
    needs = dict.fromkeys(COLUMNS, np.tile(costs["peak_memory_bytes"], (DRAWS, 1)))
    drawn = draws(known, draw or np.random.default_rng(0), DRAWS)
    arms = [str(place) for place in range(size)]
    return Evidence(arms, [True] * size, [False] * size, known, Measure("score", "simulated"), drawn, needs, costs)


def decided(
    rng: np.random.Generator, truth: Sequence[float], seeds: int, examples: int, spread: float
) -> tuple[int, float, bool]:
    """(the chosen arm, how sure, whether it falls short by no more than the tolerance)."""
    known = means(scores(rng, truth, seeds, examples, spread), value_range=(0.0, 1.0))
    choice = choose(evidence_from(known, draw=rng), Limits(quality_tolerance=TOLERANCE))
    assert choice.arm is not None
    return choice.arm, choice.sureness, max(truth) - truth[choice.arm] <= TOLERANCE


def settled(scale: float, rng: np.random.Generator) -> Iterator[Row]:
    """Adaptive sweeps of at most 5 seeds and 512 examples: true gaps as in "calibration", or all three arms equal, or
    one a hair worse than the tolerance; seeds scatter so many times as supposed. % of all: sure, and wrong though sure;
    of the sure: said and right; of all: right. Minutes (a training 5, scores on 128 examples 2) and looks, mean.
    The whole sweep: its minutes, % right, and % 95% sure."""
    for name, times, sweeps in (("drawn", 1, 1000), ("drawn", 3, 250), ("drawn", 6, 250), ("equal", 1, 100),
                                ("hair", 1, 100)):  # fmt: skip
        found = [_settled(rng, name, times) for _ in range(int(sweeps * scale))]
        sure, right, said, minutes, looks, whole_right, whole_sure = np.array(found, dtype=float).T
        of_sure = [100 * part[sure > 0].mean() if sure.any() else math.nan for part in (said, right)]
        yield [name, times, 100 * sure.mean(), 100 * (sure * (1 - right)).mean(), *of_sure, 100 * right.mean(),
               minutes.mean(), looks.mean(), _WHOLE_MINUTES, 100 * whole_right.mean(),
               100 * whole_sure.mean()]  # fmt: skip


_TRAIN_SECONDS, _EXAMPLE_SECONDS, _MOST = 300.0, 120 / 128, Design(("0", "1", "2"), 5, 512)
_WHOLE_MINUTES = 3 * 5 * (_TRAIN_SECONDS + 512 * _EXAMPLE_SECONDS) / 60


def _settled(rng: np.random.Generator, name: str, times: float) -> Sequence[float]:
    spread = times * SEED_SPREAD * UNIT * np.exp(0.6 * rng.normal())
    gaps = {"drawn": [0, *rng.normal(0, GAP, 2)], "equal": [0, 0, 0], "hair": [1.01 * TOLERANCE, 0, 0]}[name]
    truth = BEST + rng.permutation(gaps)
    values = scores(rng, list(truth), _MOST.seeds, _MOST.examples, spread)
    spent, scored = 0.0, set[tuple[str, int, int]]()

    def look(design: Design) -> tuple[Evidence, float]:
        nonlocal spent
        for run in itertools.product(design.arms, range(design.seeds)):
            spent += 0 if any(run == other[:2] for other in scored) else _TRAIN_SECONDS
            spent += 0 if (*run, design.examples) in scored else design.examples * _EXAMPLE_SECONDS
            scored.add((*run, design.examples))
        kept = [values[int(arm)][: design.seeds, : design.examples] for arm in design.arms]
        found = evidence_from(means(kept, value_range=(0.0, 1.0)), (_TRAIN_SECONDS, _EXAMPLE_SECONDS))
        costs = found.costs.assign(peak_memory_bytes=[3.0 - int(arm) for arm in design.arms])
        return replace(found, arms=list(design.arms), costs=costs), spent

    limits = Limits(quality_tolerance=TOLERANCE)
    result = settle(look, first_design(_MOST), _MOST, limits, 0.95, math.inf)
    whole = choose(evidence_from(means(values, value_range=(0.0, 1.0))), limits)
    assert result.arm is not None
    assert whole.arm is not None
    short = [max(truth) - truth[int(arm)] <= TOLERANCE for arm in (result.arm, whole.arm)]
    return result.decided, short[0], result.sureness, spent / 60, result.looks, short[1], whole.sureness >= 0.95


def calibration(scale: float, rng: np.random.Generator) -> Iterator[Row]:
    """Said/right in % (sweeps), by sureness; true gaps are normal with standard deviation .02, the seeds' spread as
    `paired.draws` supposes; half of the sweeps have 128 examples, half 500."""
    everything: list[tuple[float, bool]] = []
    for arms, seeds in ((a, s) for a in (3, 8) for s in (1, 3, 5)):
        found = []
        for number in range(int(16_000 * scale)):
            spread = SEED_SPREAD * UNIT * np.exp(0.6 * rng.normal())
            truth = BEST + np.array([0, *rng.normal(0, GAP, arms - 1)])
            found.append(decided(rng, list(truth), seeds, (128, 500)[number % 2], spread)[1:])
        everything += found
        yield [arms, seeds, *_by_sureness(found)]
    yield ["all", "all", *_by_sureness(everything)]


def _by_sureness(found: Sequence[tuple[float, bool]]) -> list[str]:
    said, right = np.array(found, dtype=float).T
    place = np.digitize(said, BINS[1:-1])
    return [
        f"{100 * said[part].mean():.1f} / {100 * right[part].mean():.1f} ({part.sum():,})" if part.any() else "-"
        for part in (place >= 0, *(place == number for number in range(len(BINS) - 1)))
    ]


def truths(scale: float, rng: np.random.Generator) -> Iterator[Row]:
    """Fixed truths, seeds' spread .006: % right, said; and how often full, lora and qlora are chosen."""
    for name, seeds, examples in ((t, s, n) for t in TRUTHS for s in (1, 3) for n in (64, 128, 500)):
        found = [decided(rng, TRUTHS[name], seeds, examples, 0.006) for _ in range(int(400 * scale))]
        arms, said, right = zip(*found, strict=True)
        chosen = 100 * np.bincount(arms, minlength=3) / len(arms)
        yield [name, seeds, examples, 100 * np.mean(right), 100 * np.mean(said), *chosen]


TABLES: dict[str, tuple[Callable[[float, np.random.Generator], Iterator[Row]], str]] = {
    "differences": (differences, "seeds|seeds' part / rest|mean covered|difference covered|false positives|"
                    "equivalent at the margin|one arm and base: covered|false positives"),
    "edges": (edges, "accuracy|arms agree|seeds|seeds agree|examples|mean covered|difference 0 covered|"
              "difference -2 covered|false positives|equivalent at -2"),
    "rare": (rare, "changed|seeds|examples|difference covered|false positives|equivalent at the margin"),
    "families": (families, "seeds|seeds' part / rest|any of 24 false|one test false"),
    "ragged": (ragged, "accuracy|arms agree|seeds|mean covered|difference covered|false positives|equivalent at -2"),
    "calibration": (calibration, "arms|seeds|all|" + "|".join(
        f"{100 * low:.0f}-{100 * high:.0f}" for low, high in itertools.pairwise(BINS))),
    "settled": (settled, "truth|seeds scatter|sure|sure and wrong|said|right of sure|right|minutes|looks|"
                "whole: minutes|right|sure"),
    "truths": (truths, "truth|seeds|examples|right|said|full|lora|qlora"),
}  # fmt: skip


def main() -> None:
    """Run the experiments and print the tables; all numbers in %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="of the repetitions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.tables or TABLES:
        make, headers = TABLES[name]
        rows = list(make(options.scale, np.random.default_rng(options.seed)))
        about = " ".join((make.__doc__ or "").split())
        print(f"\n## {name}\n\n{about}\n\n{tabulate(rows, headers.split('|'), 'github', floatfmt='.4g')}", flush=True)


if __name__ == "__main__":
    main()
