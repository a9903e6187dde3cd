"""Verdicts, micro-batches, remedies, time: what a person reads of the planner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.compose import compose
from bench.config import ConfigurationError, RunConfig
from bench.planner.advice import GIB, Machine, architecture_of, largest_micro_batch, plans, predict, remedies, verdict
from bench.planner.memory import PlanConfig
from bench.planner.time import duration

CARD = Machine("cuda", 24.0)
OPTIONS = PlanConfig()


def config_of(*overrides: str) -> RunConfig:
    (config,) = compose(["model=llama-3.1-8b", *overrides], multirun=False)
    return config


def test_marginal_is_within_a_tenth() -> None:
    assert [verdict(int(gib * GIB), 10.0) for gib in (8.9, 9.1, 10.9, 11.1)] == [
        "fits",
        "marginal",
        "marginal",
        "does not fit",
    ]
    assert verdict(1, None) == "unknown"


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    config = config_of("method=qlora", "train.gradient_checkpointing=true")
    rows = largest_micro_batch(config, OPTIONS, CARD)
    assert rows is not None
    totals = [
        predict(replace(config, train=replace(config.train, micro_batch=n)), OPTIONS, CARD).total
        for n in (rows, 2 * rows)
    ]
    assert verdict(totals[0], 24.0) == "fits"
    assert rows == config.train.batch_size or verdict(totals[1], 24.0) != "fits"


def test_what_is_proposed_fits() -> None:
    for method in ("full", "lora", "qlora"):
        config = config_of(f"method={method}", "train.max_length=4096")
        for remedy in remedies(config, OPTIONS, CARD):
            assert verdict(remedy.total_bytes, 24.0) == "fits"
            runs = [text for text in remedy.change.split() if not text.startswith("plan.")]
            planned = [text for text in remedy.change.split() if text.startswith("plan.")]
            changed = [f"method={method}", "train.max_length=4096", "plan.memory_gib=24", "hardware.device=cuda"]
            keys = {text.partition("=")[0] for text in runs}
            changed = [text for text in changed if text.partition("=")[0] not in keys]
            (plan,) = plans(["model=llama-3.1-8b", *changed, *runs, *planned])
            assert plan.total_bytes == remedy.total_bytes


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


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        plans(["model=llama-3.1-8", "plan.device=8", "plan.strategy=fdsp", "train.epoch=1"])
    text = caught.value.message()
    assert len(caught.value.problems) == 4
    assert "plan.device: no such setting (did you mean 'devices'?)" in text
    assert "plan.strategy" in text
    assert "did you mean 'llama-3.1-8b'?" in text


def test_more_devices_than_examples_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match=r"plan\.devices: 8 micro-batches of 4 are more than"):
        plans(["model=llama-3.2-1b", "hardware=h100", "plan.devices=8"])


def test_a_model_without_numbers_is_told(tmp_path: Path) -> None:
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


def test_time_by_hand() -> None:
    config = config_of("method=full", "hardware=h100", "hardware.price_usd_per_hour=3", "task.train_examples=1000")
    options = replace(OPTIONS, tokens_per_example=500, utilization=(0.4, 0.4))
    found = duration(config, architecture_of(config.model), options)
    linear = 8_030_261_248 - 128256 * 4096 - 65 * 4096  # without the embedding and the norms, with the head
    flops_per_token = 6 * linear + 12 * 32 * 32 * 128 * 501 / 2
    assert found.tokens == 500_000
    assert found.tokens_per_second is not None
    assert found.hours is not None
    assert found.kwh is not None
    assert found.usd is not None
    assert found.tokens_per_second[0] == pytest.approx(0.4 * 989e12 / flops_per_token, rel=1e-6)
    assert found.hours[0] == pytest.approx(500_000 / found.tokens_per_second[0] / 3600)
    assert found.kwh[0] == pytest.approx(found.hours[0] * 0.7)
    assert found.usd[0] == pytest.approx(found.hours[0] * 3)


def test_recomputation_takes_time() -> None:
    plain, again = config_of("hardware=h100"), config_of("hardware=h100", "train.gradient_checkpointing=true")
    speeds = [duration(c, architecture_of(c.model), OPTIONS).tokens_per_second for c in (plain, again)]
    assert speeds[0] is not None
    assert speeds[1] is not None
    assert 4 / 6 < speeds[1][0] / speeds[0][0] < 4 / 5  # LoRA: 4 FLOPs a weight become 6; the head is not repeated


def test_what_is_not_known_is_none() -> None:
    config = config_of("hardware=cpu")
    found = duration(config, architecture_of(config.model), OPTIONS)
    assert (found.tokens_per_second, found.hours, found.usd) == (None, None, None)
    no_count = config_of("hardware=h100", "task=gsm8k")
    assert duration(no_count, architecture_of(no_count.model), OPTIONS).hours is None
