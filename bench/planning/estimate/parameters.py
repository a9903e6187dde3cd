"""Exact parameter counts of a decoder and of an adapter on it, from the numbers of its architecture.

They equal transformers' and PEFT's own on the meta device (tests/worker/test_planner_counts.py).

>>> sum(parameters.values())   # parameters = base_parameters(llama_3_1_8b)
8030261248
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.spec.architecture import ArchitectureConfig
from bench.spec.config import AdapterConfig
from bench.spec.failure import ConfigurationError


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder layer."""

    name: str  # its full name without the layer's: self_attn.q_proj
    rows: int  # output features
    columns: int  # input features
    bias: bool = False

    @property
    def weights(self) -> int:
        """Elements of the matrix."""
        return self.rows * self.columns


def linears(architecture: ArchitectureConfig) -> list[Linear]:
    """The linear layers of one decoder layer, in the order in which they compute."""
    a = architecture
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    of_inputs = a.attention_bias or a.model_type == "qwen2"
    return [
        Linear("self_attn.q_proj", queries, a.hidden_size, of_inputs),
        Linear("self_attn.k_proj", keys, a.hidden_size, of_inputs),
        Linear("self_attn.v_proj", keys, a.hidden_size, of_inputs),
        Linear("self_attn.o_proj", a.hidden_size, queries, a.attention_bias),
        Linear("mlp.gate_proj", a.intermediate_size, a.hidden_size, a.mlp_bias),
        Linear("mlp.up_proj", a.intermediate_size, a.hidden_size, a.mlp_bias),
        Linear("mlp.down_proj", a.hidden_size, a.intermediate_size, a.mlp_bias),
    ]


def base_tensors(architecture: ArchitectureConfig) -> dict[str, list[int]]:
    """Elements of every parameter tensor of the base, by kind: embeddings, linear, bias, norm.

    A head that is tied to the embedding is the embedding.
    """
    a, layers = architecture, architecture.num_hidden_layers
    modules = linears(a)
    head_norms = [a.head_dim] * 2 if a.model_type == "qwen3" else []
    return {
        "embeddings": [a.vocab_size * a.hidden_size] * (1 if a.tie_word_embeddings else 2),
        "linear": [module.weights for module in modules] * layers,
        "bias": [module.rows for module in modules if module.bias] * layers,
        "norm": [a.hidden_size, a.hidden_size, *head_norms] * layers + [a.hidden_size],
    }


def base_parameters(architecture: ArchitectureConfig) -> dict[str, int]:
    """Parameters by kind of tensor."""
    return {kind: sum(sizes) for kind, sizes in base_tensors(architecture).items()}


def adapted(architecture: ArchitectureConfig, adapter: AdapterConfig) -> list[Linear]:
    """The linear layers of a decoder layer that PEFT puts an adapter on: `target_modules` as PEFT reads it.

    Raises:
        ConfigurationError: a target is none of them.
    """
    wanted, modules = adapter.target_modules, linears(architecture)
    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        return modules
    if isinstance(wanted, str):  # a pattern of whole names
        chosen = [m for m in modules if re.fullmatch(wanted, f"model.layers.0.{m.name}")]
        unknown = [] if chosen else [wanted]
    else:
        chosen = [m for m in modules if any(m.name == name or m.name.endswith(f".{name}") for name in wanted)]
        unknown = [n for n in wanted if not any(m.name == n or m.name.endswith(f".{n}") for m in modules)]
    if unknown:
        allowed = ", ".join(m.name.rpartition(".")[2] for m in modules)
        message = f"no linear layer of the decoder is called {', '.join(unknown)}; the planner knows all-linear or"
        raise ConfigurationError([f"method.adapter.target_modules: {message} {allowed}"])
    return chosen


def adapter_tensors(architecture: ArchitectureConfig, adapter: AdapterConfig) -> list[int]:
    """Elements of every tensor of the adapter: A (rank x inputs), B (outputs x rank), with DoRA the magnitudes."""
    sizes: list[int] = []
    for module in adapted(architecture, adapter):
        sizes += [adapter.rank * module.columns, module.rows * adapter.rank]
        sizes += [module.rows] if adapter.use_dora else []
    return sizes * architecture.num_hidden_layers
