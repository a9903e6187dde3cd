"""Claims are read with all their mistakes, and judged by quantities that are known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from served import served
from synthetic import ENVIRONMENT, MIB, make_items, make_record, make_samples, make_steps, make_tuning, with_rate

from bench.compose import Trial, with_settings
from bench.mistakes import ConfigurationError
from bench.planner.time import PlanConfig
from bench.record import Record, Step
from bench.stats.claims import CLAIMS_FOLDER, Claim, Part, Verdict, judge, parse, read_claims
from bench.stats.frames import Group, Sweep, groups
from bench.stats.quantities import Arm

EXAMPLES = 400
FULL, LORA, QLORA = (make_record(method, 0) for method in ("full", "lora", "qlora"))
HARD = np.random.default_rng(1).uniform(0.2, 0.4, EXAMPLES)
NOISE = np.random.default_rng(2).normal(0, 0.02, EXAMPLES)


def changed(record: Record, *, train: Mapping[str, Any] | None = None, **settings: Any) -> Record:
    """A run with other settings (`adapter_rank=8`: method.adapter.rank) and other training results."""
    asked = {f"method.{key.replace('_', '.', 1)}": value for key, value in settings.items()}
    name = "-".join([record.run_id, *map(str, settings.values())])
    record = replace(record, run_id=name, config=with_settings(record.config, asked))
    return replace(record, train=replace(record.train, **train)) if train and record.train else record


def group_of(
    *records: Record,
    scores: Mapping[str, Sequence[float]] | None = None,
    steps: Mapping[str, list[Step]] | None = None,
    tunings: Sequence[Any] = (),
) -> Group:
    """The runs with their made-up steps, items and scores, or with other scores and steps by run_id."""
    samples = {r.run_id: make_samples(r.method, r.seed) for r in records}
    for run, values in (scores or {}).items():
        samples[run] = [replace(samples[run][1], example_id=str(n), scores={"rougeL": v}) for n, v in enumerate(values)]
    made = {r.run_id: make_steps(r.method, r.seed) for r in records if r.train}
    items = {r.run_id: make_items(r.method, r.seed) for r in records}
    sweep = Sweep([], list(records), made | dict(steps or {}), samples, items, {}, [], list(tunings))
    (group,) = groups(sweep)
    return group


def verdict(group: Group, *checks: str, **claim: Any) -> Verdict:
    return judge(group, [Claim("mine", "As the checks say.", list(checks), **claim)])[0]


def part(group: Group, check: str, **claim: Any) -> Part:
    return verdict(group, check, **claim).parts[0]


def scored(difference: float, examples: int = EXAMPLES) -> Group:
    """LoRA's scores are full's plus `difference`, give or take 0.02 an example."""
    lora = HARD + difference + NOISE - NOISE[:examples].mean()
    return group_of(FULL, LORA, scores={FULL.run_id: HARD[:examples], LORA.run_id: lora[:examples]})


# --- Reading ---


def test_every_public_claim_is_read_with_its_source() -> None:
    claims = read_claims()
    assert len(claims) == len({claim.id for claim in claims}) == 56
    assert len(list(CLAIMS_FOLDER.iterdir())) == 6
    assert len({claim.source for claim in claims}) == 12  # five guides, six papers, advice on forgetting
    assert {frozenset((claim.id, other)) for claim in claims for other in claim.contradicts} == {
        frozenset(("mem-full-7b-24gb", "mem-16-bytes")),
        frozenset(("speed-qlora-15-25", "speed-qlora-30-50")),
        frozenset(("speed-full-fastest", "speed-full-slowest")),
        frozenset(("paper-regret-equal", "paper-learns-less")),
    }
    assert all(claim.planner for claim in claims if claim.parameters)  # what no small sweep can judge, the planner does


def test_all_mistakes_of_all_files_are_reported_at_once(tmp_path: Path) -> None:
    def write(name: str, *claims: dict[str, Any]) -> None:
        (tmp_path / name).write_text(yaml.safe_dump({"source": "Mine", "claims": list(claims)}))

    mine: dict[str, Any] = {"id": "mine", "says": "LoRA trains little.", "checks": ["trainable_share(lora) < 0.01"]}
    (tmp_path / "a.yaml").write_text("claims: [")
    write("b.yaml", mine | {"say": "typo"})
    write("c.yaml", mine, mine | {"at_equal": "parameters_trainble"}, mine | {"id": "other", "checks": ["score(lora)"]})
    with pytest.raises(ConfigurationError) as caught:
        read_claims(tmp_path)
    expected = ["a.yaml: not YAML", "b.yaml: mine.say: no such setting (did you mean 'says'?)",
                "c.yaml: mine.at_equal: no quantity 'parameters_trainble' (did you mean 'parameters_trainable'?)",
                "c.yaml: other.checks.0: a check compares"]  # fmt: skip
    for problem, beginning in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(beginning)


def test_a_contradiction_names_a_claim_and_an_id_names_one(tmp_path: Path) -> None:
    claim = {"id": "mine", "says": "Yes.", "checks": ["score(lora) > 0"], "contradicts": ["mein"]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"source": "Mine", "claims": [claim, claim]}))
    with pytest.raises(ConfigurationError, match=r"mine.contradicts: no claim 'mein' \(did you mean 'mine'") as caught:
        read_claims(tmp_path)
    assert caught.value.problems[0].startswith("mine: two claims have this id")


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        ("score(lora) >", "not an expression"),
        ("score(lora)", "compares an expression with numbers"),
        ("score(lora) == 1", "'==' is not allowed"),
        ("score(full) > score(lora)", "2 sides of the comparison name arms"),
        ("1 < 2", "0 sides"),
        ("scor(lora) > 0", r"no quantity 'scor' \(did you mean 'score'"),
        ("score(lorra) > 0", r"no arm 'lorra' \(did you mean 'lora'"),
        ("score(lora(rang=8)) > 0", r"no setting 'rang' \(did you mean 'rank'"),
        ("score(lora, full) > 0", "is not allowed"),
        ("score(lora) ** 2 > 0", "is not allowed"),
        ("__import__('os').getcwd() > 0", "is not allowed"),
        ("score(lora(rank=open('x'))) > 0", "is not allowed"),
        ("score(lora(rank=)) > 0", "not an expression"),
        ("q0 + score(lora) > 0", "is not allowed"),
        ("-" * 1000 + "score(lora) > 0", "at most 300"),
    ],
)
def test_nothing_but_arithmetic_is_allowed(check: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(check)


def test_a_check_is_arithmetic() -> None:
    check = parse("-1 <= (score(lora(rank=[1, None])) - score(full)) / 2 * 4 + 1 < 3")
    lora, full = ("score", Arm("lora", (("rank", (1, None)),))), ("score", Arm("full"))
    assert list(check.needs.values()) == [lora, full]
    value, truth = check.evaluate({lora: [5.0, 5.5, 3.0], full: [4.5] * 3})
    assert list(value) == [2.0, 3.0, -2.0]
    assert list(truth) == [True, False, False]


# --- Words ---


@pytest.mark.parametrize(
    ("check", "difference", "word"),
    [
        ("score(lora) - score(full) > 0", 0.05, "holds"),
        ("score(lora) - score(full) > 0", -0.05, "does not hold"),
        ("0.01 <= score_rougeL(lora) - score_rougeL(full) <= 0.2", 0.07, "holds"),
        ("score(lora) / score(full) - 1 <= -0.3", 0.02, "does not hold"),
    ],
)
def test_a_claim_goes_by_the_joint_draws(check: str, difference: float, word: str) -> None:
    found = verdict(scored(difference), check)
    assert (found.word, found.reason) == (word, "")
    assert found.parts[0].low < found.parts[0].value < found.parts[0].high
    assert found.parts[0].basis == "400 examples, 1 seed"


def test_what_is_neither_is_not_settled() -> None:
    found = verdict(scored(0.0), "score(lora) - score(full) > 0")
    assert found.word == "not settled"
    assert 0.2 < found.probability < 0.8
    assert found.reason == f"true with a probability of {found.probability:.0%}"


def test_a_count_is_on_one_side_of_its_limit() -> None:
    group = group_of(LORA, QLORA)
    words = [verdict(group, f"parameters_trainable(lora) {limit}").word for limit in ("> 4884479", "> 4884480")]
    assert words == ["holds", "does not hold"]
    assert verdict(group, "parameters_trainable(lora) / parameters_trainable(qlora) >= 1").word == "holds"


def test_all_checks_must_hold_and_one_that_does_not_decides() -> None:
    group, share = scored(0.0), "trainable_share(lora) <= 1"
    assert verdict(group, share, "trainable_share(full) >= 1").word == "holds"
    assert verdict(group, share, "trainable_share(full) < 1", "score(qlora) > 0").word == "does not hold"
    assert verdict(group, share, "score(qlora) > 0").reason == "no finished run of qlora"
    assert verdict(group, share, "score(lora) - score(full) > 0").word == "not settled"


def test_settings_that_disagree_leave_a_claim_open() -> None:
    small = changed(LORA, adapter_rank=8, train={"parameters_trainable": 1000})
    found = verdict(group_of(LORA, small), "parameters_trainable(lora) < 2000")
    assert (found.word, found.reason) == ("not settled", "it depends on the settings")
    assert {p.arms: p.probability for p in found.parts} == {("lora (rank=16)",): 0, ("lora (rank=8)",): 1}


def test_arms_are_selected_by_settings_and_agree_in_the_others() -> None:
    small = changed(LORA, adapter_rank=8)
    narrow = changed(LORA, **{"adapter_rank": 16, "adapter_target_modules": ["v_proj", "q_proj"]})
    group = group_of(LORA, small, narrow)

    def arms(expression: str) -> list[tuple[str, ...]]:
        return [part.arms for part in verdict(group, f"{expression} > -1").parts]

    wide, thin = "lora (rank=8, target_modules=all-linear)", "lora (rank=16, target_modules=['v_proj', 'q_proj'])"
    assert arms("checkpoint_bytes(lora(rank=[1, 8]))") == [(wide,)]
    assert arms('checkpoint_bytes(lora(rank=16, target_modules=["q_proj", "v_proj"]))') == [(thin,)]
    usual = "lora (rank=16, target_modules=all-linear)"
    assert arms("score(lora(rank=16)) - score(lora(rank=8))") == [(usual, wide)]
    every = 'score(lora(target_modules="all-linear", rank=[1, None])) - '
    every += 'score(lora(target_modules=["q_proj", "v_proj"], rank=[1, None]))'
    assert sorted(arms(every)) == [(usual, thin), (wide, thin)]
    dora = group_of(changed(LORA, adapter_use_dora=True))
    assert verdict(dora, "score(lora) > 0").reason == "no finished run of lora"


def test_at_equal_leaves_out_unequal_arms() -> None:
    other = changed(QLORA, train={"parameters_trainable": 9_000_000})
    check = "score(lora) - score(qlora) > -1"
    assert verdict(group_of(LORA, QLORA), check, at_equal="parameters_trainable").word == "holds"
    found = verdict(group_of(LORA, other), check, at_equal="parameters_trainable")
    assert found.reason == "no runs of lora and qlora agree in all other settings and in parameters_trainable"


# --- Not tested ---


def test_another_model_than_the_claim_is_about() -> None:
    found = verdict(group_of(FULL), "trainable_share(full) > 0", parameters=(6.5e9, 7.5e9))
    assert found.word == "not tested"
    assert found.reason == "about a model of 6.5 to 7.5 billion parameters; synthetic-135m has 0.135"
    assert verdict(group_of(FULL), "trainable_share(full) > 0", parameters=(1.3e8, None)).word == "holds"


def test_what_keeps_runs_from_being_judged_is_named() -> None:
    other = replace(LORA, comparison_key="0" * 12)
    assert "may not be compared" in verdict(group_of(FULL, other), "score(full) - score(lora) > 0").reason
    assert verdict(scored(0.2, examples=9), "score(lora) - score(full) > 0").reason == "only 9 examples"
    busy = changed(LORA, train={"environment": replace(ENVIRONMENT, other_cpu_cores=0.8)})
    assert "busy machine" in verdict(group_of(FULL, busy), "tokens_per_second(lora) > 0").reason
    rows = changed(LORA, train={"micro_batch": 4})
    assert verdict(group_of(FULL, rows), "peak_memory_bytes(lora) / peak_memory_bytes(full) > 0").reason == (
        "the micro-batches differ (4, 8)"
    )
    assert "set hardware.price_usd_per_hour" in verdict(group_of(FULL), "cost_usd(full) > 0").reason
    assert "serve=full" in verdict(group_of(LORA), "merged_size_ratio(lora) > 1").reason


def test_a_division_by_zero_is_not_tested() -> None:
    group = group_of(FULL, LORA, scores={FULL.run_id: np.zeros(20), LORA.run_id: np.full(20, 0.5)})
    found = verdict(group, "score(lora) / score(full) > 0")
    assert (found.word, found.reason) == ("not tested", "it would divide by 0 (20 examples, 1 seed)")


# --- Quantities ---


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(weights_bytes(full) + gradients_bytes(full) + optimizer_bytes(full))", 2052 * MIB),
        ("1 - peak_memory_bytes(lora) / peak_memory_bytes(full)", 1 - 2552 / 4397),
        ("tokens_per_second(qlora) / tokens_per_second(lora)", 0.9),
        ("checkpoint_bytes(lora)", 19 * MIB),
        ("seconds_to_target(full)", 32 * 2240 / 505 * (16 + 16 * (2.725 - 2.63) / (2.725 - 2.55)) / 32),
    ],
)
def test_quantities_by_hand(expression: str, value: float) -> None:
    assert part(group_of(FULL, LORA, QLORA), f"{expression} > 0").value == pytest.approx(value)


def test_forgetting_is_a_difference_from_the_base() -> None:
    base = make_record("base", 0)
    group = group_of(base, FULL)
    means = [np.mean([t.value for t in r.regression.tasks if t.higher_is_better]) for r in (base, FULL) if r.regression]
    found = part(group, "regression_mean(base) - regression_mean(full) > 0")
    assert found.value == pytest.approx(means[0] - means[1])
    assert found.basis.startswith("240 examples")


def test_spikes_stand_out_of_the_steps_before() -> None:
    calm = make_steps("qlora", 0)
    wild = [replace(s, gradient_norm=9.0 if s.step == 20 or s.step > 28 else 1.0) for s in calm]
    high = changed(QLORA, adapter_rank=128)
    group = group_of(QLORA, high, steps={QLORA.run_id: calm, high.run_id: wild})
    found = part(group, "gradient_spike_share(qlora(rank=128)) - gradient_spike_share(qlora(rank=16)) > 0")
    assert found.value == pytest.approx(5 / 22)
    assert found.basis == "22 steps, 1 seed"


def test_the_best_rate_is_as_sure_as_the_grid() -> None:
    full, lora = with_rate(FULL, 1e-5), with_rate(LORA, 1e-4)
    losses = {1e-5: 2.6, 1e-4: 2.4, 1e-3: 2.7}

    def tuning(record: Record, factor: float) -> Any:
        return make_tuning(record, [Trial(rate * factor, loss, 9, 1.0, "x") for rate, loss in losses.items()])

    group = group_of(full, lora, tunings=[tuning(full, 0.1), tuning(lora, 1.0)])
    found = part(group, "5 <= best_learning_rate(lora) / best_learning_rate(full) <= 20")
    assert found.value == pytest.approx(10)
    assert 1 < found.low < 3 < 30 < found.high < 100


def test_the_best_rate_is_that_of_the_parabola_where_there_is_one() -> None:
    """Losses with their minimum a third of the way, on the log scale, from the best rate that was tried to the next."""
    full, lora = with_rate(FULL, 1e-5), with_rate(LORA, 1e-4)
    best, noise = 1e-4 * 2.5 ** (1 / 3), np.array([1, -2, 1, 1, -1]) * 1e-4

    def tuning(record: Record, factor: float) -> Any:
        rates = [1e-4 * 2.5**power for power in (-2, -1, 0, 1, 2)]
        losses = [2.4 + 0.1 * np.log(rate / best) ** 2 for rate in rates] + noise
        trials = zip(rates, losses, strict=True)
        return make_tuning(record, [Trial(rate * factor, loss, 9, 1.0, "x") for rate, loss in trials])

    group = group_of(full, lora, tunings=[tuning(full, 0.1), tuning(lora, 1.0)])
    assert part(group, "best_learning_rate(lora) > 0").value == pytest.approx(best, rel=0.01)
    found = verdict(group, "9 <= best_learning_rate(lora) / best_learning_rate(full) <= 11")
    assert found.word == "holds"
    assert found.parts[0].low < found.parts[0].value < found.parts[0].high
    assert found.parts[0].basis.startswith("a parabola through 5 of 5 rates tried with lora")


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("unmerged_latency_ratio(lora)", 1.5),
        ("merged_latency_ratio(lora)", 1.0),
        ("merge_logit_difference(lora)", 0.2),
        ("merged_size_ratio(qlora)", 257 / 118),
        ("adapter_swap_seconds(lora)", 0.11),
    ],
)
def test_serving(quantity: str, value: float) -> None:
    group = group_of(served(LORA)[0], served(QLORA)[0])
    assert part(group, f"{quantity} > 0").value == pytest.approx(value)


# --- The planner ---

SEVEN = ["model=mistral-7b", "hardware=h100", "hardware.price_usd_per_hour=3", "plan.examples=1000"]


def test_the_planner_judges_what_the_runs_cannot() -> None:
    found = verdict(group_of(LORA), "15.9 < weights_bytes(full) / parameters_total(full) * 4 < 16.1", planner=SEVEN)
    assert (found.word, found.predicted, found.parts[0].basis) == ("holds", True, "the planner")
    count = 32 * 2 * 8 * (4096 + 4096 + 4096 + 1024) // 2
    pair = 'parameters_trainable(lora(rank=8, target_modules=["q_proj", "v_proj"]))'
    assert part(group_of(LORA), f"{pair} > 1e6", parameters=(6e9, 8e9), planner=SEVEN).value == count
    assert not verdict(group_of(LORA), "trainable_share(lora) > 0", planner=SEVEN).predicted


def test_planned_time_is_a_range_alike_for_all_arms() -> None:
    group, many = group_of(LORA), {"parameters": (6e9, 8e9), "planner": SEVEN}
    cost = part(group, "cost_usd(full) > 0", **many)
    slow, fast = PlanConfig().utilization_range
    assert cost.high / cost.low == pytest.approx(fast / slow, rel=0.1)
    ratio = part(group, "cost_usd(full) / cost_usd(lora) > 0", **many)
    assert ratio.low == pytest.approx(ratio.high)
    assert 1.4 < ratio.value < 1.5  # 6 FLOPs a weight against 4, and the adapter's own
    assert verdict(group, "score(full) > 0", **many).reason == "the planner knows no score"


def test_a_mistake_in_what_the_planner_is_asked_names_the_claim() -> None:
    with pytest.raises(ConfigurationError, match=r"mine\.planner: .*mistral-7"):
        verdict(group_of(LORA), "score(full) > 0", planner=["model=mistral-7"])
