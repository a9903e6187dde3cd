"""The rule of adaptive sweeps: it starts small, drops who cannot win, stops when sure, keeps to its budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bench.stats.decide import choose
from bench.stats.evidence import Evidence
from bench.stats.limits import Limits
from bench.stats.paired import means
from bench.stats.settling import Design, Look, Settled, chances, first_design, most_looks, settle
from benchmarks.statistics import evidence_from, scores

MOST = Design(("0", "1", "2"), 5, 512)
LIMITS = Limits(quality_tolerance=0.0135)


def looker(truth: Sequence[float], designs: list[Design], seconds: tuple[float, float] = (300.0, 1.0)) -> Look:
    """Looks at made-up scores with these true means, whose seeds scatter by .003; costs fall from arm to arm."""
    values = scores(np.random.default_rng(0), truth, MOST.seeds, MOST.examples, 0.003)

    def look(design: Design) -> tuple[Evidence, float]:
        designs.append(design)
        kept = [values[int(arm)][: design.seeds, : design.examples] for arm in design.arms]
        found = evidence_from(means(kept), seconds)
        costs = found.costs.assign(peak_memory_bytes=[3.0 - int(arm) for arm in design.arms])
        return replace(found, arms=list(design.arms), costs=costs), 600.0 * len(designs)

    return look


def settled(truth: Sequence[float], designs: list[Design], budget_seconds: float = math.inf) -> Settled:
    return settle(looker(truth, designs), first_design(MOST), MOST, LIMITS, 0.95, budget_seconds)


@pytest.mark.parametrize(("examples", "first"), [(512, 128), (500, 125), (239, 239), (240, 60), (8, 8)])
def test_it_starts_with_one_seed_and_few_examples(examples: int, first: int) -> None:
    most = replace(MOST, examples=examples)
    assert first_design(most) == Design(MOST.arms, 1, first)
    assert most_looks(first_design(most), most) == 5 + (first < examples)


def test_a_clear_answer_takes_two_seeds_and_no_further_example() -> None:
    designs: list[Design] = []
    found = settled((0.27, 0.5, 0.3), designs)
    assert (found.decided, found.arm, found.looks) == (True, "1", 2)
    assert designs == [Design(MOST.arms, 1, 128), Design(MOST.arms, 2, 128)]
    assert found.design.arms == ("1",)
    assert set(found.dropped) == {"0", "2"}
    assert "the chance that it is the right answer is 0.00%" in found.dropped["0"]


def test_who_cannot_win_gets_no_further_runs_and_a_close_call_ends_with_the_whole_sweep() -> None:
    designs: list[Design] = []
    found = settled((0.05, 0.278, 0.27), designs)
    assert (found.decided, found.looks) == (False, most_looks(designs[0], MOST))
    assert found.design == designs[-1] == Design(("1", "2"), 5, 512)
    assert found.why == "No further run of the sweep would tell the arms apart."
    grown = [(b.seeds - a.seeds, b.examples - a.examples) for a, b in itertools.pairwise(designs)]
    assert sorted(grown) == [(0, 384), (1, 0), (1, 0), (1, 0), (1, 0)]  # one step at a time


def test_no_step_is_begun_that_the_budget_does_not_hold() -> None:
    designs: list[Design] = []
    found = settled((0.27, 0.2835, 0.27), designs, budget_seconds=1200.0)
    assert (found.decided, found.looks, found.seconds) == (False, 1, 600.0)
    assert found.why.startswith("The budget is spent: the next step would take about")


def test_a_dearer_arm_must_be_better_by_more_than_the_tolerance_and_a_cheaper_one_within_it() -> None:
    values = scores(np.random.default_rng(1), (0.27, 0.27, 0.27), 3, 512, 0.0)
    evidence = evidence_from(means([values[0], values[1] + 0.001, values[2]]))
    choice = choose(evidence, LIMITS)
    assert choice.arm == 2  # the cheapest
    dear, better, chosen = chances(evidence, choice)
    assert dear < better < 0.2  # as good, and they cost more
    assert chosen > 0.8
    short = replace(choice, expected=np.full(3, 1.0), cheap=[2])  # whether they are dearer does not matter any more
    assert chances(evidence, short)[0] > 0.8


def test_without_scores_examples_come_before_seeds() -> None:
    designs: list[Design] = []

    def look(design: Design) -> tuple[str, float]:
        designs.append(design)
        return "No arm was scored.", 0.0

    found = settle(look, Design(("a", "b"), 1, 8), Design(("a", "b"), 2, 16), Limits(), 0.95, 60.0)
    assert [(design.seeds, design.examples) for design in designs] == [(1, 8), (1, 16), (2, 16)]
    assert (found.decided, found.arm) == (False, None)
