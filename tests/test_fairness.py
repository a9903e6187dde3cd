"""What runs share and differ in: before a sweep from their settings, after it from their records too."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from bench.compose import compose, with_settings
from bench.config import RunConfig
from bench.fairness import (
    REQUIREMENTS,
    Group,
    Pair,
    differences,
    groups_of,
    program_caveats,
    reasons_against,
    refused_settings,
    to_json,
)
from bench.mistakes import ConfigurationError, names_in
from bench.record import Record, from_json
from bench.sweep import console as plan_view

REFERENCE = Path(__file__).parents[1] / "results" / "reference"


@cache
def one(*overrides: str) -> RunConfig:
    (config,) = compose(list(overrides), multirun=False)
    return config


@cache
def group_of(*overrides: str) -> Group:
    (group,) = groups_of(compose(list(overrides), multirun=True))
    return group


@cache
def record_of(method: str) -> Record:
    return from_json(Record, min(REFERENCE.glob(f"{method}-*/record.json")).read_bytes())


def pair_of(group: Group, left: str, right: str) -> Pair:
    return next(pair for pair in group.pairs if (pair.left, pair.right) == (left, right))


FOUR = ("method=base,full,lora,qlora", "seed=0,1")

# --- Settings ---


def test_methods_and_seeds_differ_in_nothing_that_must_agree() -> None:
    assert refused_settings(one("method=lora"), one("method=full", "seed=3", "sweep=other")) == []


def test_the_diff_names_both_values_and_leaves_out_what_does_not_apply() -> None:
    found = differences(one("method=lora"), one("method=qlora", "method.dither=false", "seed=1"))
    assert found == {
        "method.quantization.scheme": (None, "nf4"),
        "method.quantization.double_quantization": (None, True),
    }
    assert differences(one("method=base"), one("method=lora"))["train.epochs"][0] is None


def test_every_requirement_that_is_not_met_lists_its_settings() -> None:
    other = one("train.epochs=3", "train.schedule=linear", "hardware.threads=1", "task.max_new_tokens=32")
    reasons = refused_settings(one(), other)
    assert [reason.name for reason in reasons] == ["task", "budget", "threads"]
    assert "train.epochs 1 and 3, train.schedule cosine and linear" in reasons[1].text
    changed = {"epochs": 3, "schedule": "linear", "batch_size": 32, "max_length": 512, "warmup_fraction": 0.1,
               "weight_decay": 0.1}  # fmt: skip
    (reason,) = refused_settings(one(), with_settings(one(), {f"train.{name}": v for name, v in changed.items()}))
    assert reason.text.endswith(", and 2 more)")


def test_an_untrained_run_must_agree_in_evaluation_alone() -> None:
    base = one("method=base")
    other = with_settings(one("method=lora"), {"train.epochs": 3, "task.train_examples": 5, "hardware.threads": 1})
    assert refused_settings(base, other) == []
    (reason,) = refused_settings(base, with_settings(one("method=lora"), {"suite.batch_size": 3}))
    assert reason.name == "suite"


def test_names_are_read() -> None:
    assert names_in("allow_different", "device, threads", REQUIREMENTS) == {"device", "threads"}
    for nothing in ("", ","):
        with pytest.raises(ConfigurationError, match=r"no such name; allowed: .*budget.*device.*threads"):
            names_in("allow_different", nothing, REQUIREMENTS)
    with pytest.raises(ConfigurationError) as caught:
        names_in("allow_different", "devise,device,seed", REQUIREMENTS)
    first, second = caught.value.problems
    assert "did you mean 'device'" in first
    assert all(name in second for name in REQUIREMENTS)


# --- Before a sweep ---


def test_every_pair_is_there_and_only_the_method_differs() -> None:
    four = group_of(*FOUR)
    assert [pair.reasons for pair in four.pairs] == [[]] * 6
    assert four.seeds == {"base": [0], "full": [0, 1], "lora": [0, 1], "qlora": [0, 1]}
    assert {setting.split(".")[0] for setting in four.different} == {"method"}
    assert four.different["method.learning_rate"] == {"full": 5e-05, "lora": 0.0005, "qlora": 0.0005}
    assert four.identical["train.batch_size"] == 16


def test_a_micro_batch_by_method_is_declared_and_no_obstacle() -> None:
    group = group_of("method=full,lora", "train.micro_batch=4,8")
    assert pair_of(group, "full (micro_batch=4)", "lora (micro_batch=8)").reasons == []
    assert set(group.different["train.micro_batch"].values()) == {4, 8}


def test_null_beside_a_value_is_a_difference() -> None:
    group = group_of("method=base,full,lora", "train.max_steps=null,20")
    assert group.different["train.max_steps"] == {"full (max_steps=20)": 20, "lora (max_steps=20)": 20}
    assert "train.max_steps" not in group.identical
    assert not {"train.max_steps", "method.adapter"} & {*group_of("method=base,full,lora").different}


def test_another_budget_is_a_reason_before_anything_runs() -> None:
    group = group_of("method=full,lora", "train.epochs=1,3")
    assert len([pair for pair in group.pairs if pair.reasons]) == 4
    (reason,) = pair_of(group, "full (epochs=1)", "lora (epochs=3)").reasons
    assert (reason.name, reason.text) == ("budget", "their settings differ (train.epochs 1 and 3)")
    lines = plan_view.verdicts(group, frozenset())
    assert lines[0].startswith("2 of 6 pairs may be compared")
    assert "4 will not be compared for budget: full (epochs=1) and full (epochs=3), their settings" in lines[1]
    assert "1 more in fairness.json; allow_different=budget would" in lines[1]
    assert plan_view.verdicts(group, frozenset({"budget"})) == [lines[0].replace("2 of 6", "6 of 6")]


def test_a_seed_without_partner_cannot_be_allowed() -> None:
    configs = compose(["method=full", "seed=0,1"], multirun=True) + compose(["method=lora"], multirun=True)
    (group,) = groups_of(configs)
    (reason,) = group.pairs[0].reasons
    assert (str(reason), reason.may_be_allowed) == ("only one of them has seed 1", False)


def test_models_and_tasks_are_groups_of_their_own() -> None:
    groups = groups_of(compose(["method=full,lora", "task=docstrings,gsm8k"], multirun=True))
    assert [(len(group.pairs), group.name.split(" / ")[1]) for group in groups] == [(1, "docstrings"), (1, "gsm8k")]
    assert group_of("method=lora").pairs == []


def test_the_file_holds_the_group_and_the_refused_pairs() -> None:
    group = group_of("method=full,lora", "train.epochs=1,3")
    (content,) = json.loads(to_json([group]))
    assert (content["identical"], content["different"]) == (group.identical, group.different)
    assert len(content["pairs"]) == 4
    assert content["pairs"][0]["reasons"][0]["name"] == "budget"


def test_the_plan_names_what_differs() -> None:
    four = group_of(*FOUR)
    line = plan_view.heading(four)
    assert f"Identical for all 4 arms: {len(four.identical)} settings. Different: " in line
    assert "method.adapter, " in line
    assert "method.learning_rate" in line


# --- Records ---


def test_reference_runs_may_be_compared() -> None:
    assert reasons_against(record_of("full"), record_of("lora")) == []


@pytest.mark.parametrize(
    ("compiled", "dtype", "refused"),
    [("off", "bfloat16", True), ("regional", "bfloat16", False), ("off", "float32", False)],
)
def test_where_the_adapter_is_added_matters_where_it_is_rounded(compiled: str, dtype: str, refused: bool) -> None:
    def run(method: str, in_fp32: bool) -> Record:
        record = record_of(method)
        assert record.train
        environment = replace(record.train.environment, compiled=compiled, compute_dtype=dtype)
        config = with_settings(record.config, {"method.adapter.add_in_fp32": in_fp32})
        return replace(record, config=config, train=replace(record.train, environment=environment))

    assert reasons_against(run("lora", True), run("qlora", True)) == []
    reasons = reasons_against(run("lora", True), run("qlora", False))
    assert [reason.name for reason in reasons] == (["numerics"] if refused else [])


def test_an_unknown_fact_and_the_reason_for_no_compilation_are_no_reasons() -> None:
    full, lora = record_of("full"), record_of("lora")
    assert full.train
    environment = replace(full.train.environment, cpus=None, compiled="off: no compiler")
    plain = [replace(r, train=replace(r.train, environment=replace(environment, compiled=c)))  # type: ignore[type-var]
             for r, c in ((full, "off"), (lora, "off: no compiler"))]  # fmt: skip
    assert reasons_against(*plain) == []
    assert reasons_against(full, replace(lora, provenance={})) == []


# --- What went into a stage, and who made it ---


STAGES = ("train", "evaluate", "regression")


def made_by(record: Record, *stages: str, **program: object) -> Record:
    """The record with another program behind some of its stages."""
    for stage in stages:
        result = getattr(record, stage)
        made = replace(result.made, provenance=result.made.provenance | program)
        record = replace(record, **{stage: replace(result, made=made)})
    return record


def test_a_base_that_was_asked_other_questions_is_not_compared() -> None:
    base, lora = record_of("base"), record_of("lora")
    assert reasons_against(base, lora) == []
    other = replace(lora, data=replace(lora.data, fingerprints=lora.data.fingerprints | {"test": "0" * 64}))
    (reason,) = reasons_against(base, other)
    assert (reason.name, "test: fingerprint" in reason.text) == ("stream", True)
    trained_on_others = replace(
        lora, data=replace(lora.data, fingerprints=lora.data.fingerprints | {"train": "0" * 64})
    )
    assert reasons_against(base, trained_on_others) == []
    assert [reason.name for reason in reasons_against(record_of("full"), trained_on_others)] == ["stream"]


def test_another_model_behind_the_same_name_is_refused() -> None:
    base, lora = record_of("base"), record_of("lora")
    other = with_settings(base.config, {"content.weights": "0" * 16})
    (reason,) = reasons_against(replace(base, config=other), lora)
    assert reason.name == "model"
    commits = [
        replace(r, evaluate=replace(r.evaluate, model_revision=c)) for r, c in ((base, "a" * 40), (lora, "b" * 40))
    ]
    (reason,) = reasons_against(*commits)
    assert reason.name == "model"
    assert "evaluated with different revisions of the model" in reason.text


def test_packages_are_compared_stage_by_stage() -> None:
    packages = record_of("lora").provenance["packages"] | {"peft": "0.1"}
    (reason,) = reasons_against(record_of("full"), made_by(record_of("lora"), "evaluate", packages=packages))
    assert reason.name == "software"
    assert reason.text.startswith("they were evaluated with different peft (")


def test_versions_of_the_program_are_a_caveat() -> None:
    full, lora = record_of("full"), record_of("lora")
    assert program_caveats({"full": [full], "lora": [lora]}) == []
    (text,) = program_caveats({"full": [full], "lora": [made_by(lora, "evaluate", git_commit="f" * 40, code="d")]})
    assert "Measured by different versions of the program (" in text
    assert "ffffffff: lora evaluated" in text
    one, other = (made_by(record, *STAGES, code="c") for record in (full, lora))
    (text,) = program_caveats({"full": [one], "lora": [made_by(other, "evaluate", git_commit="f" * 40)]})
    assert "though its code was the same" in text
    (text,) = program_caveats({run.method: [made_by(run, *STAGES, git_dirty=True)] for run in (full, lora)})
    assert text.endswith("with uncommitted changes: no commit gives this program back.")
