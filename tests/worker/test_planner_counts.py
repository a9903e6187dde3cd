"""The planner's parameter counts are those of transformers and PEFT, for every architecture in conf/model."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from bench.compose import choices, compose
from bench.config import AdapterConfig, ArchitectureConfig
from bench.planner.advice import architecture_of
from bench.planner.tensors import adapter_tensors, base_parameters
from bench.worker.methods import lora_config

ARCHITECTURES = {
    name: architecture_of(compose([f"model={name}"], multirun=False)[0].model)
    for name in choices("model")
    if name != "folder"
}
ADAPTERS = (
    AdapterConfig(),
    AdapterConfig(rank=8, target_modules=["q_proj", "v_proj"]),
    AdapterConfig(rank=4, target_modules=r".*\.mlp\.(gate|up)_proj", use_dora=True),
)


def on_meta(architecture: ArchitectureConfig) -> torch.nn.Module:
    numbers = asdict(architecture)
    config = AutoConfig.for_model(numbers.pop("model_type"), **numbers)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_base(name: str) -> None:
    counted = sum(parameter.numel() for parameter in on_meta(ARCHITECTURES[name]).parameters())
    assert sum(base_parameters(ARCHITECTURES[name]).values()) == counted


@pytest.mark.parametrize("name", ["tiny-random", "qwen3-0.6b"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=["all-linear", "q,v", "dora"])
def test_the_adapter(name: str, adapter: AdapterConfig) -> None:
    architecture = replace(ARCHITECTURES[name], num_hidden_layers=2)
    base = on_meta(architecture)
    model = get_peft_model(base, lora_config(adapter, base))
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    assert sorted(adapter_tensors(architecture, adapter)) == sorted(trained)


def test_biases_and_a_family_that_has_them_always() -> None:
    for architecture in (
        replace(ARCHITECTURES["tiny-random"], attention_bias=True, mlp_bias=True),
        replace(ARCHITECTURES["tiny-random"], model_type="qwen2"),
    ):
        counted = sum(parameter.numel() for parameter in on_meta(architecture).parameters())
        assert sum(base_parameters(architecture).values()) == counted
