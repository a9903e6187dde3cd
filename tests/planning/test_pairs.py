"""What two methods share is known before they run, and what will keep them from being compared."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from bench.compose import compose
from bench.fairness import Group, Pair, groups_of, to_json
from bench.sweep import console as plan_view

FOUR = "method=base,full,lora,qlora"


def group_of(*overrides: str) -> Group:
    (group,) = groups_of(compose(list(overrides), multirun=True))
    return group


def pair_of(group: Group, left: str, right: str) -> Pair:
    return next(pair for pair in group.pairs if (pair.left, pair.right) == (left, right))


def shown(group: Group) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(plan_view.table(group))
    return console.file.getvalue()


@pytest.fixture(scope="module")
def four() -> Group:
    return group_of(FOUR, "seed=0,1")


def test_every_pair_is_there_and_fair(four: Group) -> None:
    assert len(four.pairs) == 6
    assert [pair.reasons for pair in four.pairs] == [[]] * 6
    assert four.seeds == {"base": [0], "full": [0, 1], "lora": [0, 1], "qlora": [0, 1]}


def test_only_the_method_differs(four: Group) -> None:
    assert {setting.split(".")[0] for setting in four.different} == {"method"}
    assert four.different["method.learning_rate"] == {"full": 5e-05, "lora": 0.0005, "qlora": 0.0005}
    assert four.identical["train.batch_size"] == 16
    assert pair_of(four, "lora", "qlora").different == {
        "method.quantization.scheme": (None, "nf4"),
        "method.quantization.double_quantization": (None, True),
    }


def test_of_every_setting_it_is_said_where_it_belongs(four: Group) -> None:
    for pair in four.pairs:
        assert not set(pair.identical) & set(pair.different)
        trained = "base" not in (pair.left, pair.right)
        assert ("train.epochs" in pair.identical) == trained  # nothing to the base
        assert "train.max_length" in pair.identical
    assert pair_of(four, "lora", "qlora").identical["method.adapter.rank"] == 16


def test_a_fitted_micro_batch_is_declared_and_no_obstacle() -> None:
    group = group_of("method=full,lora", "train.micro_batch=4,8")
    pair = pair_of(group, "full (micro_batch=4)", "lora (micro_batch=8)")
    assert (pair.different["train.micro_batch"], pair.reasons) == ((4, 8), [])


def test_another_budget_is_a_reason_before_anything_runs() -> None:
    group = group_of("method=full,lora", "train.epochs=1,3")
    unfair = {(p.left, p.right) for p in group.pairs if p.reasons}
    assert len(unfair) == 4
    (reason,) = pair_of(group, "full (epochs=1)", "lora (epochs=3)").reasons
    assert (reason.name, reason.text) == ("budget", "their settings differ (train.epochs 1 and 3)")
    lines = plan_view.verdicts(group, frozenset())
    assert lines[0].startswith("2 of 6 pairs may be compared")
    assert "4 will not be compared for budget: full (epochs=1) and full (epochs=3), their settings" in lines[1]
    assert "1 more in fairness-plan.json; allow_different=budget would" in lines[1]
    assert plan_view.verdicts(group, frozenset({"budget"})) == [lines[0].replace("2 of 6", "6 of 6")]


def test_a_seed_without_partner_is_told() -> None:
    configs = compose(["method=full", "seed=0,1"], multirun=True) + compose(["method=lora"], multirun=True)
    (group,) = groups_of(configs)
    (reason,) = group.pairs[0].reasons
    assert (str(reason), reason.may_be_allowed) == ("only one of them has seed 1", False)


def test_models_and_tasks_are_groups_of_their_own() -> None:
    groups = groups_of(compose(["method=full,lora", "task=docstrings,gsm8k"], multirun=True))
    assert [(len(group.pairs), group.name.split(" / ")[1]) for group in groups] == [(1, "docstrings"), (1, "gsm8k")]


def test_one_run_has_no_pairs() -> None:
    assert group_of("method=lora").pairs == []


def test_the_file_holds_every_pair_whole(four: Group) -> None:
    (content,) = json.loads(to_json([four]))
    assert content["seeds"]["lora"] == [0, 1]
    for pair, kept in zip(four.pairs, content["pairs"], strict=True):
        common = {k: v for k, v in content["identical_for_all"].items() if k in pair.identical}
        assert common | kept["identical_too"] == pair.identical
        assert {k: tuple(v) for k, v in kept["different"].items()} == pair.different
        assert kept["reasons_against"] == {}


def test_the_table_is_short(four: Group) -> None:
    text = shown(four)
    assert f"{len(four.identical)} settings. Different:" in plan_view.heading(four)
    rows = [line.split() for line in text.splitlines()]
    assert ["method.learning_rate", "-", "5e-05", "0.0005", "0.0005"] in rows
    assert ["method.adapter.*", "-", "-", "8", "alike", "8", "alike"] in rows
    assert len(rows) < 10


def test_a_setting_of_a_part_that_differs_has_its_own_row() -> None:
    text = shown(group_of("method=lora,qlora", "method.adapter.rank=8,16"))
    assert "method.adapter.rank" in text


def test_many_arms_are_counted() -> None:
    text = shown(group_of("method=lora", "method.learning_rate=1e-4,2e-4,3e-4,4e-4,5e-4,6e-4,7e-4"))
    assert "0.0001 (1 arms), 0.0002 (1 arms)" in text
