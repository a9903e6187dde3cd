"""`train.micro_batch=auto`: where the planner starts, and what it means for a run's name."""

from __future__ import annotations

import pytest

from bench.compose import compose
from bench.identity import comparison_key, run_id
from bench.mistakes import ConfigurationError
from bench.planner.advice import Machine, sizes, starting_micro_batch


def test_the_candidates_leave_the_effective_batch_whole() -> None:
    assert sizes(12) == [1, 2, 3, 4, 6, 12]


def test_the_planner_says_where_to_start() -> None:
    (config,) = compose(["method=lora", "train.micro_batch=auto"], multirun=False)
    starts = [starting_micro_batch(config, 400, Machine("cpu", gib)) for gib in (2, 4, 16)]
    assert starts == sorted(starts)
    assert starts[0] < starts[-1]
    assert starting_micro_batch(config, 400, Machine("cuda", None)) == 4  # nothing is known of the device


def test_auto_and_a_number_are_two_runs_of_one_comparison() -> None:
    overrides = ["method=lora", "train.micro_batch=auto,4"]
    auto, four = compose(overrides, multirun=True)
    (budget,) = compose([*overrides[:1], "train.micro_batch=auto", "hardware.memory_budget_gib=2"], multirun=False)
    assert len({run_id(c) for c in (auto, four, budget)}) == 3
    assert len({comparison_key(c) for c in (auto, four, budget)}) == 1


def test_a_budget_that_nothing_reads_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match=r"hardware\.memory_budget_gib: 4 is read by train\.micro_batch=auto"):
        compose(["method=lora", "hardware.memory_budget_gib=4"], multirun=False)


@pytest.mark.parametrize("setting", ["train.micro_batch=auto", "train.checkpoint_every_steps=10"])
def test_several_devices_are_neither_fitted_nor_resumed(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=r"hardware\.devices=2"):
        compose(["method=lora", "hardware.devices=2", "hardware.strategy=ddp", setting], multirun=False)


def test_a_wrong_micro_batch_is_told_what_is_allowed() -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose(["method=lora", "train.micro_batch=many"], multirun=False)
    assert all(problem.startswith("train.micro_batch: ") for problem in caught.value.problems)
    assert any("'auto'" in problem for problem in caught.value.problems)
