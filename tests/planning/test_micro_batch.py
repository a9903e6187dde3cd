"""The search of the largest micro-batch that fits: it ends at the true one, in few probes."""

from __future__ import annotations

import pytest

from bench.compose import compose
from bench.config import ConfigurationError
from bench.identity import comparison_key, fit_key, run_id
from bench.planner.advice import MOST_PROBES, first_size, largest_fitting, next_size, sizes

GIB = 2**30


def search(batch_size: int, limit: int, start: int) -> tuple[list[int], int | None, bool]:
    """(what was probed, what was found, whether it is the largest) where micro-batches up to `limit` fit."""
    allowed, fits = sizes(batch_size), dict[int, bool]()
    while (rows := next_size(allowed, fits, start)) is not None:
        assert rows not in fits
        fits[rows] = rows <= limit
    return list(fits), *largest_fitting(allowed, fits)


def test_the_candidates_leave_the_effective_batch_whole() -> None:
    assert sizes(12) == [1, 2, 3, 4, 6, 12]


def test_a_right_estimate_takes_two_probes() -> None:
    assert search(16, limit=4, start=4) == ([4, 8], 4, True)
    assert search(16, limit=16, start=16) == ([16], 16, True)
    assert search(16, limit=1, start=1) == ([1, 2], 1, True)


def test_the_search_halves_what_is_left() -> None:
    assert search(64, limit=1, start=64) == ([64, 32, 4, 1], 1, False)  # 2 was not tried
    assert search(64, limit=64, start=1) == ([1, 2, 16, 32], 32, False)  # nor 64


@pytest.mark.parametrize("batch_size", [1, 4, 12, 16, 64, 128])
def test_what_is_found_fits_and_is_the_largest_unless_it_says_otherwise(batch_size: int) -> None:
    for start in sizes(batch_size):
        for limit in [0, *sizes(batch_size)]:
            probed, found, is_largest = search(batch_size, limit, start)
            assert len(probed) <= MOST_PROBES
            if limit == 0:
                assert found is None
                assert 1 in probed
            elif is_largest:
                assert found == limit
            else:
                assert found is not None
                assert found <= limit  # the one above was not tried


def test_the_planner_says_where_to_start() -> None:
    (config,) = compose(["method=lora", "train.micro_batch=auto"], multirun=False)
    starts = [first_size(config, 400, "cpu", gib * GIB) for gib in (2, 4, 16)]
    assert starts == sorted(starts)
    assert starts[0] < starts[-1]
    assert first_size(config, 400, "cuda", None) == 4  # nothing is known of the device


def test_auto_and_a_number_are_two_runs_of_one_comparison() -> None:
    overrides = ["method=lora", "train.micro_batch=auto,4"]
    auto, four = compose(overrides, multirun=True)
    (budget,) = compose([*overrides[:1], "train.micro_batch=auto", "hardware.memory_budget_gib=2"], multirun=False)
    assert len({run_id(c) for c in (auto, four, budget)}) == 3
    assert len({comparison_key(c) for c in (auto, four, budget)}) == 1


def test_one_search_holds_for_every_seed_and_learning_rate() -> None:
    overrides = ["train.micro_batch=auto", "seed=0,1", "method.learning_rate=1e-4,2e-4"]
    assert len({fit_key(c) for c in compose(["method=lora", *overrides], multirun=True)}) == 1
    assert len({fit_key(c) for c in compose(["method=lora,full", *overrides], multirun=True)}) == 2


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
