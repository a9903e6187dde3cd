"""The tensors of a model and of a method: how many elements, and how many bytes they take as they are kept.

Counts are those of transformers and PEFT, bytes those of PyTorch and bitsandbytes (docs/maintainers/planner.md).

    >>> base_parameters(architecture)
    {'embeddings': 28311552, 'linear': 106168320, 'bias': 0, 'norm': 35136, 'other': 0}
    >>> trained_parameters(architecture, method)
    4884480
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil

from bench.config import AdapterConfig, ArchitectureConfig, MethodConfig, QuantizationConfig
from bench.mistakes import ConfigurationError

# bitsandbytes: elements of a block that share a scale, and of a block of scales; bytes of the tables of values.
_BLOCK, _NESTED_BLOCK = 64, 256
_CODE_4BIT, _CODE_8BIT = 16 * 4, 256 * 4
_STATE_BLOCK, _SMALLEST_8BIT = 256, 4096  # of an 8-bit optimizer: elements a scale; smaller tensors stay in fp32


@dataclass(frozen=True)
class Linear:
    """A matrix that multiplies, or several of one shape: the experts of a layer."""

    name: str  # without the decoder layer's: self_attn.q_proj
    rows: int  # output features
    columns: int  # input features
    bias: bool = False
    matrices: int = 1  # experts that one tensor holds
    share: float = 1.0  # of the tokens that go through each matrix
    is_layer: bool = True  # which quantization reaches, and adapters by name; experts and routers may be mere weights
    ranks: int = 1  # of an adapter on all linear layers, for each matrix: 2 where gate and up are one; 0: PEFT has none

    @property
    def weights(self) -> int:
        """Elements."""
        return self.matrices * self.rows * self.columns

    @property
    def outputs(self) -> int:
        """Channels of a token that come out, of all experts that it goes through."""
        return round(self.rows * self.matrices * self.share)

    @property
    def inputs(self) -> int:
        """Channels of a token that go in."""
        return round(self.columns * self.matrices * self.share)


@dataclass(frozen=True)
class Layers:
    """Decoder layers that are alike."""

    name: str  # of the first: model.layers.0
    count: int
    linears: tuple[Linear, ...]  # in the order in which they compute
    heads: int
    queries: int  # channels of all heads
    keys: int  # of all key heads
    norms: int = 2  # over the model's width
    head_norms: bool = False  # of queries and keys
    window: int | None = None  # tokens that one attends to; None: all before it

    @cached_property
    def parts(self) -> tuple[list[Linear], list[Linear], list[Linear]]:
        """(attention, its output projection last; gate and up, in one matrix or two, and routers; down)."""
        attention = [module for module in self.linears if "att" in module.name.lower()]
        others, width = [module for module in self.linears if module not in attention], attention[-1].rows
        down = [m for m in others if m.rows == width and (m.columns != width or "down" in m.name)]
        return attention, [module for module in others if module not in down], down


@dataclass(frozen=True)
class Shape:
    """All that the planner reads of a model: in closed form by `shape_of`, else counted by `bench.worker.reach`."""

    vocab_size: int
    hidden_size: int
    tied: bool  # the output head is the embedding
    layers: tuple[Layers, ...]
    tensors: dict[str, list[int]]  # kind -> elements of each parameter tensor
    elsewhere: tuple[Linear, ...] = ()  # linear layers outside of the decoder's, the head left out; whole names
    eager: bool = False  # transformers has no fused attention for it

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return sum(layers.count for layers in self.layers)

    def multiplied(self) -> int:
        """Weights that a token is multiplied by, the head's left out; of experts those that it goes through."""
        each = [(layers.count, m) for layers in self.layers for m in layers.linears] + [(1, m) for m in self.elsewhere]
        return round(sum(count * module.weights * module.share for count, module in each))


Architecture = ArchitectureConfig | Shape


@cache
def _closed_form(a: ArchitectureConfig) -> Shape:
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    input_bias = a.attention_bias or a.model_type == "qwen2"
    modules = (
        Linear("self_attn.q_proj", queries, a.hidden_size, input_bias),
        Linear("self_attn.k_proj", keys, a.hidden_size, input_bias),
        Linear("self_attn.v_proj", keys, a.hidden_size, input_bias),
        Linear("self_attn.o_proj", a.hidden_size, queries, a.attention_bias),
        Linear("mlp.gate_proj", a.intermediate_size, a.hidden_size, a.mlp_bias),
        Linear("mlp.up_proj", a.intermediate_size, a.hidden_size, a.mlp_bias),
        Linear("mlp.down_proj", a.hidden_size, a.intermediate_size, a.mlp_bias),
    )
    head_norms = a.model_type == "qwen3"
    layers = Layers(
        "model.layers.0", a.num_hidden_layers, modules, a.num_attention_heads, queries, keys, head_norms=head_norms
    )
    tensors = {
        "embeddings": [a.vocab_size * a.hidden_size] * (1 if a.tie_word_embeddings else 2),
        "linear": [module.weights for module in modules] * layers.count,
        "bias": [module.rows for module in modules if module.bias] * layers.count,
        "norm": [*[a.hidden_size] * 2, *[a.head_dim] * 2 * head_norms] * layers.count + [a.hidden_size],
        "other": [],  # of experts and routers
    }
    return Shape(a.vocab_size, a.hidden_size, a.tie_word_embeddings, (layers,), tensors)


def shape_of(architecture: Architecture) -> Shape:
    """What the planner reads, of a model whose kind has a closed form or which was counted."""
    return architecture if isinstance(architecture, Shape) else _closed_form(architecture)


def base_parameters(architecture: Architecture) -> dict[str, int]:
    """Parameters of the base by kind of tensor."""
    return {kind: sum(sizes) for kind, sizes in shape_of(architecture).tensors.items()}


def trained_parameters(architecture: Architecture, method: MethodConfig) -> int:
    """Parameters that the method trains."""
    if method.trains == "all_weights":
        return sum(base_parameters(architecture).values())
    return sum(adapter_tensors(architecture, method.adapter)) if method.trains == "adapter" else 0


def adapted_linears(architecture: Architecture, adapter: AdapterConfig | None) -> list[tuple[int, str, Linear]]:
    """(how many, whole name of the first, linear layer) that PEFT adapts: `target_modules` as PEFT reads it.

    Raises:
        ConfigurationError: a target is none of them.
    """
    if adapter is None:
        return []
    wanted, shape = adapter.target_modules, shape_of(architecture)
    modules = [(layers.count, f"{layers.name}.{m.name}", m) for layers in shape.layers for m in layers.linears]
    modules += [(1, module.name, module) for module in shape.elsewhere]
    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        return [found for found in modules if found[2].ranks]
    modules = [found for found in modules if found[2].is_layer]
    if isinstance(wanted, str):  # a pattern of whole names
        chosen = [found for found in modules if re.fullmatch(wanted, found[1])]
        unknown = [] if chosen else [wanted]
    else:
        chosen = [found for found in modules if any(f".{found[1]}".endswith(f".{name}") for name in wanted)]
        unknown = [name for name in wanted if not any(f".{whole}".endswith(f".{name}") for _, whole, _ in modules)]
    if unknown:
        allowed = ", ".join(dict.fromkeys(whole.rpartition(".")[2] for _, whole, _ in modules))
        message = f"no linear layer of the decoder is called {', '.join(unknown)}; the planner knows all-linear or"
        raise ConfigurationError([f"method.adapter.target_modules: {message} {allowed}"])
    return chosen


def adapter_tensors(architecture: Architecture, adapter: AdapterConfig | None) -> list[int]:
    """Elements of every tensor of the adapter: A (rank x inputs), B (outputs x rank), with DoRA the magnitudes."""
    sizes: list[int] = []
    for count, _, module in adapted_linears(architecture, adapter):
        assert adapter is not None
        rank, dora = adapter.rank * module.ranks * module.matrices, [module.rows] if adapter.use_dora else []
        sizes += [rank * module.columns, module.rows * rank, *dora] * count
    return sizes


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
