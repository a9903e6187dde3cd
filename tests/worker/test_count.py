"""Counts on the meta device are those of transformers and PEFT, and the planner has a verdict where it has counts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import get_peft_model

from bench.cli import main
from bench.compose import compose
from bench.config import AdapterConfig, ArchitectureConfig, RunConfig
from bench.mistakes import ConfigurationError
from bench.planner.advice import architecture_of, is_uncounted
from bench.planner.forecast import plan_before, plan_notes
from bench.planner.tensors import Shape, adapter_tensors, base_parameters, shape_of
from bench.planner.time import planned_costs
from bench.worker import reach
from bench.worker.instruments.tokens import linear_costs
from bench.worker.main import Context, Progress
from bench.worker.methods import lora_config
from tests.worker.architectures import CONFIGS, GATED, LOCAL, PLAIN

EXPERTS = {**GATED, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16}
MODELS: dict[str, tuple[type[tf.PretrainedConfig], dict[str, Any]]] = {
    name: CONFIGS[name] for name in ("gpt2", "opt", "phi3", "gemma2", "gemma3", "mixtral", "bloom")
} | {
    "gemma": (tf.GemmaConfig, {**GATED, "head_dim": 16}),
    "qwen3-moe": (tf.Qwen3MoeConfig, {**EXPERTS, "mlp_only_layers": [0]}),  # experts in the second layer alone
    "gpt-oss": (tf.GptOssConfig, {**LOCAL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": (tf.Olmo2Config, GATED),
    "stablelm": (tf.StableLmConfig, GATED),
    "gpt-neox": (tf.GPTNeoXConfig, {**PLAIN, "intermediate_size": 128}),
    "falcon": (tf.FalconConfig, PLAIN),  # one key head, one norm
    "granite": (tf.GraniteConfig, GATED),
}
CLOSED: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


def on_meta(config: tf.PretrainedConfig) -> Any:
    with torch.device("meta"):
        return tf.AutoModelForCausalLM.from_config(config)


def of(name: str) -> tuple[tf.PretrainedConfig, Any]:
    kind, settings = MODELS[name]
    config = kind(**settings, vocab_size=300, pad_token_id=0)
    return config, on_meta(config)


def run_of(folder: Path, cache: Path, *overrides: str) -> RunConfig:
    (config,) = compose(
        ["model=folder", f"model.location={folder}", "task=gsm8k", "hardware.device=cuda", f"paths.cache={cache}",
         f"paths.results={cache}/results", *overrides],
        multirun=False,
    )  # fmt: skip
    return config


def count_in(folder: Path, config: RunConfig) -> None:
    reach.count(Context(folder, config, Progress(folder, "count")))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_adapters_and_flops_are_those_of_transformers_and_peft(name: str) -> None:
    _, model = of(name)
    shape = reach.counted(model)
    assert sum(base_parameters(shape).values()) == sum(p.numel() for p in model.parameters())
    (full,) = compose(["model=tiny-random", "method=full"], multirun=False)
    planned, measured = planned_costs(shape, full.method), linear_costs(model)
    assert planned.per_token == pytest.approx(measured.per_token, abs=6)  # of experts, a part of a FLOP
    assert (planned.per_supervised_token, planned.per_attended_pair) == (
        measured.per_supervised_token,
        measured.per_attended_pair,
    )
    adapter = AdapterConfig(rank=4)
    trained = [p.numel() for p in get_peft_model(model, lora_config(adapter, model)).parameters() if p.requires_grad]
    assert sorted(adapter_tensors(shape, adapter)) == sorted(trained)


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_has_a_verdict(name: str, tmp_path: Path) -> None:
    config, _ = of(name)
    config.architectures = ["XForCausalLM"]
    config.save_pretrained(tmp_path)
    runs = [run_of(tmp_path, tmp_path / "cache", f"method={method}") for method in ("full", "lora", "qlora")]
    assert all(map(is_uncounted, runs))
    count_in(tmp_path, runs[0])
    assert not any(map(is_uncounted, runs))
    plans = [plan_before(run, 24.0) for run in runs]
    assert [plan and plan.verdict for plan in plans] == ["fits"] * 3
    assert [plan and plan.peak_interval_bytes for plan in plans] == [None] * 3  # calibrated on other kinds
    assert any("too low" in note for note in plan_notes([replace(plan, device="cuda") for plan in plans if plan]))
    full, lora, qlora = (plan.terms for plan in plans if plan)
    assert full.weights > lora.weights > qlora.weights
    assert min(full.activations, lora.activations, qlora.activations) > 0


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_the_closed_forms_are_what_is_counted(kind: str, tied: bool) -> None:
    architecture = ArchitectureConfig(model_type=kind, tie_word_embeddings=tied, **CLOSED)  # type: ignore[arg-type]
    numbers = asdict(architecture)
    config = tf.AutoConfig.for_model(numbers.pop("model_type"), sliding_window=None, **numbers)
    found, closed = reach.counted(on_meta(config)), shape_of(architecture)
    by_size = [
        replace(shape, tensors={kind: sorted(sizes) for kind, sizes in shape.tensors.items()})
        for shape in (found, closed)
    ]
    assert by_size[0] == by_size[1]


def test_experts_count_whole_in_memory_and_by_their_share_in_time() -> None:
    _, model = of("mixtral")  # 4 experts of 3 x 64 x 128, of which a token goes through 2; two layers
    shape = reach.counted(model)
    attention, router, experts = 2 * 64 * 64 + 2 * 64 * 32, 4 * 64, 4 * 3 * 64 * 128
    assert base_parameters(shape)["other"] == 2 * (router + experts)
    assert shape.multiplied() == 2 * (attention + router + experts // 2)


def test_a_window_takes_pairs_from_its_layers_alone() -> None:
    shape = reach.counted(of("gemma2")[1])  # one layer sees 24 tokens, the other all
    (lora,) = compose(["model=tiny-random", "method=lora"], multirun=False)
    costs = planned_costs(shape, lora.method, length=100)
    pairs, in_window = 100 * 101 / 2, 24 * 25 / 2 + 76 * 24
    assert costs.per_attended_pair == pytest.approx(12 * 64 * (1 + in_window / pairs), rel=1e-3)


def test_a_pattern_and_names_choose_among_what_was_counted() -> None:
    shape = reach.counted(of("gpt2")[1])
    attn = adapter_tensors(shape, AdapterConfig(rank=2, target_modules=["attn.c_proj"]))
    assert attn == [2 * 64, 64 * 2] * 2
    assert adapter_tensors(shape, AdapterConfig(rank=2, target_modules=r"transformer\.h\..*attn\.c_proj")) == attn
    with pytest.raises(ConfigurationError, match=r"called q_proj.*all-linear or c_attn, c_proj, c_fc"):
        adapter_tensors(shape, AdapterConfig(target_modules=["q_proj"]))


def test_states_stay_unknown_and_the_reason_is_kept(tmp_path: Path) -> None:
    kind, settings = CONFIGS["mamba"]
    kind(**settings, vocab_size=300).save_pretrained(tmp_path)
    config = run_of(tmp_path, tmp_path / "cache")
    count_in(tmp_path, config)
    assert not is_uncounted(config)  # it is not tried again
    assert plan_before(config, 24.0) is None
    with pytest.raises(ConfigurationError, match="MambaBlock 0 has no attention"):
        architecture_of(config.model, config.paths)


def test_plan_counts_in_a_child(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, model = of("gpt2")
    config.save_pretrained(tmp_path / "model")
    words = [f"paths.{name}={tmp_path / name}" for name in ("results", "cache", "artifacts")]
    line = ["plan", "model=folder", f"model.location={tmp_path / 'model'}", "method=full", "--json", *words]
    assert main(line) == 0
    (plan,) = json.loads(capfd.readouterr().out)
    assert plan["parameters_base"] == sum(p.numel() for p in model.parameters())
    (kept,) = (tmp_path / "cache" / "counted").glob("*.json")
    assert set(json.loads(kept.read_text())) == set(Shape.__dataclass_fields__)
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "of-nobody"}))
    assert main([text for text in line if text != "--json"]) == 2
    said = capfd.readouterr().err
    assert "unknown to the planner" in said
    assert "'of-nobody' is not one that the planner knows" in said
