"""Where the answer turns: every threshold is checked by asking again on either side of it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from limit_case import MIB, PEAKS, case_of, runs

from bench.analysis.limits import Case, answer_under
from bench.analysis.thresholds import NUMBERS, QUALITY, changes, remedies, segments, with_value
from bench.stats.limits import Limits

LIMITS = [
    Limits(),
    Limits(memory_bytes=PEAKS["lora"] + 4 * MIB),
    Limits(forgetting_share=0.03, quality_relative=0.2),
    Limits(mergeable=True, time_seconds=130),
    Limits(memory_bytes=1),
]


@pytest.fixture(scope="module")
def case() -> Case:
    """Of these scores a tolerance of next to nothing leaves nothing open."""
    return case_of(runs(seeds=(0, 1)), price=2.0, margin=1e-6)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("limits", LIMITS)
def test_the_answer_within_a_segment_is_the_answer(case: Case, limits: Limits, name: str) -> None:
    parts = segments(case, limits, name)
    assert (parts[0].start, parts[-1].end) == (0, math.inf)
    assert all(left.end == right.start for left, right in pairwise(parts))
    assert all(left.answer != right.answer for left, right in pairwise(parts))
    rng = np.random.default_rng(0)
    highest = max(2 * parts[-1].start, 0.1)
    for value in rng.uniform(0, highest, 40):
        (part,) = (part for part in parts if part.start <= value < part.end)
        assert answer_under(case, with_value(limits, name, value)) == part.answer


def test_memory_turns_at_the_arms_peaks(case: Case) -> None:
    parts = segments(case, Limits(), "memory_bytes")
    clear = [(part.start, part.answer.chosen) for part in parts if not part.answer.undecided]
    high = {method: peak + 8 * MIB for method, peak in PEAKS.items()}
    assert clear == [(0, "base"), (high["qlora"], "qlora"), (high["lora"], "lora")]
    unclear = [(part.start, part.answer.undecided) for part in parts if part.answer.undecided]
    assert unclear == [(PEAKS["qlora"], ("qlora",)), (PEAKS["lora"], ("lora",))]


def test_a_wide_tolerance_gives_the_cheapest_and_in_between_nothing_is_decided(case: Case) -> None:
    parts = segments(case, Limits(), QUALITY)
    low, high = case.contest.shortfall("qlora", "lora") or (0, 0)
    assert 0 < low < high
    assert parts[0].answer.chosen == "lora"
    turning = next(part for part in parts if part.answer.chosen == "qlora")
    assert turning.start == pytest.approx(high)
    before = next(part for part in parts if part.answer.undecided == ("qlora",))
    assert before.start == pytest.approx(low)
    assert parts[-1].answer.chosen == "base"


def test_changes_are_the_nearest_other_answers(case: Case) -> None:
    limits = Limits(memory_bytes=PEAKS["qlora"] + 20 * MIB)
    now = answer_under(case, limits)
    assert now.chosen == "qlora"
    found = changes(case, limits)
    memory = [change for change in found if change.limit == "memory_bytes"]
    assert [(change.looser, change.answer.chosen, change.answer.undecided) for change in memory] == [
        (False, "base", ("qlora",)),
        (False, "base", ()),
        (True, "qlora", ("lora",)),
        (True, "lora", ()),
    ]
    for change in found:
        if change.start is not None:
            assert answer_under(case, with_value(limits, change.limit, max(change.start, 1e-9))) == change.answer != now
    (merge,) = (change for change in found if change.limit == "mergeable")
    assert (merge.looser, merge.answer.undecided) == (False, ("qlora",))


def test_dropping_a_requirement_is_a_change() -> None:
    case = case_of(runs("full lora qlora", seeds=(0, 1)), margin=0.5)
    (change,) = (c for c in changes(case, Limits(mergeable=True)) if c.limit == "mergeable")
    assert (change.looser, change.answer.chosen, change.answer.undecided) == (True, "qlora", ())


def test_what_is_unknown_and_not_asked_for_is_no_change() -> None:
    assert not [c for c in changes(case_of(runs()), Limits()) if c.limit == "cost_usd"]


def test_remedies_let_an_arm_qualify(case: Case) -> None:
    limits = Limits(memory_bytes=PEAKS["qlora"] + 20 * MIB, adapters=5)
    found = {remedy.arm: remedy for remedy in remedies(case, limits)}
    assert set(found) == {"full", "lora"}
    assert found["lora"].names == ("memory_bytes",)
    assert found["lora"].limits == Limits(memory_bytes=PEAKS["lora"] + 8 * MIB, adapters=5)
    assert found["lora"].answer.chosen == "lora"
    assert found["full"].names == ("memory_bytes", "adapters")
    assert found["full"].limits == Limits(memory_bytes=PEAKS["full"] + 8 * MIB)


def test_no_remedy_for_what_was_not_measured() -> None:
    case = case_of(runs())  # without a price
    assert "full" not in {r.arm for r in remedies(case, Limits(memory_bytes=PEAKS["lora"], cost_usd=1))}
