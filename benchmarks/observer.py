"""What measuring costs: the same training steps with all instruments and with none.

    python -m benchmarks.observer        the tables of docs/maintainers/performance.md, in about five minutes

Both arms run in one process on one model, alternately and in alternating order, over the same batches from the same
weights: our loss and our data through `transformers.Trainer`. One arm has the observer and every instrument of the
training stage; the other has nothing but the stopwatch that times both. Two answers, each the ratio of the sums over
paired steps with a bootstrap interval over the pairs:

    inside   from asking for the batch to the end of the optimizer's update: what is reported as the step's time
    wall     from one step's start to the next one's, the call of `train()` and its return included: what a user waits,
             with hashing, counting, reading memory, writing files and the changes of phase around a held-out loss

Held-out losses themselves are no instrument: they are replaced by a constant. Beside the ratios, which hold the
machine's noise, stands the time spent in the observer's own functions. The last table is the parent's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap
from tabulate import tabulate

from bench.compose import compose
from bench.worker import prepare as prepare_stage
from bench.worker.main import Context, Progress
from benchmarks import parent
from benchmarks.arms import INSIDE, Arms, Seconds

SETTINGS = [  # name, layers, overrides, rounds: one micro-batch a step, so that a step is as short as it gets
    ("tiny-random", "eager", ["model=tiny-random", "train.compile=off", "train.max_steps=30"], 8),
    ("smollm2-135m", "eager", ["train.compile=off", "train.max_steps=8"], 5),
    ("smollm2-135m", "compiled", ["train.compile=regional", "train.max_steps=8"], 4),
]
SHARED = ["method=lora", "suite=none", "train.batch_size=4", "train.micro_batch=4", "train.heldout_points=1"]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="*", type=int, default=list(range(len(SETTINGS))), help="which, from 0")
    parser.add_argument("--parent-seconds", type=float, default=8, help="for each of the parent's rows; 0: leave out")
    options = parser.parse_args()
    rows = []
    for name, layers, overrides, rounds in (SETTINGS[place] for place in options.settings):
        pairs = Pairs()
        compare(overrides, rounds, pairs)
        rows.append([name, layers, *pairs.row()])
    if rows:
        print(tabulate(rows, ["model", "layers", *Pairs.HEADERS], "github", disable_numparse=True))
    if options.parent_seconds:
        print("\n" + parent.table(options.parent_seconds))


@dataclass
class Pairs:
    """Seconds of the same steps in both arms."""

    HEADERS = ("pairs", "step, s", "inside", "wall", "own, inside", "own, outside", "a change of phase")

    inside: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})  # by "with instruments"
    wall: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    own: Seconds = field(default_factory=lambda: defaultdict(list))

    def add(self, instruments: bool, inside: list[float], wall: list[float], own: Seconds) -> None:
        """One run."""
        self.inside[instruments] += inside
        self.wall[instruments] += wall
        for name, calls in own.items():
            self.own[name] += calls

    def row(self) -> list[str]:
        steps = len(self.inside[True])
        step = float(np.mean(self.inside[False]))
        inside = sum(sum(self.own[name]) for name in INSIDE) / steps
        outside = sum(sum(calls) for name, calls in self.own.items() if name not in (*INSIDE, "_enter")) / steps
        change = float(np.median(self.own["_enter"]))
        times = [f"{1e3 * seconds:.2f} ms, {100 * seconds / step:.2f}%" for seconds in (inside, outside)]
        ratios = [overhead(arms[True], arms[False]) for arms in (self.inside, self.wall)]
        return [str(steps), f"{step:.3f}", *ratios, *times, f"{1e3 * change:.1f} ms"]


def overhead(with_instruments: list[float], without: list[float]) -> str:
    """By how much the sum is longer, in percent, with the 95% interval over paired steps."""

    def ratio(a: Any, b: Any, axis: int = -1) -> Any:
        return 100 * (a.sum(axis=axis) / b.sum(axis=axis) - 1)

    samples = (np.array(with_instruments), np.array(without))
    interval = bootstrap(samples, ratio, paired=True, method="percentile", rng=0).confidence_interval
    return f"{ratio(*samples):+.2f}% [{interval.low:+.2f}, {interval.high:+.2f}]"


def compare(overrides: list[str], rounds: int, pairs: Pairs) -> None:
    """Alternate both arms on one model; the first round only warms up."""
    with tempfile.TemporaryDirectory() as folder:
        kept = [f"paths.{name}={folder}/{name}" for name in ("results", "artifacts")]
        (config,) = compose([*SHARED, *overrides, *kept], multirun=False)
        context = Context(Path(folder), config, Progress(Path(folder), "train"))
        prepare_stage.run(context)
        arms = Arms(context)
        for number in range(rounds + 1):
            for instruments in (True, False) if number % 2 else (False, True):
                own: Seconds = defaultdict(list)
                inside, wall = arms.train(instruments, own)
                print(f"round {number} of {rounds}, instruments {instruments}: {sum(wall):.1f} s", file=sys.stderr)
                if number:
                    pairs.add(instruments, inside, wall, own)


if __name__ == "__main__":
    main()
