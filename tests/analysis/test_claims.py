"""Verdicts on claims: every word, from ranges, orders, equivalence and what is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from claim_evidence import ROUGE, evidence, run, verdict

from bench.record import Environment

FULL, LORA, QLORA = run("full"), run("lora"), run("qlora")
SCORES = np.random.default_rng(1).uniform(0.2, 0.4, 400)
NOISE = np.random.default_rng(2).normal(0, 0.02, 400)


def scored(difference: float, spread: float = 1.0, examples: int = 400) -> Any:
    """LoRA's scores are full's plus `difference`, give or take 0.02 * spread an example."""
    lora = SCORES + difference + spread * (NOISE - NOISE[:examples].mean())
    return evidence([FULL, LORA], values={ROUGE: {FULL.run_id: SCORES[:examples], LORA.run_id: lora[:examples]}})


def gap(**expected: Any) -> dict[str, Any]:
    return {"quantity": "score", "of": "lora", "against": "full", "form": "difference"} | expected


@pytest.mark.parametrize(("difference", "word"), [(0.02, "holds"), (-0.02, "does not hold"), (0.0005, "inconclusive")])
def test_above_and_below_go_by_the_interval(difference: float, word: str) -> None:
    assert verdict(scored(difference), gap(above=0)).word == word
    mirrored = {"holds": "does not hold", "does not hold": "holds"}.get(word, word)
    assert verdict(scored(difference), gap(below=0)).word == mirrored


@pytest.mark.parametrize(
    ("expect", "word"),
    [
        ([0.01, 0.03], "holds"),
        ([0.01, None], "holds"),
        ([0.05, 0.06], "does not hold"),
        ([None, 0.0], "does not hold"),
        ([0.02, 0.03], "inconclusive"),
    ],
)
def test_a_range_goes_by_the_interval(expect: list[float | None], word: str) -> None:
    found = verdict(scored(0.02), gap(expect=expect))
    assert found.word == word
    assert found.reason == ("the interval reaches across the limit" if word == "inconclusive" else "")


@pytest.mark.parametrize(
    ("difference", "spread", "word"),
    [(0.001, 1, "holds"), (0.05, 1, "does not hold"), (0.001, 20, "inconclusive"), (0.02, 1, "inconclusive")],
)
def test_equivalence_takes_two_one_sided_tests(difference: float, spread: float, word: str) -> None:
    assert verdict(scored(difference, spread), gap(expect=[-0.02, 0.02], by="equivalence")).word == word


def test_equivalence_needs_the_inner_interval_only() -> None:
    """The 90% interval lies inside the limits and the 95% interval does not: equivalent, as TOST has it."""
    found = verdict(scored(0.0), gap(expect=[-0.01, 0.01], by="equivalence")).parts[0].measured
    assert found is not None
    assert found.interval is not None
    assert found.inner is not None
    limit = (found.interval[1] + found.inner[1]) / 2
    assert verdict(scored(0.0), gap(expect=[-limit, limit], by="equivalence")).word == "holds"
    assert verdict(scored(0.0), gap(expect=[-limit, limit])).word == "inconclusive"


@pytest.mark.parametrize(
    ("difference", "spread", "word"),
    [(0.0, 1, "holds"), (0.005, 1, "does not hold"), (0.0, 20, "inconclusive")],
)
def test_no_difference_is_shown_and_not_merely_not_disproved(difference: float, spread: float, word: str) -> None:
    assert verdict(scored(difference, spread), gap(expect=[-0.01, 0.01], by="no_difference")).word == word


def test_too_few_examples_decide_nothing() -> None:
    found = verdict(scored(0.2, examples=9), gap(above=0))
    assert (found.word, found.reason) == ("inconclusive", "fewer than 10 to rest on: 9 examples, 1 seed")


def test_a_count_is_on_one_side_of_its_limit() -> None:
    def share(**expected: Any) -> str:
        return verdict(evidence([LORA, QLORA]), {"quantity": "trainable_parameters"} | expected).word

    assert share(of="lora", above=4_884_479) == "holds"
    assert share(of="lora", above=4_884_480) == "does not hold"
    assert share(of="lora", expect=[4_884_480, None]) == "holds"
    assert share(of="lora", against="qlora", form="ratio", above=1) == "does not hold"
    assert share(of="lora", against="qlora", form="relative_difference", expect=[0, 0], by="equivalence") == "holds"


def test_an_order_holds_when_each_pair_does() -> None:
    runs = evidence([run(method, seed) for method in ("full", "lora", "qlora") for seed in (0, 1, 2)])
    holds = verdict(runs, {"quantity": "peak_memory_gb", "order": "full > lora > qlora"})
    assert holds.word == "holds"
    assert [part.arms for part in holds.parts] == [("full", "lora"), ("lora", "qlora")]
    assert verdict(runs, {"quantity": "peak_memory_gb", "order": "lora > full, qlora"}).word == "does not hold"


def test_an_order_without_one_of_its_arms_is_not_tested_unless_a_pair_is_wrong() -> None:
    runs = evidence([FULL, LORA])
    found = verdict(runs, {"quantity": "tokens_per_second", "order": "lora > full, qlora"})
    assert (found.word, found.reason) == ("not tested", "the sweep has no finished run of qlora")
    assert verdict(runs, {"quantity": "tokens_per_second", "order": "full > lora, qlora"}).word == "does not hold"


def test_all_checks_of_a_claim_must_hold() -> None:
    def both(second: dict[str, Any]) -> str:
        first = {"quantity": "trainable_share", "of": "lora", "expect": [0, 1]}
        return verdict(scored(0.0005), first, second).word

    assert both({"quantity": "trainable_share", "of": "full", "expect": [1, 1]}) == "holds"
    assert both({"quantity": "trainable_share", "of": "full", "below": 1}) == "does not hold"
    assert both({"quantity": "merged_size_ratio", "of": "lora", "above": 1}) == "not tested"
    assert both(gap(above=0)) == "inconclusive"


def test_settings_that_disagree_leave_a_claim_open() -> None:
    runs = evidence([run("lora", rank=8, train={"parameters_trainable": 1000}), LORA])
    found = verdict(runs, {"quantity": "trainable_parameters", "of": "lora", "below": 2000})
    assert (found.word, found.reason) == ("inconclusive", "it depends on the settings")
    assert [(part.arms, part.word) for part in found.parts] == [
        (("lora (rank=16)",), "does not hold"),
        (("lora (rank=8)",), "holds"),
    ]


def test_words_are_compared_as_words() -> None:
    runs = evidence([LORA, run("qlora"), run("qlora", 1, train={"trainable_dtype": "bfloat16"})])

    def dtype(of: str, *allowed: str) -> str:
        return verdict(runs, {"quantity": "trainable_dtype", "of": of, "one_of": list(allowed)}).word

    assert dtype("lora", "float32") == "holds"
    assert dtype("lora", "int8") == "does not hold"
    assert dtype("qlora", "float32") == "inconclusive"
    assert dtype("qlora", "float32", "bfloat16") == "holds"


class TestNotTested:
    """The reason is told exactly."""

    SHARE = {"quantity": "trainable_share", "of": "lora", "expect": [0, 1]}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("needs", "reason"),
        [
            (
                {"parameters": [6.5e9, 7.5e9]},
                "a model of 6.5 to 7.5 billion parameters; synthetic-135m has 0.135 billion",
            ),
            ({"parameters": [1e9, None]}, "a model of 1 billion or more parameters; synthetic-135m has 0.135 billion"),
            ({"device": "cuda"}, "cuda; these runs were made on cpu"),
        ],
    )
    def test_another_model_or_machine(self, needs: dict[str, Any], reason: str) -> None:
        found = verdict(evidence([LORA]), self.SHARE, needs=needs)
        assert (found.word, found.reason, found.parts) == ("not tested", f"it is about {reason}", [])

    def test_the_right_model_and_machine(self) -> None:
        needs = {"parameters": [1.3e8, 1.4e8], "device": "cpu"}
        assert verdict(evidence([LORA]), self.SHARE, needs=needs).word == "holds"
        assert verdict(evidence([FULL]), self.SHARE | {"of": "full"}, needs=needs).word == "holds"

    def test_no_runs_at_all(self) -> None:
        assert verdict(evidence([]), self.SHARE).reason == "no run finished"

    def test_settings_that_are_not_in_the_sweep(self) -> None:
        found = verdict(evidence([LORA]), self.SHARE | {"of": {"method": "lora", "rank": [128, None]}})
        assert (found.word, found.reason) == (
            "not tested",
            "the sweep has no finished run of lora with rank 128 or more",
        )

    def test_runs_that_may_not_be_compared(self) -> None:
        other = replace(LORA, comparison_key="0" * 12)
        found = verdict(evidence([FULL, other]), gap(above=0))
        assert found.word == "not tested"
        assert found.reason.startswith("lora and full may not be compared: ")

    def test_a_busy_machine(self) -> None:
        busy = Environment(
            "cpu: synthetic", 1, 2, "bfloat16", "sdpa", "regional", "2.13.0", cpus=2, other_cpu_cores=0.8
        )
        runs = evidence([FULL, run("lora", train={"environment": busy})])
        found = verdict(runs, {"quantity": "tokens_per_second", "order": "lora > full"})
        assert found.word == "not tested"
        assert "busy machine: other processes used 0.80 of its 2 processors" in found.reason
