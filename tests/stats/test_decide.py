"""The decision: which arm, how sure, under which limits, and every corner case that a sweep can have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import pytest
from made_up import group_of, levels, runs, sweep_of
from synthetic import METHODS, MIB, make_failure

from bench.compose import with_settings
from bench.mistakes import ConfigurationError
from bench.record import Record
from bench.stats.decide import decide, sureness_against
from bench.stats.frames import Group, Sweep
from bench.stats.limits import Limits, limits_from_words

CLEAR = {"base": 0.2, "full": 0.5, "lora": 0.4, "qlora": 0.3}
EQUAL = {"base": 0.2, "full": 0.5, "lora": 0.5, "qlora": 0.5}


def made(means: Mapping[str, float], methods: str = "base full lora qlora", seeds: Sequence[int] = (0, 1, 2)) -> Group:
    return group_of(runs(methods, seeds), scores=levels(means), examples=200)


@pytest.fixture(scope="module")
def clear() -> Group:
    return made(CLEAR)


@pytest.fixture(scope="module")
def equal() -> Group:
    return made(EQUAL)


def by_arm(frame: pd.DataFrame, column: str) -> dict[str, object]:
    return dict(zip(frame["arm"], frame[column], strict=True))


def test_a_clear_best_is_chosen_and_sure(clear: Group) -> None:
    decision = decide(clear)
    assert (decision.arm, decision.sentence) == ("full", "Use full.")
    assert decision.sureness == pytest.approx(1)
    assert decision.tolerance == pytest.approx(0.05 * decision.arms.set_index("arm").loc["full", "score"])
    shortfall = by_arm(decision.arms, "expected_shortfall")
    assert shortfall["lora"] == pytest.approx(0.1, abs=0.02)
    assert by_arm(decision.arms, "probability_best")["full"] == pytest.approx(1)
    assert decision.to_be_sure is None  # it is sure already
    assert decision.cost_if_wrong is None


def test_of_arms_that_are_alike_the_cheapest_is_chosen(equal: Group) -> None:
    decision = decide(equal)
    assert decision.arm in ("lora", "qlora")  # a tie: their memory differs by 7%, their time by 11%
    assert decision.sureness is not None
    assert decision.sureness > 0.9
    assert by_arm(decision.arms, "why_not")["full"] == "costs more"
    assert decision.arms["chosen"].sum() == 1


def test_memory_within_a_tenth_is_a_tie_and_time_decides() -> None:
    records = []
    for r in runs("base lora qlora"):
        seconds = 100.0 if r.method == "qlora" else 60.0
        records.append(replace(r, train=replace(r.train, train_seconds=seconds)) if r.train else r)
    assert decide(group_of(records, scores=levels(EQUAL), examples=200)).arm == "lora"  # qlora needs 7% less memory


def test_a_worse_arm_within_the_tolerance_is_named_as_such() -> None:
    decision = decide(made({"base": 0.2, "full": 0.50, "lora": 0.49, "qlora": 0.3}))
    assert decision.arm == "lora"
    assert "short of the best" in decision.reason
    assert "within the tolerance of 0.025" in decision.reason


def test_an_arm_that_may_meet_a_limit_makes_the_answer_less_sure(clear: Group) -> None:
    needed = {row.arm: row.peak_memory_bytes / 2**30 for row in clear.arms.itertuples()}
    decision = decide(clear, Limits(memory_gib=needed["qlora"] * 0.995))  # a little less than qlora seemed to need
    assert decision.arm == "base"
    assert decision.sureness is not None
    assert decision.sureness < 0.95


def test_arms_of_unknown_cost_make_the_answer_unsure(clear: Group) -> None:
    decision = decide(clear, Limits(cost_usd=1.0))  # no price is known
    assert decision.arm == "base"
    assert decision.sureness == pytest.approx(0, abs=0.01)
    assert by_arm(decision.arms, "why_not")["full"] == "cost_usd: not measured"


def test_the_tolerance_can_be_given(clear: Group) -> None:
    assert decide(clear, tolerance=0.15).arm == "lora"
    assert decide(clear, limits_from_words(["quality_tolerance=0.15"])).arm == "lora"
    assert decide(clear, limits_from_words(["quality_tolerance=30%"])).arm == "lora"
    assert decide(clear, tolerance=0.0).arm == "full"
    with pytest.raises(ConfigurationError, match=r"quality_tolerance=3: \w+ goes from 0 to 1.* such as .*=3%"):
        decide(clear, tolerance=3)  # of a score without bounds, such as a perplexity, it may be so large


def test_the_task_may_state_a_floor_of_the_tolerance() -> None:
    """5% of a best score of .1 is .005; the task says that .02 does not matter. A tolerance that is given counts."""
    records = [replace(r, config=with_settings(r.config, {"task.tolerance_floor": 0.02})) for r in runs("full lora")]
    means = {"full": 0.26, "lora": 0.25}
    floored = group_of(records, scores=levels(means), examples=400)
    plain = group_of(runs("full lora"), scores=levels(means), examples=400)
    assert decide(floored).tolerance == 0.02
    assert decide(plain).tolerance == pytest.approx(0.05 * 0.26, rel=0.05)
    assert decide(floored, limits_from_words(["quality_tolerance=1%"])).tolerance < 0.003
    assert decide(floored, tolerance=0.001).tolerance == 0.001


def test_the_base_is_a_candidate_that_costs_nothing() -> None:
    decision = decide(made(dict.fromkeys(CLEAR, 0.4)))
    assert (decision.arm, decision.sentence) == ("base", "Do not tune: use base.")


def test_the_same_seed_gives_the_same_decision(equal: Group) -> None:
    first, again = decide(equal, seed=3), decide(group_of(runs(), scores=levels(EQUAL), examples=200), seed=3)
    assert (first.arm, first.sureness) == (again.arm, again.sureness)


# --- Limits ---


@pytest.mark.parametrize(
    ("words", "arm"),
    [
        (["memory_gib=3"], "lora"),
        (["memory_gib=2.4"], "qlora"),
        (["memory_gib=1"], "base"),
        (["adapters=4"], "lora"),
        (["mergeable=yes", "memory_gib=2.4"], "base"),  # how qlora scores when merged was not measured
        (["time_hours=0.0362"], "lora"),
        (["cost_usd=0.36", "price_usd_per_hour=10"], "lora"),
        (["forgetting_tolerance=3"], "lora"),
    ],
)
def test_limits(clear: Group, words: list[str], arm: str) -> None:
    decision = decide(clear, limits_from_words(words))
    assert decision.arm == arm
    out = [row for row in decision.arms.to_dict("records") if not row["qualifies"] >= 0.5]
    assert out
    assert all(row["why_not"] for row in out)


def test_a_limit_near_what_an_arm_needs_lowers_the_sureness(clear: Group) -> None:
    need = METHODS["full"]["peak"] / 1024
    wide, near = (decide(clear, Limits(memory_gib=need * f)) for f in (1.5, 1.015))
    assert (wide.arm, near.arm) == ("full", "full")
    assert wide.sureness is not None
    assert near.sureness is not None
    assert near.sureness < wide.sureness - 0.02


def test_no_arm_meets_the_limits(clear: Group) -> None:
    records = [record for record in clear.records if record.method != "base"]
    group = group_of(records, scores=levels(CLEAR), examples=200)
    decision = decide(group, Limits(memory_gib=1))
    assert (decision.arm, decision.sureness, decision.sentence) == (None, None, "No method meets the limits.")
    assert (
        decision.reason
        == f"Nearest is qlora: it needs {(METHODS['qlora']['peak'] + 8) / 1024:.2f} GiB where 1 are allowed."
    )
    assert not decision.arms["chosen"].any()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["memory_gb=24"], "memory_gb: no such setting (did you mean 'memory_gib'?)"),
        (["memory_gib=-1"], "memory_gib: input should be greater than 0; given '-1'"),
        (["memory_gib=much"], "given 'much'"),
        (["memory_gib=2", "memory_gib=3"], "set twice"),
        (["quality_tolerance=-2"], "from 0 on"),
        (["quality_tolerance=200%"], "given '200%'"),
        (["mergeable=perhaps"], "mergeable: expected yes or no; given 'perhaps'"),
        (["adapters=0"], "greater than 0"),
    ],
)
def test_wrong_words_name_the_mistake(words: list[str], text: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        limits_from_words([*words, "nothing=1"])
    assert len(error.value.problems) == 2
    assert any(text in problem for problem in error.value.problems)


def test_words_are_read_in_their_units() -> None:
    words = [
        "memory_gib=24",
        "time_hours=0.5",
        "forgetting_tolerance=2",
        "quality_tolerance=3%",
        "mergeable=yes",
        "adapters=3",
    ]
    assert limits_from_words(words) == Limits(24.0, 0.5, None, 2.0, "3%", True, 3)


# --- Corner cases ---


def test_one_arm_has_no_rival() -> None:
    decision = decide(made(CLEAR, "lora"))
    assert (decision.arm, decision.sureness) == ("lora", None)
    assert "no rival" in decision.reason


def test_nothing_scored() -> None:
    decision = decide(group_of([replace(record, evaluate=None) for record in runs()]))
    assert (decision.arm, decision.sentence, decision.reason) == (None, "Nothing can be decided.", "No arm was scored.")


def test_an_arm_without_a_score_is_not_judged() -> None:
    records = [replace(r, evaluate=None) if r.method == "full" else r for r in runs()]
    decision = decide(group_of(records, scores=levels(CLEAR), examples=200))
    assert decision.arm == "lora"
    assert by_arm(decision.arms, "why_not")["full"] == "not judged: it has no score"
    assert "full: not judged: it has no score." in decision.caveats


def test_all_scores_0_and_few_examples_decide_nothing() -> None:
    nothing = decide(group_of(runs(), scores=lambda record, place: 0.0, examples=50))
    assert nothing.reason == "Every method scored 0 in rougeL."
    few = decide(group_of(runs(), scores=levels(CLEAR), examples=8))
    assert (few.arm, "too few" in few.reason) == (None, True)


def test_one_seed_is_said_and_less_sure() -> None:
    means = {"base": 0.2, "full": 0.5, "lora": 0.45, "qlora": 0.3}
    one, three = (decide(made(means, seeds=seeds)) for seeds in ((0,), (0, 1, 2)))
    assert any(text.startswith("One seed of full, lora, qlora") for text in one.caveats)
    assert not any("One seed" in text for text in three.caveats)
    assert one.arm == three.arm == "full"


def test_half_failed_arms_are_no_candidates_and_failures_are_said() -> None:
    failed = []
    for failure in (make_failure("full", 7), make_failure("full", 8)):
        config = with_settings(failure.config, {"method.name": "full"})
        failed.append(replace(failure, run_id=f"full-failed-{failure.seed}", method="full", config=config))
    decision = decide(group_of([*runs(), failed[0]], scores=levels(CLEAR), examples=200))
    assert decision.arm == "full"
    assert "full: 1 of its 4 runs failed." in decision.caveats
    many = [r for r in runs() if r.method != "full" or r.seed < 2]
    decision = decide(group_of([*many, *failed], scores=levels(CLEAR), examples=200))
    assert decision.arm == "lora"
    assert by_arm(decision.arms, "why_not")["full"] == "2 of its 4 runs failed"


def test_common_seeds_decide() -> None:
    records = [r for r in runs(seeds=(0, 1, 2)) if not (r.method == "lora" and r.seed == 2)]
    group = group_of(records, scores=levels(CLEAR), examples=200)
    means = by_arm(decide(group).arms, "score")
    expected = group.runs[(group.runs["arm"] == "full") & (group.runs["seed"] < 2)]["run_id"]
    rows = group.samples[group.samples["run_id"].isin(expected)]
    assert means["full"] == pytest.approx(rows["score_rougeL"].mean())


def test_controls_are_never_candidates() -> None:
    records = [control(r) if r.method == "full" else r for r in runs()]
    decision = decide(group_of(records, scores=levels(CLEAR), examples=200))
    assert decision.arm == "lora"
    assert "full" not in set(decision.arms["arm"])


def control(record: Record) -> Record:
    return replace(record, config=with_settings(record.config, {"method.control": True}))


def test_the_largest_comparable_set_decides() -> None:
    records = [
        replace(r, config=with_settings(r.config, {"train.epochs": 3})) if r.method == "full" else r for r in runs()
    ]
    decision = decide(group_of(records, scores=levels(CLEAR), examples=200))
    assert decision.arm == "lora"
    assert by_arm(decision.arms, "why_not")["full"] == "may not be compared with the others (see Fairness)"
    allowed = group_of(records, frozenset({"budget"}), scores=levels(CLEAR), examples=200)
    assert decide(allowed).arm == "full"


def test_a_sweep_of_several_groups_names_them() -> None:
    other = [replace(record, run_id=f"{record.run_id}-b", model="another") for record in runs("full lora")]
    with pytest.raises(ValueError, match="another / docstrings / quick; synthetic-135m / docstrings / quick"):
        decide(sweep_of([*runs(), *other]))
    assert decide(sweep_of(runs(), scores=levels(CLEAR), examples=200)).arm == "full"
    with pytest.raises(ValueError, match="has 0: none"):
        decide(Sweep([]))


def test_what_would_make_it_sure_is_more_than_there_is() -> None:
    scores = levels({"full": 0.5, "lora": 0.47}, noise=0.1)
    decision = decide(group_of(runs("full lora", (0, 1)), scores=scores), tolerance=0.02)
    assert decision.sureness is not None
    assert decision.sureness < 0.95
    assert decision.to_be_sure is not None
    more = decision.to_be_sure
    assert more["examples"] is not None
    assert more["seeds"] is not None
    assert more["examples"] > 48 or more["seeds"] > 2
    assert more["minutes"] is not None
    assert more["minutes"] > 0
    assert decision.cost_if_wrong is not None
    assert decision.cost_if_wrong > decision.tolerance
    untimed = [replace(record, stage_wall_seconds={}) for record in runs("full lora", (0, 1))]
    unknown = decide(group_of(untimed, scores=scores), tolerance=0.02)
    assert unknown.to_be_sure is not None
    assert unknown.to_be_sure["minutes"] is None
    assert "minutes" not in unknown.surer


def test_what_no_number_of_examples_makes_sure_is_told_apart_from_what_they_settle() -> None:
    """lora is worse by about the tolerance: surely worse, and never surely within the tolerance."""
    group = group_of(runs("full lora"), scores=levels({"full": 0.5, "lora": 0.4877}, noise=0.02), examples=200)
    scores = decide(group).arms.set_index("arm")["score"]
    decision = decide(group, tolerance=1.002 * float(scores["full"] - scores["lora"]))
    assert (decision.arm, decision.to_be_sure) == ("lora", None)
    assert decision.surer.startswith("Not even 6,400 test examples and 20 seeds would make it 95% sure that lora falls")
    assert "whether two methods differ at all is another question" in decision.surer.lower()


def test_forgetting_is_a_caveat() -> None:
    decision = decide(made({"base": 0.2, "full": 0.9, "lora": 0.4, "qlora": 0.3}))
    assert any(text.startswith("full forgot: the regression suite's mean lost") for text in decision.caveats)


def test_sureness_against_a_limit_and_the_tolerance(clear: Group) -> None:
    frame = sureness_against(clear, "memory_gib")
    assert frame["arm"].drop_duplicates().tolist() == ["base", "qlora", "lora", "full"]
    assert frame["sureness"].between(0, 1).all()
    row = frame[frame["arm"] == "lora"].iloc[0]
    assert row["sureness"] == decide(clear, Limits(memory_gib=row["value"])).sureness
    tolerance = sureness_against(clear, "quality_tolerance")
    assert tolerance["arm"].iloc[0] == "full"
    assert len(tolerance) == 49
    assert sureness_against(clear, "cost_usd").empty  # no price is known
    alone = sureness_against(made(CLEAR, "lora"), "memory_gib").iloc[0]
    assert (pd.isna(alone["arm"]), math.isnan(alone["sureness"])) == (True, True)


def test_bytes_are_those_of_the_arms_frame(clear: Group) -> None:
    assert by_arm(decide(clear).arms, "peak_memory_bytes")["full"] == (METHODS["full"]["peak"] + 8) * MIB
