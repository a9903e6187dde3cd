"""Verdicts, micro-batches, remedies and time of planned runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.compose import compose
from bench.config import RunConfig
from bench.mistakes import ConfigurationError
from bench.planner.advice import GIB, Machine, architecture_of, largest_micro_batch, plans, predict, remedies, verdict
from bench.planner.time import LinearCosts, PlanConfig, duration, planned_costs

CARD = Machine("cuda", 24.0)
OPTIONS = PlanConfig()


def config_of(*overrides: str) -> RunConfig:
    (config,) = compose(["model=llama-3.1-8b", *overrides], multirun=False)
    return config


def test_tight_is_within_a_tenth() -> None:
    found = [verdict(int(gib * GIB), 10.0) for gib in (8.9, 9.1, 10.9, 11.1)]
    assert found == ["fits", "tight", "tight", "does not fit"]
    assert verdict(1, None) == "unknown"


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    config = config_of("method=qlora", "train.gradient_checkpointing=true", "train.max_length=4096")
    rows = largest_micro_batch(config, OPTIONS, CARD)
    assert rows is not None
    totals = [
        predict(replace(config, train=replace(config.train, micro_batch=n)), OPTIONS, CARD).total
        for n in (rows, 2 * rows)
    ]
    assert verdict(totals[0], 24.0) == "fits"
    assert rows == config.train.batch_size or verdict(totals[1], 24.0) != "fits"


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_every_proposed_change_fits(method: str) -> None:
    settings = {"method": method, "train.max_length": "4096", "hardware.device": "cuda", "plan.memory_gib": "24"}
    found = remedies(config_of(f"method={method}", "train.max_length=4096"), OPTIONS, CARD)
    assert found
    for remedy in found:
        changed = settings | dict(text.split("=", 1) for text in remedy.change.split())
        (plan,) = plans(["model=llama-3.1-8b", *(f"{key}={value}" for key, value in changed.items())])
        assert (plan.verdict, plan.peak_memory_bytes) == ("fits", remedy.peak_memory_bytes)


def test_a_full_8b_does_not_fit_a_small_card_and_says_why() -> None:
    (plan,) = plans(["model=llama-3.1-8b", "method=full", "hardware.device=cuda", "plan.memory_gib=24"])
    assert plan.verdict == "does not fit"
    assert plan.largest_term == "optimizer"
    assert plan.largest_micro_batch is None
    assert plan.remedies


def test_every_memory_and_every_method_is_a_plan() -> None:
    made = plans(["model=llama-3.2-1b", "method=full,lora", "hardware=h100", "plan.memory_gib=24,48"])
    assert [(p.method, p.memory_gib) for p in made] == [("full", 24), ("full", 48), ("lora", 24), ("lora", 48)]


def test_runs_that_differ_in_the_device_alone_are_not_one() -> None:
    made = plans(["model=llama-3.2-1b", "hardware=h100,a100"])
    assert [p.hardware for p in made] == ["h100", "a100"]


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        plans(["model=llama-3.1-8", "plan.paded=false", "plan.utilization=2", "train.epoch=1"])
    text = caught.value.message()
    assert len(caught.value.problems) == 4
    assert "plan.paded: no such setting (did you mean 'padded'?)" in text
    assert "plan.utilization" in text
    assert "did you mean 'llama-3.1-8b'?" in text


def test_more_devices_than_examples_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match=r"8 devices with train\.micro_batch=4 do not divide"):
        plans(["model=llama-3.2-1b", "hardware=h100", "hardware.devices=8", "hardware.strategy=fsdp"])


def test_devices_share_a_plan() -> None:
    shared = ["hardware.devices=4", "hardware.strategy=fsdp"]
    one, four = (plans(["model=llama-3.2-1b", "method=full", "hardware=h100", *more])[0] for more in ([], shared))
    assert (four.devices, four.strategy) == (4, "fsdp")
    assert four.terms.weights < one.terms.weights / 3
    assert four.duration.tokens_per_second[0] == pytest.approx(4 * one.duration.tokens_per_second[0])


def test_a_model_without_an_architecture_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.architecture: folder has no numbers, and no config\.json"):
        plans(["model=folder", f"model.location={tmp_path}"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigurationError, match="'gpt2' is not one that the planner knows; allowed: llama"):
        plans(["model=folder", f"model.location={tmp_path}"])


def test_a_folder_is_read(tmp_path: Path) -> None:
    numbers = {
        "model_type": "qwen2", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    (plan,) = plans(["model=folder", f"model.location={tmp_path}", "method=full"])
    assert plan.parameters_base == 100 * 16 + 4 * 16 * 16 + 3 * 16 + 3 * 16 * 32 + 3 * 16


def test_planned_flops_by_hand() -> None:
    (full,) = compose(["model=tiny-random", "method=full"], multirun=False)
    (qlora,) = compose(["model=tiny-random", "method=qlora"], multirun=False)
    base = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
    adapter = 2 * 16 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))
    architecture = architecture_of(full.model)
    assert planned_costs(architecture, full.method) == LinearCosts(6 * base, 6 * 261 * 64, 12 * 2 * 64)
    frozen = LinearCosts(4 * base + 6 * adapter, 4 * 261 * 64, 12 * 2 * 64)
    assert planned_costs(architecture, qlora.method) == frozen


def test_time_by_hand() -> None:
    config = config_of("method=full", "hardware=h100", "hardware.price_usd_per_hour=3", "task.train_examples=1000")
    options = replace(OPTIONS, tokens_per_example=500, utilization=(0.4, 0.4))
    found = duration(config, architecture_of(config.model), options)
    linear = 8_030_261_248 - 128256 * 4096 - 65 * 4096  # without the embedding and the norms, with the head
    flops_per_token = 6 * linear + 12 * 32 * 32 * 128 * 501 / 2
    assert found.tokens == 500_000
    speed = 0.4 * 989e12 / flops_per_token
    hours = 500_000 / speed / 3600
    assert found.tokens_per_second == pytest.approx((speed, speed), rel=1e-6)
    assert found.hours == pytest.approx((hours, hours), rel=1e-6)
    assert found.kwh == pytest.approx((hours * 0.7, hours * 0.7), rel=1e-6)
    assert found.usd == pytest.approx((hours * 3, hours * 3), rel=1e-6)


def test_recomputation_takes_time() -> None:
    plain, again = config_of("hardware=h100"), config_of("hardware=h100", "train.gradient_checkpointing=true")
    fast, slow = (duration(c, architecture_of(c.model), OPTIONS).tokens_per_second or () for c in (plain, again))
    assert 4 / 6 < slow[0] / fast[0] < 4 / 5  # LoRA: 4 FLOPs a weight become 6; the head is not repeated


def test_what_is_not_known_is_none() -> None:
    config = config_of("hardware=cpu")
    found = duration(config, architecture_of(config.model), OPTIONS)
    assert (found.tokens_per_second, found.hours, found.usd) == (None, None, None)
    no_count = config_of("hardware=h100", "task=gsm8k")
    assert duration(no_count, architecture_of(no_count.model), OPTIONS).hours is None
