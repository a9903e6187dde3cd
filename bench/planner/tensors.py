"""The tensors of a model and of a method: how many elements, and how many bytes they take as they are kept.

Counts are those of transformers and PEFT, bytes those of PyTorch and bitsandbytes (docs/maintainers/planner.md).

    >>> base_parameters(architecture)
    {'embeddings': 28311552, 'linear': 106168320, 'bias': 0, 'norm': 35136}
    >>> trained_parameters(architecture, method)
    4884480
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from bench.config import AdapterConfig, ArchitectureConfig, MethodConfig, QuantizationConfig
from bench.mistakes import ConfigurationError

# bitsandbytes: elements of a block that share a scale, and of a block of scales; bytes of the tables of values.
_BLOCK, _NESTED_BLOCK = 64, 256
_CODE_4BIT, _CODE_8BIT = 16 * 4, 256 * 4
_STATE_BLOCK, _SMALLEST_8BIT = 256, 4096  # of an 8-bit optimizer: elements a scale; smaller tensors stay in fp32


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder layer."""

    name: str  # without the decoder layer's: self_attn.q_proj
    rows: int  # output features
    columns: int  # input features
    bias: bool = False

    @property
    def weights(self) -> int:
        """Elements of the matrix."""
        return self.rows * self.columns


def linears(a: ArchitectureConfig) -> list[Linear]:
    """The linear layers of one decoder layer, in the order in which they compute."""
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    input_bias = a.attention_bias or a.model_type == "qwen2"
    return [
        Linear("self_attn.q_proj", queries, a.hidden_size, input_bias),
        Linear("self_attn.k_proj", keys, a.hidden_size, input_bias),
        Linear("self_attn.v_proj", keys, a.hidden_size, input_bias),
        Linear("self_attn.o_proj", a.hidden_size, queries, a.attention_bias),
        Linear("mlp.gate_proj", a.intermediate_size, a.hidden_size, a.mlp_bias),
        Linear("mlp.up_proj", a.intermediate_size, a.hidden_size, a.mlp_bias),
        Linear("mlp.down_proj", a.hidden_size, a.intermediate_size, a.mlp_bias),
    ]


def base_tensors(a: ArchitectureConfig) -> dict[str, list[int]]:
    """Elements of every parameter tensor of the base, by kind; a head tied to the embedding is the embedding."""
    layers, modules = a.num_hidden_layers, linears(a)
    head_norms = [a.head_dim] * 2 if a.model_type == "qwen3" else []
    return {
        "embeddings": [a.vocab_size * a.hidden_size] * (1 if a.tie_word_embeddings else 2),
        "linear": [module.weights for module in modules] * layers,
        "bias": [module.rows for module in modules if module.bias] * layers,
        "norm": [a.hidden_size, a.hidden_size, *head_norms] * layers + [a.hidden_size],
    }


def base_parameters(architecture: ArchitectureConfig) -> dict[str, int]:
    """Parameters of the base by kind of tensor."""
    return {kind: sum(sizes) for kind, sizes in base_tensors(architecture).items()}


def trained_parameters(architecture: ArchitectureConfig, method: MethodConfig) -> int:
    """Parameters that the method trains."""
    if method.trains == "all_weights":
        return sum(base_parameters(architecture).values())
    return sum(adapter_tensors(architecture, method.adapter)) if method.trains == "adapter" else 0


def adapted_linears(architecture: ArchitectureConfig, adapter: AdapterConfig | None) -> list[Linear]:
    """The linear layers of a decoder layer that PEFT puts an adapter on: `target_modules` as PEFT reads it.

    Raises:
        ConfigurationError: a target is none of them.
    """
    if adapter is None:
        return []
    wanted, modules = adapter.target_modules, linears(architecture)
    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        return modules
    if isinstance(wanted, str):  # a pattern of whole names
        chosen = [m for m in modules if re.fullmatch(wanted, f"model.layers.0.{m.name}")]
        unknown = [] if chosen else [wanted]
    else:
        chosen = [m for m in modules if any(f".{m.name}".endswith(f".{name}") for name in wanted)]
        unknown = [name for name in wanted if not any(f".{m.name}".endswith(f".{name}") for m in modules)]
    if unknown:
        allowed = ", ".join(m.name.rpartition(".")[2] for m in modules)
        message = f"no linear layer of the decoder is called {', '.join(unknown)}; the planner knows all-linear or"
        raise ConfigurationError([f"method.adapter.target_modules: {message} {allowed}"])
    return chosen


def adapter_tensors(architecture: ArchitectureConfig, adapter: AdapterConfig | None) -> list[int]:
    """Elements of every tensor of the adapter: A (rank x inputs), B (outputs x rank), with DoRA the magnitudes."""
    sizes: list[int] = []
    for module in adapted_linears(architecture, adapter):
        assert adapter is not None
        sizes += [adapter.rank * module.columns, module.rows * adapter.rank]
        sizes += [module.rows] if adapter.use_dora else []
    return sizes * architecture.num_hidden_layers


# --- Bytes of tensors ---


def base_bytes(tensors: dict[str, list[int]], quantization: QuantizationConfig | None, element: int) -> int:
    """Bytes of the base's weights; quantized are the linear layers of the decoder alone, not head, embedding, norms."""
    rest = element * sum(sum(sizes) for kind, sizes in tensors.items() if kind != "linear")
    if quantization is None:
        return rest + element * sum(tensors["linear"])
    return rest + sum(quantized_bytes(size, quantization) for size in tensors["linear"])


def quantized_bytes(elements: int, quantization: QuantizationConfig) -> int:
    """Bytes of one quantized matrix with its constants (of int8 without its row scales, under 0.1%)."""
    if quantization.scheme == "int8":
        return elements
    blocks = ceil(elements / _BLOCK)
    packed = ceil(elements / 2) + _CODE_4BIT
    if not quantization.double_quantization:
        return packed + 4 * blocks
    return packed + blocks + 4 * ceil(blocks / _NESTED_BLOCK) + _CODE_8BIT + 4  # 4: the offset


def optimizer_bytes(tensors: Sequence[int], element: int, optimizer: str) -> int:
    """Bytes of the optimizer's state for parameter tensors of so many elements, each of `element` bytes.

    Paged state counts wherever it is.
    """
    if optimizer == "adamw":
        return 2 * element * sum(tensors) + 4 * len(tensors)
    if optimizer == "paged_adamw_32bit":
        return 8 * sum(tensors)
    return 2 * _CODE_8BIT + sum(
        8 * size if size < _SMALLEST_8BIT else 2 * size + 2 * 4 * ceil(size / _STATE_BLOCK) for size in tensors
    )
