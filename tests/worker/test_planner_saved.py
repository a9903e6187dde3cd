"""The planner's list of what a layer keeps for the backward pass is what PyTorch keeps, to the byte.

Two models that differ in one layer: the difference of their saved storages is one layer's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.compose import compose
from bench.config import ArchitectureConfig, RunConfig
from bench.planner.memory import Batch, PlannedStep, saved_by_layer
from bench.planner.tensors import adapter_tensors
from bench.worker import methods
from bench.worker.device import compile_layers
from bench.worker.loss import SupervisedHead

ROWS, LENGTH, SUPERVISED = 3, 24, 7
NUMBERS: dict[str, Any] = {
    "vocab_size": 500, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": False,
}  # fmt: skip
EAGER = [
    ("llama", "method=full", []),
    ("llama", "method=full_bf16", []),
    ("llama", "method=lora", []),
    ("llama", "method=qlora", []),
    ("llama", "method=lora", ["method.adapter.add_in_fp32=false"]),
    ("llama", "method=lora", ["method.adapter.target_modules=[q_proj,v_proj]"]),
    ("llama", "method=lora", ["method.adapter.dropout=0.1"]),
    ("llama", "method=lora", ["hardware.attention=eager"]),
    ("llama", "method=full", ["hardware.attention=eager"]),
    ("qwen3", "method=full", []),
    ("qwen3", "method=lora", []),
]


def config_of(folder: Path, *overrides: str) -> RunConfig:
    (config,) = compose(["model=folder", f"model.location={folder}", *overrides], multirun=False)
    return config


def model_folder(tmp_path: Path, kind: str, layers: int) -> Path:
    folder = tmp_path / f"{kind}-{layers}"
    config = AutoConfig.for_model(kind, num_hidden_layers=layers, pad_token_id=0, **NUMBERS)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    return folder


def saved_bytes(config: RunConfig, *, padded: bool, compiled: bool) -> int:
    """Bytes of the distinct storages that the graph keeps, weights excepted."""
    attention = config.hardware.attention if config.hardware.attention != "auto" else "sdpa"
    base = methods.load_base(config, config.model.location, "cpu", torch.bfloat16, attn_implementation=attention)
    model = methods.make_trainable(base, config.method, 0).train()
    head = SupervisedHead(model)
    if compiled:
        compile_layers(model)
    else:
        methods.add_adapters_in_fp32(model, config.method)
    labels = torch.full((ROWS, LENGTH), -100)
    labels.view(-1)[3 : 3 + SUPERVISED] = 7
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    if padded:
        mask[1, -4:] = 0
    batch = {"input_ids": torch.randint(3, 500, (ROWS, LENGTH)), "labels": labels, "attention_mask": mask}
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    found: dict[int, torch.Tensor] = {}  # holding them keeps their addresses from being used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    for _ in range(2):  # the first call compiles
        found.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            losses, _ = head.token_losses(model, batch)
    total = sum(tensor.untyped_storage().nbytes() for tensor in found.values())
    losses.sum().backward()
    return total


def expected_bytes(config: RunConfig, kind: str, *, padded: bool, compiled: bool) -> int:
    """One layer's, with the 16-bit copies of its trained weights."""
    architecture = ArchitectureConfig(model_type=kind, num_hidden_layers=1, **NUMBERS)
    batch = Batch(ROWS, LENGTH, SUPERVISED, padded=padded)
    step = PlannedStep(config, architecture, batch, "cpu", compiled)
    if config.method.adapter is not None:
        copies = 2 * sum(adapter_tensors(architecture, config.method.adapter))
    else:
        copies = 2 * sum(m.weights for m in step.shape.layers[0].linears) if step.weights_element == 4 else 0
    return sum(saved_by_layer(step).values()) + copies


@pytest.mark.parametrize("padded", [False, True], ids=["equal", "padded"])
@pytest.mark.parametrize(("kind", "method", "more"), EAGER, ids=lambda value: str(value))
def test_an_eager_layer(tmp_path: Path, kind: str, method: str, more: list[str], padded: bool) -> None:
    totals = []
    for layers in (2, 3):
        config = config_of(model_folder(tmp_path, kind, layers), method, *more)
        totals.append(saved_bytes(config, padded=padded, compiled=False))
    assert totals[1] - totals[0] == expected_bytes(config, kind, padded=padded, compiled=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@pytest.mark.parametrize("method", ["method=full", "method=lora"])
def test_a_compiled_layer(tmp_path: Path, method: str) -> None:
    totals = []
    for layers in (2, 3):
        config = config_of(model_folder(tmp_path, "llama", layers), method)
        totals.append(saved_bytes(config, padded=False, compiled=True))
    expected = expected_bytes(config, "llama", padded=False, compiled=True)
    assert totals[1] - totals[0] == pytest.approx(expected, rel=0.001)  # a few scalars are kept too
