"""How often is the gate wrong? Simulated gates with a known truth, as a Markdown table.

    python -m benchmarks.gate                  1,000 gates a row: about 3 minutes of one core
    python -m benchmarks.gate --gates 100

Each gate holds a score, a suite of four tasks and 30 timed steps to the limits -0.01, -1 point and 0.9. An alarm (exit
code 1) is false where every truth keeps its limit; a pass (0) is a miss where one does not. With one seed the truth is
that of the two runs at hand; with three it is that of their recipes, about which seeds scatter.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections import Counter

import numpy as np
from tabulate import tabulate

from bench.stats.gate import DEFAULTS, verdicts
from bench.stats.paired import Estimate, means
from benchmarks.statistics import scores

TASKS, STEPS = 4, 30
SIZES = (1, 400, 220), (1, 3000, 2000), (3, 3000, 2000)  # seeds, examples, items of each task
STEP_NOISE, RUN_NOISE = 0.05, 0.01  # of the logarithm of a step's speed, and of a whole run's
SEED = 0.003  # how far a seed moves a run's score
TRUTHS = {  # name -> change of (score, suite in points, speed as a share)
    "equal": (0.0, 0.0, 1.0),
    "score better by .05": (0.05, 0.0, 1.0),
    "each at its limit": (-0.01, -1.0, 0.9),
    "score worse by .05": (-0.05, 0.0, 1.0),
    "suite worse by 5 points": (0.0, -5.0, 1.0),
    "speed at .8": (0.0, 0.0, 0.8),
}


def changes(
    rng: np.random.Generator, truth: tuple[float, float, float], seeds: int, examples: int, items: int
) -> list[Estimate]:
    """What one gate measures; higher is better."""
    scatters = seeds > 1
    task = means(scores(rng, (0.3, 0.3 + truth[0]), seeds, examples, SEED * scatters))
    easy = 0.75 + truth[1] / 100 / 0.94  # this share of the items is answered right in 97%, the rest in 3%
    rank = (rng.permutation(TASKS * items) + 0.5) / (TASKS * items)
    right = [
        (rng.random((seeds, TASKS * items)) < np.where(rank < share, 0.97, 0.03)).astype(float)
        for share in (0.75, easy)
    ]
    suite = means(right, strata=np.repeat(np.arange(TASKS), items))
    common = rng.normal(0, 0.3, STEPS)  # steps of other lengths
    common = common + rng.normal(0, RUN_NOISE * scatters, (2, seeds, 1)) + rng.normal(0, STEP_NOISE, (2, seeds, STEPS))
    speed = [common[0], common[1] + math.log(truth[2])]
    return [known.difference(1, 0) for known in (task, suite, means(speed))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gates", type=int, default=1000, help="gates a row")
    gates = parser.parse_args().gates
    bounds = [DEFAULTS["quality"], DEFAULTS["regression"] / 100, math.log(DEFAULTS["speed"])]
    rows = []
    for (name, truth), sizes in itertools.product(TRUTHS.items(), SIZES):
        rng, outcomes = np.random.default_rng(1), Counter[str]()
        for _ in range(gates):
            words = verdicts(changes(rng, truth, *sizes), bounds)
            outcomes["worse" if "worse" in words else "passed" if set(words) == {"within"} else "not settled"] += 1
        shares = [100 * outcomes[word] / gates for word in ("passed", "worse", "not settled")]
        rows.append([name, *sizes, *shares])
        print(tabulate(rows[-1:], tablefmt="plain", floatfmt=".1f"), flush=True)
    headers = ["truth", "seeds", "examples", "items a task", "passed, %", "worse, %", "not settled, %"]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".1f"))


if __name__ == "__main__":
    main()
