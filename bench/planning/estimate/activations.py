"""What one decoder layer keeps for the backward pass, tensor by tensor.

The names and dtypes follow transformers' Llama, Mistral, Qwen2 and Qwen3 layers under PEFT and autocast, read off
their forward functions and checked tensor by tensor against PyTorch's saved-tensor hooks
(tests/worker/test_planner_saved.py).

>>> sum(saved_by_layer(architecture, numerics, Batch(rows=4, length=1024)).values())
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.planning.estimate.numerics import Numerics
from bench.planning.estimate.parameters import Linear, linears
from bench.spec.architecture import ArchitectureConfig

Saved = dict[str, int]  # tensor -> bytes; a storage that two operations keep stands once


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    rows: int
    length: int  # positions of a row, padding included
    supervised: int  # positions that carry a label, of all rows
    padded: bool = False  # its rows differ in length; SDPA then needs a mask

    @property
    def positions(self) -> int:
        """Of all rows."""
        return self.rows * self.length


@dataclass(frozen=True)
class _Tensor:
    """What flows between the operations."""

    name: str
    bytes: int  # of an element


def saved_by_layer(architecture: ArchitectureConfig, numerics: Numerics, batch: Batch) -> Saved:
    """What a decoder layer behind the first one keeps, when nothing is checkpointed or compiled."""
    layer = _Layer(architecture, numerics, batch)
    layer.walk(residual_bytes(architecture, numerics, batch))
    return layer.saved


def residual_bytes(architecture: ArchitectureConfig, numerics: Numerics, batch: Batch) -> int:
    """Bytes of an element of the residual stream between two layers."""
    return _Layer(architecture, numerics, batch).walk(numerics.weights)


class _Layer:
    """Walks through a decoder layer and notes what is kept."""

    def __init__(self, architecture: ArchitectureConfig, numerics: Numerics, batch: Batch):
        self._a, self._n, self._batch = architecture, numerics, batch
        self._modules = {module.name: module for module in linears(architecture)}
        self.saved: Saved = {}

    def keep(self, name: str, channels: float, element: int) -> None:
        """A tensor of so many channels a position; a name that is there already is the same storage."""
        self.saved[name] = round(self._batch.positions * channels * element)

    def norm(self, name: str, given: _Tensor, channels: int, groups: int = 1) -> _Tensor:
        """RMS norm: computes in fp32, of each of `groups` parts of the channels."""
        n = self._n
        self.keep(given.name if given.bytes == 4 else f"{name}.fp32", channels, 4)
        self.keep(f"{name}.rsqrt", groups, 4)
        if n.trains_all:
            self.keep(f"{name}.normalized", channels, given.bytes)
        return _Tensor(name, max(given.bytes, n.weights))

    def linear(self, name: str, given: _Tensor) -> _Tensor:
        """A linear layer, trained, frozen, or frozen with an adapter."""
        n, module = self._n, self._modules[name]
        if n.trains_all:
            if given.bytes == n.compute:
                self.keep(given.name, module.columns, given.bytes)
            else:
                self.keep(f"{name}.input", module.columns, n.compute)
            return _Tensor(name, n.compute)
        # bitsandbytes gives back the dtype that it was given, a plain linear layer that of autocast
        out = given.bytes if n.quantized else n.compute
        if name not in n.adapted:
            return _Tensor(name, out)
        self._adapter(module, given)
        return _Tensor(name, 4 if n.adds_in_fp32 else out)

    def _adapter(self, module: Linear, given: _Tensor) -> None:
        n = self._n
        if n.dropout:
            self.keep(f"{module.name}.dropout", module.columns, 1 if n.device == "cuda" else 4)
        # PEFT casts the branch's input to the adapter's fp32 and autocast casts it back: a copy of its own. For 4-bit
        # layers it leaves that out where it sees autocast, which it does on CUDA alone.
        as_given = not n.autocast or (n.quantized and n.device == "cuda" and given.bytes == n.compute)
        shared = as_given and not n.dropout
        self.keep(given.name if shared else f"{module.name}.input", module.columns, n.compute)
        self.keep(f"{module.name}.A", n.rank, n.compute)
        if n.dora:  # the branch's output and the base's, and the identity that PEFT multiplies to get B A
            self.keep(f"{module.name}.B", module.rows, n.compute)
            self.keep(f"{module.name}.base", module.rows, 4 if n.adds_in_fp32 else n.compute)
            self.saved[f"{module.name}.identity"] = module.columns * (module.columns + n.rank) * n.compute

    def attention(self, query: _Tensor, key: _Tensor, value: _Tensor) -> _Tensor:
        """Scaled dot products: a fused kernel keeps its inputs, its output and one number a row; eager the scores."""
        n, heads = self._n, self._a.num_attention_heads
        queries = heads * self._a.head_dim
        repeated = n.attention == "eager" or (n.attention == "sdpa" and self.masked)
        keys = queries if repeated else self._a.num_key_value_heads * self._a.head_dim
        self.keep("query", queries, n.compute)
        self.keep("key", keys, n.compute)
        self.keep("value", keys, n.compute)
        if n.attention == "eager":
            self.keep("scores", heads * self._batch.length, 4)
            if n.compute != 4:
                self.keep("scores.cast", heads * self._batch.length, n.compute)
        else:
            self.keep("attention", queries, n.compute)
            self.keep("logsumexp", heads, 4)
            if repeated:
                self.keep("mask", self._batch.length, n.compute)
        return _Tensor("attention", n.compute)

    @property
    def masked(self) -> bool:
        """SDPA without a mask knows that attention is causal; rows of unequal length need one."""
        return self._batch.padded

    def walk(self, residual: int) -> int:
        """Note everything; element bytes of the residual stream that comes in, and of the one that goes out."""
        a = self._a
        stream = _Tensor("residual", residual)
        normed = self.norm("input_layernorm", stream, a.hidden_size)
        query, key, value = (self.linear(f"self_attn.{part}_proj", normed) for part in "qkv")
        if a.model_type == "qwen3":
            query = self.norm("q_norm", query, a.num_attention_heads * a.head_dim, a.num_attention_heads)
            key = self.norm("k_norm", key, a.num_key_value_heads * a.head_dim, a.num_key_value_heads)
        mixed = self.linear("self_attn.o_proj", self.attention(query, key, value))
        middle = _Tensor("residual.middle", max(residual, mixed.bytes))
        normed = self.norm("post_attention_layernorm", middle, a.hidden_size)
        gate, up = (self.linear(f"mlp.{part}_proj", normed) for part in ("gate", "up"))
        for name, element in ((gate.name, gate.bytes), ("silu", gate.bytes), (up.name, up.bytes)):
            self.keep(name, a.intermediate_size, element)
        down = self.linear("mlp.down_proj", _Tensor("product", max(gate.bytes, up.bytes)))
        return max(middle.bytes, down.bytes)
