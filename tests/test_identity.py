"""Which keys a setting changes: a table of single changes, and names of arms."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench.compose import compose, with_settings
from bench.config import RunConfig, flat, roles, to_mapping
from bench.fairness import REQUIREMENTS, requirement_of
from bench.identity import artifact_folder, comparison_key, data_key, names_of_arms, run_id, training_key, tuning_key
from bench.record import Record, from_json

REFERENCE = Path(__file__).parents[1] / "results/reference"
KEYS = {"data": data_key, "training": training_key, "run": run_id, "comparison": comparison_key, "tuning": tuning_key}


@cache
def one(*overrides: str) -> RunConfig:
    (config,) = compose(list(overrides), multirun=False)
    return config


def changed_keys(base: RunConfig, setting: str, value: Any) -> str:
    other = with_settings(base, {setting: value})
    return " ".join(name for name, key in KEYS.items() if key(base) != key(other))


@pytest.mark.parametrize(
    ("setting", "value", "changed"),
    [
        ("model.revision", "abc", "data training run comparison tuning"),
        ("task.prompt", "{code}", "data training run comparison tuning"),
        ("train.max_length", 512, "data training run comparison tuning"),
        ("task.train_file", "a.jsonl", ""),  # its content counts, not its place
        ("content.train_file", "a", "data training run comparison tuning"),
        ("content.test_file", "a", "data run comparison"),
        ("content.packages", "a", "data training run comparison tuning"),
        ("content.tokenizer", "a", "data training run comparison tuning"),
        ("content.weights", "a", "training run comparison tuning"),
        ("content.suite", "a", "run comparison"),
        ("content.metrics", "a", "run comparison"),
        ("train.epochs", 3, "training run comparison tuning"),
        ("train.early_stopping_points", 2, "training run comparison tuning"),
        ("task.general_share", 0.1, "data training run comparison tuning"),
        ("method.adapter.reduce_intruders", 0.5, "training run"),
        ("method.adapter.rank", 64, "training run tuning"),
        ("method.name", "mine", "training run tuning"),
        ("method.learning_rate", 1e-5, "training run"),
        ("train.micro_batch", 2, "training run"),
        ("seed", 5, "training run"),
        ("train.compile", "off", "training run comparison"),
        ("hardware.device", "cuda", "training run comparison"),
        ("hardware.compute_dtype", "float32", "training run comparison"),
        ("task.test_examples", 7, "data run comparison"),  # evaluation alone from here on: nothing is trained again
        ("task.max_new_tokens", 7, "data run comparison"),
        ("task.metrics", ["bleu"], "run comparison"),
        ("suite.batch_size", 3, "run comparison"),
        ("hardware.generate_batch", 3, "run comparison"),
        ("model.max_context", 1024, "run comparison"),
        ("method.dither", False, ""),  # of no use to an adapter
        ("hardware.strategy", "fsdp", "comparison"),  # of no use to one device
        ("method.control", True, ""),
        ("hardware.name", "mine", ""),
        ("hardware.price_usd_per_hour", 3.0, ""),
        ("model.parameters", 3, ""),
        ("train.checkpoint_every_steps", 3, ""),
        ("paths.results", "elsewhere", ""),
        ("sweep", "other", ""),
        ("serve.repetitions", 9, ""),
        ("evaluation.points", [0.5], "training run"),
        ("evaluation.weights", True, "run"),
        ("evaluation.intruder_vectors", 3, ""),  # nor without weights
        ("evaluation.examples", 9, ""),  # of no use without points
    ],
)
def test_a_setting_changes_the_keys_of_its_stage_and_of_later_ones(setting: str, value: Any, changed: str) -> None:
    assert changed_keys(one("method=lora"), setting, value) == changed


@pytest.mark.parametrize(
    "setting", ["train.epochs", "train.batch_size", "method.learning_rate", "method.optimizer", "seed"]
)
def test_the_base_does_not_depend_on_training(setting: str) -> None:
    value = "adamw_8bit" if setting == "method.optimizer" else 1e-5 if setting.endswith("rate") else 7
    base = one("method=base")
    assert run_id(base) == run_id(with_settings(base, {setting: value}))
    assert run_id(base).split("-")[-2] == ""  # s-: no seed


def test_settings_that_were_added_leave_unset_the_keys_of_recorded_runs() -> None:
    record = from_json(Record, next(REFERENCE.glob("lora-*-s0-*/record.json")).read_bytes())
    assert (run_id(record.config), comparison_key(record.config)) == (record.run_id, record.comparison_key)


def test_solved_examples_depend_on_the_seed_and_the_context() -> None:
    prompted = one("method=base_fewshot")
    assert changed_keys(prompted, "seed", 5) == "data training run"
    assert changed_keys(prompted, "model.max_context", 4096) == "data run comparison"
    assert changed_keys(prompted, "train.epochs", 5) == "comparison"


def test_dither_and_devices_count_where_they_apply() -> None:
    assert "training" in changed_keys(one("method=full"), "method.dither", False)
    pair = one("method=full", "hardware=cpu_pair")
    assert changed_keys(pair, "hardware.strategy", "fsdp") == "training run comparison"
    assert changed_keys(one("method=base", "hardware=cpu_pair"), "hardware.strategy", "fsdp") == "comparison"


def test_a_path_is_measured_of_trained_runs_and_more_items_train_nothing() -> None:
    along = with_settings(one("method=full"), {"evaluation.points": [0.5]})
    assert changed_keys(along, "evaluation.suite_items", 9) == "run"
    assert changed_keys(one("method=base"), "evaluation.points", [0.5]) == ""


def test_methods_share_data_and_comparison_and_evaluations_share_weights() -> None:
    runs = compose(["method=base,full,lora,qlora", "seed=0,1"], multirun=True)
    assert len({data_key(run) for run in runs}) == len({comparison_key(run) for run in runs}) == 1
    assert len({run_id(run) for run in runs}) == 7
    one_training = compose(["method=lora", "suite=none,quick"], multirun=True)
    assert len({run_id(run) for run in one_training}) == 2
    assert len({training_key(run) for run in one_training}) == 1
    assert len({artifact_folder(run) for run in one_training}) == 2


def test_every_setting_has_a_role_and_a_known_requirement() -> None:
    for setting in flat(to_mapping(one("method=qlora"))):
        assert requirement_of(setting) in {*REQUIREMENTS, None}, setting
    measured = {name: role for name, role in roles().items() if role.stage in ("data", "evaluation")}
    free = {name for name, role in measured.items() if role.requirement is None and "evaluation" not in name}
    assert free == {
        "method.shots",
        "method.retrieval",
        "content.loaded",
    }  # what changes data or evaluation must agree, but for solved examples, judged arms, measures along training


@pytest.mark.parametrize(
    ("setting", "trained", "untrained"),
    [
        ("train.epochs", "budget", None),
        ("train.micro_batch", None, None),  # fitted by method
        ("train.max_length", "budget", "budget"),  # prompts are cut by it too
        ("train.compile", "numerics", None),
        ("task.train_examples", "task", None),
        ("task.test_examples", "task", "task"),
        ("task.general_share", "task", None),
        ("train.early_stopping_points", "budget", None),
        ("model.revision", "model", "model"),
        ("suite.batch_size", "suite", "suite"),
        ("hardware.threads", "threads", None),  # what was used is measured
        ("hardware.devices", "device", None),  # evaluation is by one
        ("hardware.generate_batch", "hardware", "hardware"),
        ("hardware.price_usd_per_hour", None, None),
        ("content.train_file", "task", None),
        ("content.test_file", "task", "task"),
        ("content.weights", "model", "model"),
        ("method.learning_rate", None, None),
        ("seed", None, None),
    ],
)
def test_the_requirement_of_a_setting(setting: str, trained: str | None, untrained: str | None) -> None:
    assert requirement_of(setting) == trained
    assert requirement_of(setting, trained=False) == untrained


def test_arms_are_called_by_what_varies() -> None:
    runs = [
        ("a", "lora", one("method.learning_rate=1e-4")),
        ("b", "lora", one("method.learning_rate=2e-4", "seed=1")),
        ("c", "full", one("method=full")),
    ]
    assert names_of_arms(runs) == {"a": "lora (learning_rate=0.0001)", "b": "lora (learning_rate=0.0002)", "c": "full"}


def test_arms_of_several_sweeps_are_called_after_them() -> None:
    def run(sweep: str, rate: float, examples: int) -> RunConfig:
        return one(f"sweep={sweep}", f"method.learning_rate={rate}", f"task.train_examples={examples}")

    named = names_of_arms([("a", "lora", run("monday", 1e-4, 100)), ("b", "lora", run("friday", 2e-4, 200))])
    assert named == {"a": "lora (monday)", "b": "lora (friday)"}
    several = [("a", "lora", run("monday", 1e-4, 100)), ("b", "lora", run("monday", 2e-4, 200))]
    assert names_of_arms(several)["a"] == "lora (learning_rate=0.0001, train_examples=100)"
    again = [*several, ("c", "lora", run("friday", 1e-4, 100))]  # the same settings in two sweeps are one arm
    assert names_of_arms(again)["a"] == names_of_arms(again)["c"]
