"""Counts and bytes by hand, and against the breakdown that the reference runs measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.compose import choices, compose
from bench.config import ConfigurationError, QuantizationConfig, RunConfig
from bench.planner.advice import architecture_of
from bench.planner.memory import (
    ALONE,
    Batch,
    Numerics,
    Parallel,
    Terms,
    adapter_tensors,
    base_parameters,
    estimate,
    moments,
    numerics_of,
    optimizer_bytes,
    quantized_bytes,
    residual_bytes,
    saved_by_layer,
    static_bytes,
)
from bench.planner.time import LinearCosts, planned_costs
from bench.record import Record, from_json

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
MODELS = [name for name in choices("model") if name != "folder"]


def config_of(*overrides: str) -> RunConfig:
    (config,) = compose(["model=tiny-random", *overrides], multirun=False)
    return config


def numerics(config: RunConfig, *, compiled: bool = False, device: str = "cuda") -> Numerics:
    architecture = architecture_of(config.model)
    return numerics_of(architecture, config.method, config.train, config.hardware, device=device, compiled=compiled)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_numbers_that_give_its_parameters(name: str) -> None:
    (config,) = compose([f"model={name}"], multirun=False)
    total = sum(base_parameters(architecture_of(config.model)).values())
    assert config.model.parameters in (None, total)


def test_the_adapter_by_hand() -> None:
    # width 64, feed-forward 128, 2 layers, keys and values 32 wide
    config = config_of("method=lora", "method.adapter.rank=8")
    architecture = architecture_of(config.model)
    adapter = config.method.adapter
    assert adapter is not None
    assert sum(adapter_tensors(architecture, adapter)) == 2 * 8 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * 192)
    pair = replace(adapter, target_modules=["q_proj", "v_proj"])
    assert sum(adapter_tensors(architecture, pair)) == 2 * 8 * ((64 + 64) + (64 + 32))
    pattern = replace(adapter, target_modules=r".*\.mlp\.(gate|up)_proj")
    assert sum(adapter_tensors(architecture, pattern)) == 2 * 8 * 2 * 192
    assert sum(adapter_tensors(architecture, replace(pair, use_dora=True))) == 2 * (8 * (128 + 96) + 64 + 32)


def test_an_unknown_target_says_what_is_allowed() -> None:
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
    path = next(REFERENCE.glob(f"{method}-smollm2-135m-*/record.json"))
    train = from_json(Record, path.read_text()).train
    assert train is not None
    assert train.breakdown is not None
    (config,) = compose([f"method={method}"], multirun=False)
    static = static_bytes(architecture_of(config.model), config.method, "bfloat16")
    assert (static.parameters, static.trainable) == (train.parameters_total, train.parameters_trainable)
    measured = train.breakdown
    assert static.weights == measured.weights_bytes
    assert (static.gradients, static.optimizer) == (measured.gradients_bytes, measured.optimizer_bytes)


def test_planned_flops_by_hand() -> None:
    base = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
    config = config_of("method=full")
    costs = planned_costs(architecture_of(config.model), config.method)
    assert costs == LinearCosts(6 * base, 6 * 261 * 64, 12 * 2 * 64)
    adapter = 2 * 16 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))
    frozen = planned_costs(architecture_of(config.model), config_of("method=qlora").method)
    assert frozen == LinearCosts(4 * base + 6 * adapter, 4 * 261 * 64, 12 * 2 * 64)


BATCH = Batch(rows=2, length=10, supervised=5)
LONG = Batch(4, 512, 512)


def test_what_a_layer_keeps_by_hand() -> None:
    # Full, eager: fp32 stream and normalized copies, a 16-bit copy of each input, a 16-bit feed-forward part.
    config = config_of("method=full")
    saved = saved_by_layer(architecture_of(config.model), numerics(config), BATCH)
    attention = 2 * 64 + 2 * 2 * 32 + 2 * 64 + 4 * 4
    assert sum(saved.values()) == 20 * (4 * 4 * 64 + 2 * 4 + 5 * 2 * 64 + attention + 4 * 2 * 128)


def test_the_stream_is_fp32_where_the_branch_is_added_in_fp32() -> None:
    for overrides, compiled, expected in (
        (["method=lora"], False, 4),
        (["method=lora"], True, 2),
        (["method=lora", "method.adapter.add_in_fp32=false"], False, 2),
        (["method=lora", "method.adapter.target_modules=[q_proj,v_proj]"], False, 2),
        (["method=full"], True, 4),
        (["method=full_bf16"], False, 2),
    ):
        config = config_of(*overrides)
        found = residual_bytes(architecture_of(config.model), numerics(config, compiled=compiled), BATCH)
        assert found == expected, overrides


def test_eager_attention_keeps_the_scores() -> None:
    fused, eager = config_of("method=lora"), config_of("method=lora", "hardware.attention=eager")
    long = Batch(rows=2, length=1000, supervised=5)
    kept = [sum(saved_by_layer(architecture_of(c.model), numerics(c), long).values()) for c in (fused, eager)]
    scores = 2 * 4 * 1000 * 1000 * 6
    assert kept[1] - kept[0] == pytest.approx(scores, rel=0.01)


def peak_of(*overrides: str, batch: Batch = LONG, accumulates: bool = True, parallel: Parallel = ALONE) -> Terms:
    config = config_of("model=llama-3.2-1b", *overrides)
    architecture = architecture_of(config.model)
    return estimate(architecture, config.method, numerics(config), batch, accumulates=accumulates, parallel=parallel)


def test_the_peak_grows_with_what_it_should_grow_with() -> None:
    base = peak_of("method=lora").total
    assert peak_of("method=lora", batch=Batch(8, 512, 512)).total > base
    assert peak_of("method=lora", batch=Batch(4, 512, 2048)).total > base
    assert peak_of("method=lora", "method.adapter.rank=64").total > base
    assert peak_of("method=full").total > base > peak_of("method=qlora").total
    assert peak_of("method=lora", "train.gradient_checkpointing=true").total < base
    assert peak_of("method=full", accumulates=False).total < peak_of("method=full").total


def test_every_moment_holds_weights_and_optimizer() -> None:
    config = config_of("method=full")
    static = static_bytes(architecture_of(config.model), config.method, "bfloat16")
    for moment in moments(architecture_of(config.model), config.method, numerics(config), BATCH, accumulates=False):
        assert (moment.weights, moment.optimizer) == (static.weights, static.optimizer)


def test_devices_share_what_their_strategy_shares() -> None:
    alone = peak_of("method=full")
    shares = {s: peak_of("method=full", parallel=Parallel(8, s)) for s in ("ddp", "zero2", "fsdp", "zero3")}
    assert shares["ddp"].weights == alone.weights
    assert shares["ddp"].total > alone.total  # the buckets of gradients
    assert shares["zero2"].weights == alone.weights
    assert shares["zero2"].optimizer == -(-alone.optimizer // 8)
    assert shares["fsdp"].weights == -(-alone.weights // 8)
    assert shares["fsdp"] == shares["zero3"]
    assert shares["fsdp"].total < shares["zero2"].total < alone.total
