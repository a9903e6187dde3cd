"""Which comparisons are made, which are refused, and what is recommended."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import build_sweep, make_items, make_record, make_samples

from bench.analysis import frame
from bench.analysis.compare import Findings, Margins, compare
from bench.analysis.measures import OVERALL, Measure
from bench.analysis.order import arm_names, method_order
from bench.analysis.recommend import arms_frame, pareto_set, recommend
from bench.analysis.side_by_side import settings_of_arms
from bench.config import with_settings
from bench.record import Record
from bench.stats.frames import load

ROUGE = Measure("score", "rougeL")


def findings_of(records: list[Record], *, answers: dict[str, str] | None = None) -> Findings:
    """`answers`: run_id -> the method whose samples it gets."""
    answers = answers or {}
    samples = {r.run_id: make_samples(answers.get(r.run_id, r.method), r.seed) for r in records}
    items = {r.run_id: make_items(answers.get(r.run_id, r.method), r.seed) for r in records}
    return compare(
        records,
        frame.samples_frame(samples, records),
        frame.regression_frame(items, records),
        rng=np.random.default_rng(0),
    )


@pytest.fixture(scope="module")
def all_findings() -> Findings:
    return findings_of(
        [make_record("base", 0), *(make_record(m, s) for m in ("full", "lora", "qlora") for s in (0, 1))]
    )


def test_pairs_are_against_base_full_and_lora(all_findings: Findings) -> None:
    pairs = {(c.arm, c.baseline) for c in all_findings.comparisons}
    expected = {("full", "base"), ("lora", "base"), ("qlora", "base"), ("lora", "full"), ("qlora", "full")}
    assert pairs == expected | {("qlora", "lora")}
    assert all_findings.refusals == []


def test_one_base_run_is_the_partner_of_every_seed(all_findings: Findings) -> None:
    comparison = all_findings.comparison(ROUGE, "lora", "base")
    assert comparison is not None
    assert (comparison.seeds, comparison.examples, comparison.verdict) == (2, 48, "better")
    by_hand = np.mean([[s.scores["rougeL"] for s in make_samples("lora", seed)] for seed in (0, 1)])
    by_hand -= np.mean([s.scores["rougeL"] for s in make_samples("base", 0)])
    assert comparison.difference == pytest.approx(by_hand)
    assert comparison.low < comparison.difference < comparison.high


def test_loss_is_weighted_by_tokens_and_lower_is_better(all_findings: Findings) -> None:
    measure = next(m for m in all_findings.tables if m.kind == "loss")
    comparison = all_findings.comparison(measure, "full", "base")
    assert comparison is not None
    samples = make_samples("base", 0)
    expected = sum(s.loss or 0 for s in samples) / sum(s.loss_tokens for s in samples)
    assert comparison.baseline_mean == pytest.approx(expected)
    assert (comparison.difference < 0, comparison.verdict) == (True, "better")


def test_regression_overall_counts_tasks_alike(all_findings: Findings) -> None:
    measures = {m.name: m for m in all_findings.tables if m.kind == "regression"}
    changes = {name: c.difference for name, m in measures.items() if (c := all_findings.comparison(m, "full", "base"))}
    accuracies = [changes[name] for name, m in measures.items() if m.higher_is_better and name != OVERALL]
    assert changes[OVERALL] == pytest.approx(np.mean(accuracies))


def test_p_is_adjusted_within_its_family(all_findings: Findings) -> None:
    overall = [measure for measure in all_findings.tables if measure.name == OVERALL]
    families = {"primary": [ROUGE], "others": [Measure("score", "exact_match")], "suite": overall}
    for measures in families.values():
        family = [c for c in all_findings.comparisons if c.measure in measures]
        smallest = min(family, key=lambda c: c.p)
        assert len(family) == 6
        assert smallest.p_holm == pytest.approx(min(1, smallest.p * 6))
    assert all(c.p_holm >= c.p for c in all_findings.comparisons)


def test_different_data_is_refused_with_the_reason() -> None:
    lora = make_record("lora", 0)
    assert lora.train is not None
    other = replace(lora, train=replace(lora.train, data_stream_sha256="e" * 64))
    findings = findings_of([make_record("base", 0), make_record("full", 0), other])
    assert findings.comparison(ROUGE, "lora", "full") is None
    assert findings.comparison(ROUGE, "lora", "base") is not None
    (refusal,) = findings.refusals
    assert (refusal.arm, refusal.baseline, refusal.seeds) == ("lora", "full", "0")
    assert refusal.reason.name == "stream"
    assert "data_stream_sha256 eeeeeeee and 0d0d0d0d" in refusal.reason.text


def test_missing_seed_is_listed() -> None:
    findings = findings_of([make_record("full", 0), make_record("lora", 0), make_record("lora", 1)])
    assert [(r.seeds, r.reason.text) for r in findings.refusals] == [("1", "the baseline has no run of this seed")]
    assert not findings.refusals[0].reason.may_be_allowed
    comparison = findings.comparison(ROUGE, "lora", "full")
    assert comparison is not None
    assert comparison.seeds == 1


def test_one_seed_of_right_and_wrong_is_mcnemar() -> None:
    findings = findings_of([make_record("base", 0), make_record("full", 0)])
    comparison = findings.comparison(Measure("score", "exact_match"), "full", "base")
    assert comparison is not None
    assert comparison.test == "McNemar"


def test_base_against_itself_shows_nothing() -> None:
    """The control: two runs with the same answers differ nowhere."""
    twin = replace(make_record("base", 0), run_id="twin", method="base_4bit")
    findings = findings_of([make_record("base", 0), twin], answers={"twin": "base"})
    comparison = findings.comparison(ROUGE, "base_4bit", "base")
    assert comparison is not None
    assert (comparison.difference, comparison.p, comparison.verdict) == (0, 1, "equivalent")


def test_arms_of_one_method_are_told_apart() -> None:
    low, high = make_record("lora", 0), make_record("lora", 0)
    config = with_settings(high.config, {"method.learning_rate": 1e-3})
    names = arm_names([low, replace(high, run_id="other", config=config)])
    assert set(names.values()) == {"lora (learning_rate=0.0005)", "lora (learning_rate=0.001)"}
    mixed = ["qlora", "mine", "lora (rank=8)", "full_bf16", "base_4bit", "lora", "full", "base"]
    order = ["base", "base_4bit", "full", "full_bf16", "lora", "lora (rank=8)", "qlora", "mine"]
    assert sorted(mixed, key=method_order) == order


def test_settings_that_differ_are_the_methods(all_findings: Findings) -> None:
    same, different = settings_of_arms(all_findings.arms)
    assert same["train.batch_size"] == "16"
    assert different["method.learning_rate"] == {"full": "5e-05", "lora": "0.0005", "qlora": "0.0005"}
    assert {name.split(".")[0] for name in different} == {"method"}


def test_pareto_set_by_hand() -> None:
    values = pd.DataFrame(
        {"quality": [3, 2, 1, 3, np.nan], "memory": [4, 2, 3, 5, 1]}, index=["a", "b", "worse", "dear", "unknown"]
    )
    assert pareto_set(values, maximise=["quality"], minimise=["memory"]) == [True, True, False, False, False]


def test_frames_keep_unknown_unknown(tmp_path: Path) -> None:
    runs = load(build_sweep(tmp_path / "sweep")).runs.set_index("run_id")
    base = runs.loc[next(run for run in runs.index if run.startswith("base"))]
    lora = runs[runs["method"] == "lora"].iloc[0]
    assert base[["train_peak_bytes", "train_seconds", "checkpoint_bytes"]].isna().all()
    assert lora["train_peak_bytes"] == 2552 * 2**20
    assert lora["other_bytes"] == (2552 - 275 - 19 - 38) * 2**20
    assert lora["start_bytes"] == 600 * 2**20
    assert (lora["heldout_loss_before"], lora["heldout_loss_after"]) == (3.6, 2.6)
    assert list(dict.fromkeys(runs["method"])) == ["base", "full", "full_bf16", "lora", "qlora"]


def advice_of(findings: Findings, margins: Margins | None = None) -> tuple[str | None, str | None, list[str], str]:
    records = [record for runs in findings.arms.values() for record in runs]
    arms = arms_frame(frame.runs_frame(records))
    advice = recommend(findings, arms, rng=np.random.default_rng(0), margins=margins)
    return advice.chosen, advice.best, advice.undecided, advice.sentence


def test_cheapest_that_is_not_worse_is_recommended(all_findings: Findings) -> None:
    chosen, best, _, sentence = advice_of(all_findings, Margins(score_relative=0.2))
    assert (chosen, best) == ("qlora", "lora")
    assert "shown not to be" in sentence
    assert "2.32 GiB" in sentence


def test_undecided_is_said() -> None:
    """The same answers but for noise, and a margin too small for it: the cheaper one is undecided, not refused."""
    full, lora = make_record("full", 0), make_record("lora", 0)
    swapped = {full.run_id: "lora", lora.run_id: "full"}  # so that the dearer method scores a little higher
    chosen, best, undecided, sentence = advice_of(
        findings_of([full, lora], answers=swapped), Margins(score_relative=1e-6)
    )
    assert (chosen, best, undecided) == ("full", "full", ["lora"])
    assert sentence.startswith("The data cannot decide between full and lora.")
    assert re.search(r"about [\d,]+ test examples would decide", sentence)


def test_shown_to_be_worse_is_not_undecided(all_findings: Findings) -> None:
    chosen, _, undecided, _ = advice_of(all_findings, Margins(score_relative=1e-6))
    assert (chosen, undecided) == ("lora", [])


def test_a_control_is_compared_and_never_recommended() -> None:
    """However well it does."""
    full, best = make_record("full", 0), make_record("lora", 0)
    config = with_settings(best.config, {"method.name": "mine", "method.control": True})
    control = replace(best, run_id="control", method="mine", config=config)
    findings = findings_of([full, control], answers={"control": "lora"})
    assert any(c.arm == "mine" for c in findings.comparisons)
    assert advice_of(findings, Margins(score_relative=1e-6))[:3] == ("full", "full", [])


def test_nothing_scored_is_said() -> None:
    chosen, _, _, sentence = advice_of(findings_of([replace(make_record("full", 0), evaluate=None, regression=None)]))
    assert chosen is None
    assert "nothing to recommend" in sentence


def test_too_few_examples_and_no_score_decide_nothing(all_findings: Findings) -> None:
    few = replace(all_findings, estimates=[replace(e, examples=8) for e in all_findings.estimates])
    assert advice_of(few)[0] is None
    assert "8 test example(s) are too few" in advice_of(few)[3]
    zero = replace(all_findings, estimates=[replace(e, mean=0.0) for e in all_findings.estimates])
    assert advice_of(zero)[3] == "The data cannot decide: every method scored 0 in rougeL."
