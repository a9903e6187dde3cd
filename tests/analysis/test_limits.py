"""Who qualifies under which limits, and what is used; the needs are known from the made-up runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from limit_case import MIB, PEAKS, SECONDS, case_of, runs, with_environment, with_hardware, with_memory, with_merged
from synthetic import make_failure, make_record

from bench.analysis.advice import advise
from bench.analysis.choice import Contest
from bench.analysis.limits import Answer, Case, answer_under, judged, standing_of
from bench.analysis.needs import Need, memory_need, suite_change
from bench.analysis.recommend import recommend_among
from bench.record import PhaseMemory
from bench.stats.limits import Limits

WIDE = 0.5  # a tolerance of quality within which every trained method is; the base is not


@pytest.fixture(scope="module")
def one_seed() -> Case:
    return case_of(runs())


@pytest.fixture(scope="module")
def two_seeds() -> Case:
    return case_of(runs(seeds=(0, 1)))


@pytest.fixture(scope="module")
def wide() -> Case:
    """The trained methods' scores are alike enough, so that the cheapest that qualifies is used."""
    return case_of(runs("full lora qlora", seeds=(0, 1)), margin=WIDE)


def qualifies(case: Case, limits: Limits) -> dict[str, bool | None]:
    return {arm: standing_of(needs, limits).qualifies for arm, needs in case.needs.items()}


@pytest.mark.parametrize(
    ("need", "verdict", "margin"),
    [
        (Need(3.0, 4.0), "meets", 1.0),
        (Need(5.0, 5.0), "meets", 0.0),
        (Need(4.0, 6.0), "undecided", None),
        (Need(5.5, 6.0), "exceeds", 0.5),
        (Need(0.0, 9.0), "undecided", None),
        (Need(5.5, math.inf), "exceeds", 0.5),
        (Need(-math.inf, math.inf), "undecided", None),
        (None, "unknown", None),
    ],
)
def test_an_interval_against_a_limit_of_5(need: Need | None, verdict: str, margin: float | None) -> None:
    judgement = judged("memory_bytes", need, 5.0)
    assert (judgement.verdict, judgement.margin) == (verdict, margin)


def test_memory_is_the_highest_of_phases_and_counts() -> None:
    lora = make_record("lora", 0)
    phases = [PhaseMemory("load", 10, None, 40, None), PhaseMemory("train", 20, None, 25, 30)]
    assert memory_need(with_memory(lora, *phases)) == Need(40, 40, 40)
    assert memory_need(with_memory(lora, PhaseMemory("load", 10, None), PhaseMemory("train", 20, None))) == Need(
        20, 20, 20
    )
    assert memory_need(with_memory(lora, PhaseMemory("load", 10, None), PhaseMemory("train", None, None))) is None
    assert memory_need(with_memory(lora)) is None
    assert memory_need(make_record("base", 0)) is None


def test_seeds_make_an_interval_and_a_limit_within_it_is_not_decided(two_seeds: Case) -> None:
    low, high = PEAKS["lora"], PEAKS["lora"] + 8 * MIB
    assert two_seeds.needs["lora"].amounts["memory_bytes"] == Need(low, high, (low + high) / 2)
    assert qualifies(two_seeds, Limits(memory_bytes=high)) == {"base": True, "full": False, "lora": True, "qlora": True}
    assert qualifies(two_seeds, Limits(memory_bytes=low + MIB))["lora"] is None
    assert qualifies(two_seeds, Limits(memory_bytes=low - 1))["lora"] is False


def test_one_seed_has_no_spread_and_a_near_limit_is_a_caveat(one_seed: Case) -> None:
    at_it = Limits(memory_bytes=PEAKS["lora"])
    assert qualifies(one_seed, at_it) == {"base": True, "full": False, "lora": True, "qlora": True}
    assert qualifies(one_seed, Limits(memory_bytes=PEAKS["lora"] - 1))["lora"] is False
    assert "lora is less than 5% below the limit of memory, by one value." in advise(one_seed, at_it).caveats
    assert advise(one_seed, at_it).caveats[0].startswith("One seed")
    roomy = advise(one_seed, Limits(memory_bytes=2 * PEAKS["full"]))
    assert not any("by one value" in caveat for caveat in roomy.caveats)


def test_time_and_cost() -> None:
    records = [with_hardware(record, price_usd_per_hour=3.0) for record in runs()]
    case = case_of(records)
    assert case.needs["full"].amounts["time_seconds"] == Need(*[pytest.approx(SECONDS["full"])] * 3)
    assert case.needs["full"].amounts["cost_usd"] == Need(*[pytest.approx(3 * SECONDS["full"] / 3600)] * 3)
    between = (SECONDS["qlora"] + SECONDS["full"]) / 2
    expected = {"base": True, "full": False, "lora": True, "qlora": True}
    assert qualifies(case, Limits(time_seconds=between)) == expected
    assert qualifies(case, Limits(cost_usd=3 * between / 3600)) == expected
    dearer = case_of(records, price=6.0)
    assert qualifies(dearer, Limits(cost_usd=3 * between / 3600)) == {m: m == "base" for m in expected}


def test_cost_without_a_price_is_unknown_and_said(one_seed: Case) -> None:
    limits = Limits(cost_usd=100)
    assert qualifies(one_seed, limits) == {"base": True, "full": None, "lora": None, "qlora": None}
    sentence = advise(one_seed, limits).sentence
    assert "If all of these do, " in sentence
    assert sentence.startswith("The data cannot decide. Whether full qualifies is open (cost unknown: give price_usd")
    assert "Use base" in sentence
    assert answer_under(one_seed, limits).chosen == "base"
    assert set(answer_under(one_seed, limits).undecided) == {"full", "lora", "qlora"}


def test_out_of_memory_needs_more_than_was_seen() -> None:
    case = case_of([*runs(), make_failure("full_bf16", 0)])  # last seen at 5000 MiB
    assert qualifies(case, Limits(memory_bytes=4999 * MIB))["full_bf16"] is False
    assert qualifies(case, Limits(memory_bytes=9000 * MIB))["full_bf16"] is None
    assert case.needs["full_bf16"].amounts["time_seconds"] is None
    told = "Not considered, because not scored: full_bf16."
    assert told in advise(case, Limits()).caveats
    assert told not in advise(case, Limits(memory_bytes=4999 * MIB)).caveats


def test_a_busy_machine_only_made_it_slower() -> None:
    busy = [with_environment(r, other_cpu_cores=0.9, cpus=2) if r.method == "lora" else r for r in runs()]
    case = case_of(busy)
    assert qualifies(case, Limits(time_seconds=SECONDS["lora"] + 1))["lora"] is True
    assert qualifies(case, Limits(time_seconds=1))["lora"] is None
    assert qualifies(case, Limits(time_seconds=1))["full"] is False


def test_forgetting_goes_by_the_interval_of_the_paired_change(two_seeds: Case) -> None:
    change = suite_change("full", two_seeds.contest.findings)
    assert change is not None
    assert change.baseline == "base"
    assert change.low < change.high < 0, "full fine-tuning forgets in the made-up runs"
    for share, expected in ((-change.low + 1e-6, True), (-change.difference, None), (-change.high - 1e-6, False)):
        assert qualifies(two_seeds, Limits(forgetting_share=share))["full"] is expected
    assert qualifies(two_seeds, Limits(forgetting_share=0))["base"] is True


def test_forgetting_that_was_not_measured_is_unknown() -> None:
    case = case_of([replace(record, regression=None) for record in runs()])
    assert qualifies(case, Limits(forgetting_share=0.02)) == {"base": True, "full": None, "lora": None, "qlora": None}
    assert "forgetting not measured" in advise(case, Limits(forgetting_share=0.02)).sentence


def test_without_a_base_forgetting_is_unknown_not_measured_against_full() -> None:
    case = case_of(runs("full lora"))
    assert case.needs["lora"].amounts["forgetting_share"] is None


def test_merging_and_adapters(one_seed: Case) -> None:
    assert qualifies(one_seed, Limits(mergeable=True)) == {"base": True, "full": True, "lora": True, "qlora": None}
    assert qualifies(one_seed, Limits(adapters=20)) == {"base": True, "full": False, "lora": True, "qlora": True}
    assert all(qualifies(one_seed, Limits(adapters=1)).values())
    assert "another model than was trained" in one_seed.needs["qlora"].mergeable.text


def test_missing_memory_is_unknown_and_does_not_qualify() -> None:
    unmeasured = [with_memory(r, PhaseMemory("train", None, None)) if r.method == "lora" else r for r in runs()]
    case = case_of(unmeasured)
    assert qualifies(case, Limits()) == {"base": True, "full": True, "lora": True, "qlora": True}
    assert qualifies(case, Limits(memory_bytes=1e12))["lora"] is None
    sentence = advise(case, Limits(memory_bytes=1e12)).sentence
    assert "Whether lora qualifies is open (memory not measured); if it does, " in sentence


def test_quality_is_held_against_the_best_that_qualifies(wide: Case) -> None:
    assert answer_under(wide, Limits()) == Answer("qlora", ())  # the cheapest
    assert answer_under(wide, Limits(mergeable=True, adapters=2)).chosen == "lora"
    assert answer_under(wide, Limits(mergeable=True, adapters=2)).undecided == ("qlora",)
    assert answer_under(wide, Limits(quality_tolerance=0.0)).chosen == "lora"  # the highest
    narrow = Limits(memory_bytes=PEAKS["qlora"] + 8 * MIB, quality_tolerance=0.0)
    assert answer_under(wide, narrow) == Answer("qlora", ())  # the only one, so the best
    assert advise(wide, narrow).sentence.startswith("Use qlora. It alone qualifies, with a rougeL of 0.")


def test_no_limits_give_the_report_s_recommendation(two_seeds: Case) -> None:
    plain = recommend_among(two_seeds.contest, margins=two_seeds.margins)
    assert advise(two_seeds, Limits()).sentence.startswith(plain.sentence)
    assert answer_under(two_seeds, Limits()) == Answer(plain.chosen, tuple(plain.undecided))


def test_the_price_of_the_limits_is_told(two_seeds: Case) -> None:
    free = answer_under(two_seeds, Limits())
    assert free.chosen == "lora"
    limits = Limits(memory_bytes=PEAKS["qlora"] + 8 * MIB)
    sentence = advise(two_seeds, limits).sentence
    result = two_seeds.contest.difference("lora", "qlora")
    assert not isinstance(result, str)
    low, high = result.interval()
    expected = (
        f"Without the limits it would be lora: {result.mean:+.3f} [{low:+.3f}, {high:+.3f}] in rougeL for 2.50 GiB"
    )
    assert expected in sentence


def test_by_how_much_is_told_with_its_interval(two_seeds: Case) -> None:
    result = two_seeds.contest.difference("lora", "full")
    assert not isinstance(result, str)
    low, high = result.interval()
    text = f"lora is {result.mean:.3f} above full, the next best [{low:+.3f}, {high:+.3f}]"
    assert text in advise(two_seeds, Limits()).sentence


def test_only_the_untrained_model_is_left(two_seeds: Case) -> None:
    sentence = advise(two_seeds, Limits(memory_bytes=1)).sentence
    assert sentence.startswith("No trained method is shown to qualify. Use base. It alone qualifies")


def test_none_qualifies(wide: Case) -> None:
    advice = advise(wide, Limits(memory_bytes=1))
    assert (advice.sentence, advice.answer) == ("No method qualifies.", Answer(None, ()))
    maybe = advise(wide, Limits(memory_bytes=PEAKS["qlora"] + 1))
    assert maybe.answer == Answer(None, ("qlora",))
    assert maybe.sentence.startswith(
        "The data cannot decide: no method is shown to qualify, and qlora may (qlora: memory"
    )


def test_an_arm_that_may_qualify_and_changes_nothing_leaves_the_answer(two_seeds: Case) -> None:
    limits = Limits(memory_bytes=PEAKS["full"] + 1, quality_tolerance=0.0)
    assert qualifies(two_seeds, limits)["full"] is None
    assert answer_under(two_seeds, limits) == Answer("lora", ())
    assert advise(two_seeds, limits).sentence.startswith("Use lora")


def test_too_few_examples_decide_nothing(two_seeds: Case) -> None:
    findings = two_seeds.contest.findings
    few = replace(findings, estimates=[replace(e, examples=8) for e in findings.estimates])
    case = replace(two_seeds, contest=Contest(few, pd.DataFrame(), rng=np.random.default_rng(0)))
    advice = advise(case, Limits(memory_bytes=1e12))
    assert advice.sentence.startswith("The data cannot decide: 8 test example(s) are too few")
    assert advice.answer.chosen is None


def test_nothing_scored() -> None:
    case = case_of([replace(record, evaluate=None) for record in runs("full lora")])
    assert advise(case, Limits()).sentence == "No arm was scored; there is nothing to recommend."


def test_a_merged_model_that_was_measured_is_told_beside_the_one_that_was_trained() -> None:
    served = [with_merged(r, merged=0.25, evaluated=0.26) if r.method == "qlora" else r for r in runs()]
    case = case_of(served)
    assert qualifies(case, Limits(mergeable=True))["qlora"] is True
    text = case.needs["qlora"].mergeable.text
    assert "another model than was trained; merged it scored 0.250 in rougeL, as evaluated 0.260" in text
    assert "40 of 48 answers were equal" in text
    assert "not measured" in case.needs["lora"].mergeable.text
