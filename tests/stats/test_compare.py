"""Which comparisons are made, which are refused, what each says, and over which families p is adjusted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import group_of, runs, sweep_of
from synthetic import make_record, make_samples

from bench.compose import with_settings
from bench.fairness import reasons_against
from bench.record import Environment, Record
from bench.stats.compare import Findings, compare
from bench.stats.frames import groups
from bench.stats.measures import SUITE_MEAN
from bench.stats.paired import holm
from bench.stats.quantities import speed_doubts


@pytest.fixture(scope="module")
def findings() -> Findings:
    return compare(group_of(runs(seeds=(0, 1))))


def row(findings: Findings, measure: str, arm: str, baseline: str) -> pd.Series:
    frame = findings.comparisons
    (found,) = [r for _, r in frame.iterrows() if (r["measure"], r["arm"], r["baseline"]) == (measure, arm, baseline)]
    return found


def test_pairs_are_against_base_full_and_lora(findings: Findings) -> None:
    pairs = set(zip(findings.comparisons["arm"], findings.comparisons["baseline"], strict=True))
    against_base = {("full", "base"), ("lora", "base"), ("qlora", "base")}
    assert pairs == against_base | {("lora", "full"), ("qlora", "full"), ("qlora", "lora")}
    assert findings.refusals == []


def test_one_base_run_is_the_partner_of_every_seed(findings: Findings) -> None:
    found = row(findings, "rougeL", "lora", "base")
    assert (found["seeds"], found["examples"], found["verdict"], found["test"]) == (2, 48, "better", "t")
    by_hand = np.mean([[s.scores["rougeL"] for s in make_samples("lora", seed)] for seed in (0, 1)])
    by_hand -= np.mean([s.scores["rougeL"] for s in make_samples("base", 0)])
    assert found["difference"] == pytest.approx(by_hand)
    assert found["low"] < found["difference"] < found["high"]


def test_loss_is_weighted_by_tokens_and_lower_is_better(findings: Findings) -> None:
    found = row(findings, "test", "full", "base")
    samples = make_samples("base", 0)
    assert found["baseline_mean"] == pytest.approx(
        sum(s.loss or 0 for s in samples) / sum(s.loss_tokens for s in samples)
    )
    assert (found["difference"] < 0, found["verdict"]) == (True, "better")


def test_the_suites_mean_counts_tasks_alike(findings: Findings) -> None:
    frame = findings.comparisons.query("arm == 'full' and baseline == 'base' and kind == 'regression'")
    rising = frame[frame["higher_is_better"] & (frame["measure"] != SUITE_MEAN)]
    assert row(findings, SUITE_MEAN, "full", "base")["difference"] == pytest.approx(rising["difference"].mean())


def test_intervals_stay_within_what_is_possible() -> None:
    """Scores and accuracies near 1 and losses near 0: no interval beyond 1, or below 0."""
    records = runs("base lora", (0,))
    found = compare(group_of(records, scores=lambda record, place: 1 - 0.3 * (place == 5)))
    bounded = found.estimates[found.estimates["higher_is_better"]]
    assert bounded["low"].min() >= 0
    assert bounded["high"].max() <= 1
    assert found.estimates.query("kind == 'loss'")["low"].min() >= 0
    assert found.comparisons.query("kind == 'score'")["low"].min() >= -1


def test_p_is_adjusted_within_each_family(findings: Findings) -> None:
    frame = findings.comparisons
    assert set(frame["family"]) == {"primary score", "other scores", "loss", "suite's mean", "suite's tasks"}
    assert frame.groupby("family")["measure"].nunique()[["primary score", "suite's mean"]].tolist() == [1, 1]
    for _, rows in frame.groupby("family"):
        assert rows["p_holm"].tolist() == pytest.approx(holm(list(rows["p"])))


def test_one_seed_of_right_and_wrong_is_tested_by_mcnemar() -> None:
    found = row(compare(group_of(runs("base lora", (0,)))), "exact_match", "lora", "base")
    assert (found["test"], found["seeds"]) == ("McNemar", 1)


def test_equal_on_every_example_is_its_own_word() -> None:
    records = runs("base lora", (0,))
    found = row(compare(group_of(records, answers={records[1].run_id: "base"})), "rougeL", "lora", "base")
    assert (found["verdict"], found["difference"], found["p"]) == ("equal", 0, 1)


def test_margins_are_relative_for_scores_and_absolute_for_accuracy(findings: Findings) -> None:
    found = row(findings, "rougeL", "lora", "full")
    assert found["margin"] == pytest.approx(0.03 * found["baseline_mean"])
    assert row(findings, "capitals", "lora", "full")["margin"] == 0.02


def change(record: Record, **settings: object) -> Record:
    return replace(record, config=with_settings(record.config, {k.replace("__", "."): v for k, v in settings.items()}))


def in_environment(record: Record, **facts: object) -> Record:
    assert record.train
    assert record.evaluate
    other: Environment = replace(record.train.environment, **facts)  # type: ignore[arg-type]
    return replace(record, train=replace(record.train, environment=other),
                   evaluate=replace(record.evaluate, environment=other))  # fmt: skip


FULL, LORA = make_record("full", 0), make_record("lora", 0)


@pytest.mark.parametrize(
    ("other", "name", "text"),
    [
        (change(LORA, train__epochs=3), "budget", "train.epochs"),
        (change(LORA, task__max_new_tokens=32), "task", "task.max_new_tokens"),
        (replace(LORA, train=replace(LORA.train, data_stream_sha256="0" * 64)), "stream", "different data"),  # type: ignore[type-var]
        (replace(LORA, train=replace(LORA.train, steps=7)), "budget", "7"),  # type: ignore[type-var]
        (replace(LORA, comparison_key="other"), "settings", "keys differ"),
        (replace(LORA, train=None), "training", "no training result"),
        (in_environment(LORA, device="cuda: synthetic"), "device", "trained and evaluated"),
        (in_environment(LORA, threads=8), "threads", "8"),
        (in_environment(LORA, compiled="off"), "numerics", "compilation"),
        (in_environment(LORA, torch="2.0"), "software", "torch"),
        (replace(LORA, provenance={"packages": {"peft": "0.1"}}), "software", "peft (0.21.2 and 0.1)"),
    ],
)
def test_reasons_against(other: Record, name: str, text: str) -> None:
    reasons = reasons_against(FULL, other)
    assert [reason.name for reason in reasons] == [name]
    assert text in str(reasons[0])


def test_no_reason_against_methods_that_differ_only_in_themselves() -> None:
    assert reasons_against(FULL, LORA) == []
    assert reasons_against(make_record("base", 0), change(LORA, train__epochs=3)) == []  # a base has no budget


def test_refused_pairs_are_listed_and_can_be_allowed() -> None:
    records = [make_record("base", 0), FULL, change(LORA, train__epochs=3)]
    refused = compare(group_of(records))
    assert [(r.arm, r.baseline, r.reason.name) for r in refused.refusals] == [("lora", "full", "budget")]
    assert ("lora", "full") not in set(zip(refused.comparisons["arm"], refused.comparisons["baseline"], strict=True))
    allowed = compare(group_of(records, allowed=frozenset({"budget"})))
    assert row(allowed, "rougeL", "lora", "full")["differing"] == "budget"
    assert [e.reason.name for e in allowed.exceptions] == ["budget"]


def test_other_reference_answers_are_refused() -> None:
    assert compare(group_of([FULL, LORA])).refusals == []
    sweep = sweep_of([FULL, LORA])
    rows = sweep.sample_rows[LORA.run_id]
    rows[0] = replace(rows[0], reference="another answer")
    (refusal,) = compare(groups(sweep)[0]).refusals
    assert refusal.reason.name == "references"
    assert "1 test examples" in refusal.reason.text


def test_a_seed_without_a_partner_is_said() -> None:
    (refusal,) = compare(group_of([FULL, LORA, make_record("lora", 1)])).refusals
    assert (refusal.seeds, refusal.reason.name) == ("1", "seed")


def test_busy_machines_are_doubts_about_speed_only() -> None:
    busy = in_environment(LORA, other_cpu_cores=0.8, cpus=2)
    assert reasons_against(FULL, busy) == []
    (doubt,) = speed_doubts([FULL, busy])
    assert "busy machine" in doubt
