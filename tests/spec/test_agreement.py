"""Every setting belongs to a requirement or is free by intent, and exceptions are named as they are called."""

from __future__ import annotations

import pytest

from bench.compose import compose
from bench.config import ConfigurationError, RunConfig, flat, to_mapping
from bench.fairness import REQUIREMENTS, allowed_names, differing_settings, requirement_of
from bench.identity import names_of_arms


def described(*overrides: str) -> RunConfig:
    (config,) = compose(list(overrides), multirun=False)
    return config


def test_no_setting_is_without_a_place() -> None:
    """A new group of settings must be put under a name, or be declared free, or it could not be allowed."""
    free = {"method", "seed", "sweep", "paths", "tracking", "rates", "learning_rate_source", "trial", "serve"}
    for setting in flat(to_mapping(described("method=qlora"))):
        name = requirement_of(setting)
        part = setting.partition(".")[0]
        assert name in REQUIREMENTS or (
            name is None and (part in free or part in ("train", "hardware") or setting.startswith("model.architecture"))
        ), setting


@pytest.mark.parametrize(
    ("setting", "trained", "untrained"),
    [
        ("train.epochs", "budget", None),
        ("train.micro_batch", None, None),  # fitted by method
        ("train.max_length", "budget", "budget"),  # prompts are cut by it too
        ("train.compile", "numerics", None),
        ("task.train_examples", "task", None),
        ("task.test_examples", "task", "task"),
        ("model.revision", "model", "model"),
        ("suite.batch_size", "suite", "suite"),
        ("hardware.threads", "threads", None),  # what was used is measured
        ("hardware.devices", "device", None),  # evaluation is by one
        ("hardware.strategy", "device", None),
        ("hardware.generate_batch", "hardware", "hardware"),
        ("hardware.price_usd_per_hour", None, None),
        ("method.learning_rate", None, None),
        ("seed", None, None),
    ],
)
def test_the_requirement_of_a_setting(setting: str, trained: str | None, untrained: str | None) -> None:
    assert requirement_of(setting) == trained
    assert requirement_of(setting, trained=False) == untrained


def test_methods_and_seeds_differ_in_nothing_that_must_agree() -> None:
    assert differing_settings(described("method=lora"), described("method=full", "seed=3", "sweep=other")) == []


def test_every_difference_is_told_with_its_values() -> None:
    other = described("train.epochs=3", "train.schedule=linear", "hardware.threads=1", "task.max_new_tokens=32")
    reasons = differing_settings(described(), other)
    assert [reason.name for reason in reasons] == ["task", "budget", "threads"]
    assert "train.epochs 1 and 3, train.schedule cosine and linear" in reasons[1].text


def test_a_long_list_says_what_it_leaves_out() -> None:
    changed = ["epochs=3", "schedule=linear", "batch_size=32", "max_length=512", "warmup_fraction=0.1",
               "weight_decay=0.1"]  # fmt: skip
    (reason,) = differing_settings(described(), described(*(f"train.{text}" for text in changed)))
    assert reason.text.endswith(", and 2 more)")


def test_names_are_read() -> None:
    assert allowed_names("device, threads") == {"device", "threads"}


@pytest.mark.parametrize("given", ["", ","])
def test_no_name_lists_the_names(given: str) -> None:
    with pytest.raises(ConfigurationError, match=r"name what may differ.*budget.*device.*threads"):
        allowed_names(given)


def test_all_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError) as caught:
        allowed_names("devise,device,seed")
    first, second = caught.value.problems
    assert "devise" in first
    assert "did you mean 'device'" in first
    assert all(name in second for name in REQUIREMENTS)


def test_arms_are_called_by_what_varies() -> None:
    runs = [
        ("a", "lora", described("method.learning_rate=1e-4")),
        ("b", "lora", described("method.learning_rate=2e-4", "seed=1")),
        ("c", "full", described("method=full")),
    ]
    assert names_of_arms(runs) == {"a": "lora (learning_rate=0.0001)", "b": "lora (learning_rate=0.0002)", "c": "full"}


def test_arms_of_several_sweeps_are_called_after_them() -> None:
    def run(sweep: str, rate: float, examples: int) -> RunConfig:
        return described(f"sweep={sweep}", f"method.learning_rate={rate}", f"task.train_examples={examples}")

    told = names_of_arms([("a", "lora", run("monday", 1e-4, 100)), ("b", "lora", run("friday", 2e-4, 200))])
    assert told == {"a": "lora (monday)", "b": "lora (friday)"}
    several = [("a", "lora", run("monday", 1e-4, 100)), ("b", "lora", run("monday", 2e-4, 200))]
    assert names_of_arms(several)["a"] == "lora (learning_rate=0.0001, train_examples=100)"
    again = [*several, ("c", "lora", run("friday", 1e-4, 100))]  # the same settings in two sweeps are one arm
    assert names_of_arms(again)["a"] == names_of_arms(again)["c"]
