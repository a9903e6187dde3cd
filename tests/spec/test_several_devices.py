"""Several devices in a run's description: what goes together, and names that do not change for one device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.compose import compose
from bench.config import ConfigurationError, RunConfig
from bench.identity import comparison_key, run_id
from bench.record import Record, from_json

RESULTS = Path(__file__).parents[2] / "results"
REFERENCE = RESULTS / "reference"
TWO = ("hardware.devices=2", "hardware.strategy=fsdp")


def composed(*overrides: str) -> RunConfig:
    (config,) = compose(list(overrides), multirun=False)
    return config


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("hardware.devices=2",), "hardware.strategy: none with hardware.devices=2"),
        (("hardware.strategy=ddp",), "hardware.strategy: ddp needs hardware.devices of at least 2"),
        (("hardware.devices=8", "hardware.strategy=ddp"), "8 devices with train.micro_batch=4 do not divide"),
        (("hardware.devices=2", "hardware.strategy=ddp", "hardware.cpu_offload=true"), "hardware.cpu_offload: ddp"),
        ((*TWO, "method=full_adam8bit"), "method.optimizer: adamw_8bit cannot work on cut state"),
        ((*TWO, "method=qlora", "method.quantization.scheme=int8"), "int8 weights cannot be cut"),
        ((*TWO, "method=lora", "method.adapter.loraplus_lr_ratio=16"), "method.adapter.loraplus_lr_ratio"),
        (("hardware.devices=2", "hardware.strategy=dpp"), "hardware.strategy"),
    ],
)
def test_what_does_not_go_together_is_told(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        composed(*overrides)
    (problem,) = caught.value.problems
    assert told in problem


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_every_strategy_takes_every_method(strategy: str) -> None:
    for method in ("full", "lora", "qlora"):
        composed(f"method={method}", "hardware.devices=4", f"hardware.strategy={strategy}")


def test_devices_and_strategy_name_a_run() -> None:
    one, two = composed("method=lora"), composed("method=lora", *TWO)
    other = composed("method=lora", "hardware.devices=2", "hardware.strategy=ddp")
    assert len({run_id(config) for config in (one, two, other)}) == 3
    assert len({comparison_key(config) for config in (one, two, other)}) == 3


def test_what_is_not_trained_is_one_run_on_any_number_of_devices() -> None:
    assert run_id(composed("method=base")) == run_id(composed("method=base", *TWO))


def test_runs_of_before_keep_their_names() -> None:
    plans = {
        path.parent.name: from_json(RunConfig, path.read_bytes())
        for path in (*RESULTS.glob("reference/*/plan.json"), *RESULTS.glob("tuned/*/plan.json"))
    }
    assert len(plans) > 10
    assert {name: run_id(config) for name, config in plans.items()} == {name: name for name in plans}


def test_records_of_before_are_read() -> None:
    for path in REFERENCE.glob("*/record.json"):
        record = from_json(Record, path.read_bytes())
        if record.train:
            assert (record.train.devices, record.train.strategy, record.train.per_device) == (1, "none", [])
            assert replace(record.train, devices=2) != record.train
