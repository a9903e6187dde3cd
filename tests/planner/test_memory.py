"""Counts and bytes by hand, and against the breakdown that the reference runs measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.compose import choices, compose
from bench.config import QuantizationConfig, RunConfig
from bench.mistakes import ConfigurationError
from bench.planner.advice import architecture_of
from bench.planner.memory import (
    Batch,
    PlannedStep,
    Terms,
    estimate,
    moments,
)
from bench.planner.tensors import (
    adapter_tensors,
    base_parameters,
    optimizer_bytes,
    quantized_bytes,
    trained_parameters,
)
from bench.record import Record, from_json

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
MODELS = [name for name in choices("model") if name != "folder"]
BATCH, LONG = Batch(rows=2, length=10, supervised=5), Batch(4, 512, 512)


def config_of(*overrides: str) -> RunConfig:
    (config,) = compose(["model=tiny-random", *overrides], multirun=False)
    return config


def step_of(*overrides: str, batch: Batch = BATCH, **more: object) -> PlannedStep:
    config, settings = config_of(*overrides), {"device": "cuda", "compiled": False} | more
    return PlannedStep(config, architecture_of(config.model), batch, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_the_architecture_of_every_model_gives_its_number_of_parameters(name: str) -> None:
    (config,) = compose([f"model={name}"], multirun=False)
    total = sum(base_parameters(architecture_of(config.model)).values())
    assert config.model.parameters in (None, total)


def test_an_unknown_target_is_answered_with_the_allowed_ones() -> None:
    config = config_of("method=lora", "method.adapter.target_modules=[q_proj,w_proj]")
    with pytest.raises(ConfigurationError, match=r"called w_proj.*all-linear or q_proj, k_proj"):
        adapter_tensors(architecture_of(config.model), config.method.adapter)


def test_nf4_by_hand() -> None:
    # 1,000,000 weights: 500,000 bytes and a table of 16 floats; 15,625 scales in fp32, or in 8 bit with 62 of their own
    plain = quantized_bytes(1_000_000, QuantizationConfig("nf4", double_quantization=False))
    double = quantized_bytes(1_000_000, QuantizationConfig("nf4", double_quantization=True))
    assert plain == 500_000 + 64 + 4 * 15_625
    assert double == 500_000 + 64 + 15_625 + 4 * 62 + 1024 + 4


def test_optimizers_by_hand() -> None:
    assert optimizer_bytes([10_000, 100], 4, "adamw") == 8 * 10_100 + 2 * 4
    assert optimizer_bytes([10_000, 100], 2, "adamw") == 4 * 10_100 + 2 * 4
    assert optimizer_bytes([10_000, 100], 2, "paged_adamw_32bit") == 8 * 10_100
    assert optimizer_bytes([10_000, 100], 4, "adamw_8bit") == 2048 + 2 * 10_000 + 8 * 40 + 8 * 100


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_static_terms_are_those_that_the_reference_runs_measured(method: str) -> None:
    train = from_json(Record, next(REFERENCE.glob(f"{method}-*/record.json")).read_text()).train
    assert train is not None
    assert train.breakdown is not None
    step, measured = step_of("model=smollm2-135m", f"method={method}"), train.breakdown
    assert trained_parameters(step.architecture, step.method) == train.parameters_trainable
    assert step.static == Terms(measured.weights_bytes, measured.gradients_bytes, measured.optimizer_bytes)


def peak_of(*overrides: str, batch: Batch = LONG, **more: object) -> Terms:
    return estimate(step_of("model=llama-3.2-1b", *overrides, batch=batch, **more))


def test_the_peak_grows_with_what_it_should_grow_with() -> None:
    lora = peak_of("method=lora").total
    assert peak_of("method=lora", batch=Batch(8, 512, 512)).total > lora
    assert peak_of("method=lora", batch=Batch(4, 512, 2048)).total == lora  # logits in chunks: never the peak here
    cut = {"devices": 2, "strategy": "fsdp"}  # all logits at once
    assert peak_of("method=lora", batch=Batch(4, 512, 2048), **cut).total > peak_of("method=lora", **cut).total
    assert peak_of("method=lora", "method.adapter.rank=64").total > lora
    assert peak_of("method=full").total > lora > peak_of("method=qlora").total
    assert peak_of("method=lora", "train.gradient_checkpointing=true").total < lora
    assert peak_of("method=full", accumulates=False).total < peak_of("method=full").total


def test_every_moment_holds_weights_and_optimizer() -> None:
    step = step_of("method=full", accumulates=False)
    for moment in moments(step):
        assert (moment.weights, moment.optimizer) == (step.static.weights, step.static.optimizer)


def test_devices_share_what_their_strategy_shares() -> None:
    alone = peak_of("method=full")
    ddp, zero2, fsdp, zero3 = (
        peak_of("method=full", devices=8, strategy=name) for name in ("ddp", "zero2", "fsdp", "zero3")
    )
    assert ddp.weights == zero2.weights == alone.weights
    assert ddp.total > alone.total  # the buckets of gradients
    assert zero2.optimizer == -(-alone.optimizer // 8)
    assert fsdp.weights == -(-alone.weights // 8)
    assert fsdp == zero3
    assert fsdp.total < zero2.total < alone.total
