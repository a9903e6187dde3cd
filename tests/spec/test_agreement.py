"""Every setting belongs to a requirement or is free by intent, and exceptions are named as they are called."""

from __future__ import annotations

import pytest

from bench.compose import compose
from bench.config import ConfigurationError, RunConfig
from bench.fairness import REQUIREMENTS, allowed_names, differing_settings


def described(*overrides: str) -> RunConfig:
    (config,) = compose(list(overrides), multirun=False)
    return config


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
