"""A run description checks itself, and says everything that is wrong at once."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest

from bench.compose import compose, with_settings
from bench.config import RunConfig, flat, roles, to_mapping
from bench.mistakes import ConfigurationError, from_mapping, known_keys

TWO = ("hardware.devices=2", "hardware.strategy=fsdp")


@cache
def one(*overrides: str) -> RunConfig:
    (config,) = compose(list(overrides), multirun=False)
    return config


@pytest.fixture
def lora() -> RunConfig:
    return one("method=lora")


def test_a_config_survives_its_json_form(lora: RunConfig) -> None:
    assert from_mapping(to_mapping(lora)) == lora


def test_a_config_is_frozen(lora: RunConfig) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        lora.seed = 1


def test_all_mistakes_are_reported_at_once(lora: RunConfig) -> None:
    mapping = to_mapping(lora)
    mapping["train"] |= {"batch_size": -1, "learning_rat": 1, "schedule": "cosin"}
    mapping["seed"] = "zero"
    with pytest.raises(ConfigurationError) as caught:
        from_mapping(mapping)
    text = caught.value.message()
    assert len(caught.value.problems) == 4
    assert "train.batch_size" in text
    assert "given -1" in text
    assert "'cosine', 'linear'" in text  # what is allowed
    assert "train.learning_rat: no such setting" in text


@pytest.mark.parametrize(
    ("section", "change", "expected"),
    [
        ("train", {"micro_batch": 5}, "does not divide train.batch_size=16"),
        ("train", {"max_length": 100_000}, "beyond the 8192 positions"),
        ("method", {"adapter": None}, "method.adapter: missing"),
        ("method", {"adapter": {"reduce_intruders": 0.5, "use_dora": True}}, "method.adapter.reduce_intruders: PEFT"),
        ("method", {"adapter": {"reduce_intruders": 0.5}, "quantization": {}}, "method.adapter.reduce_intruders: PEFT"),
        ("method", {"learning_rate": None}, "method.learning_rate: missing"),
        ("method", {"shots": 2}, "method.shots"),
        ("task", {"source": "files"}, "task.train_file: missing"),
        ("task", {"source": "hub"}, "task.hub_dataset: missing"),
        ("task", {"labels": ["yes", "Yes."]}, "task.labels: 'yes' and 'Yes.' are one label"),
        ("task", {"metrics": ["a:grade", "b:grade"]}, "task.metrics: a:grade and b:grade"),
        ("method", {"retrieval": "bm25", "trains": "nothing"}, "method.retrieval: bm25 has nothing"),
        ("suite", {"source": "local"}, "suite.path: missing"),
        ("paths", {"artifacts": "./results"}, "paths.artifacts: ./results is paths.results too"),
    ],
)
def test_settings_that_do_not_fit_together(
    lora: RunConfig, section: str, change: dict[str, Any], expected: str
) -> None:
    mapping = to_mapping(lora)
    mapping[section] |= change
    with pytest.raises(ConfigurationError, match=expected):
        from_mapping(mapping)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("hardware.devices=2",), "hardware.strategy: none with hardware.devices=2"),
        (("hardware.strategy=ddp",), "hardware.strategy: ddp needs hardware.devices of at least 2"),
        (("hardware.devices=8", "hardware.strategy=ddp"), "8 devices with train.micro_batch=4 do not divide"),
        (("hardware.devices=2", "hardware.strategy=ddp", "hardware.cpu_offload=true"), "hardware.cpu_offload: ddp"),
        ((*TWO, "method=full_adam8bit"), "method.optimizer: adamw_8bit cannot work on cut state"),
        ((*TWO, "method=qlora", "method.quantization.scheme=int8"), "int8 weights cannot be cut"),
        ((*TWO, "method=lora_reduced"), "method.adapter.reduce_intruders: needs whole matrices"),
        ((*TWO, "method=lora", "method.adapter.loraplus_lr_ratio=16"), "method.adapter.loraplus_lr_ratio"),
        (("hardware.devices=2", "hardware.strategy=dpp"), "hardware.strategy"),
    ],
)
def test_what_does_not_go_together_is_named(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        one(*overrides)
    (problem,) = caught.value.problems
    assert told in problem


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_every_strategy_takes_every_method(strategy: str) -> None:
    for method in ("full", "lora", "qlora"):
        one(f"method={method}", "hardware.devices=4", f"hardware.strategy={strategy}")


def test_every_setting_has_its_role_or_that_of_its_part(lora: RunConfig) -> None:
    assert set(flat(to_mapping(lora))) <= set(roles())
    assert roles()["train.epochs"].requirement == roles()["train"].requirement == "budget"
    assert (roles()["train.max_length"].stage, roles()["model.architecture.head_dim"].stage) == ("data", "planner")
    assert roles()["method.learning_rate"].keeps_rate
    assert not roles()["method.adapter.rank"].keeps_rate


def test_settings_are_changed_by_their_dotted_names(lora: RunConfig) -> None:
    other = with_settings(lora, {"method.adapter.rank": 3, "seed": 4})
    assert (other.method.adapter.rank, other.seed, other.task) == (3, 4, lora.task)  # type: ignore[union-attr]
    assert known_keys(["method", "quantization"]) == ["scheme", "double_quantization"]
    assert known_keys(["method", "nothing"]) == []
