"""The peak of a training step on one device, term by term.

A step's memory rises through the forward pass, is highest when the backward pass begins (everything is kept, the
logits are turned into a gradient) or while it goes through the last layer, and ends with all gradients and the
optimizer. Each of these moments is computed; the highest is the estimate.

>>> estimate(architecture, config.method, numerics, batch, accumulates=True).total
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from bench.config import (
    AdapterConfig,
    ArchitectureConfig,
    ConfigurationError,
    HardwareConfig,
    MethodConfig,
    PositiveInt,
    QuantizationConfig,
    TrainConfig,
    checked,
)

Strategy = Literal["ddp", "zero2", "zero3", "fsdp"]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PlanConfig:
    """The settings are explained in `conf/plan.yaml`."""

    memory_gib: list[_Positive] | None = None
    devices: PositiveInt = 1
    strategy: Strategy = "ddp"
    supervised_share: _Share = 1.0
    padded: bool = True
    tokens_per_example: PositiveInt | None = None
    examples: PositiveInt | None = None
    utilization: tuple[_Share, _Share] = (0.25, 0.5)


def plan_config(mapping: dict[str, Any]) -> PlanConfig:
    """Check the planner's settings. A single `memory_gib`, or several with commas, is a list.

    Raises:
        ConfigurationError: with every mistake found.
    """
    memory = mapping.get("memory_gib")
    if isinstance(memory, str):
        memory = memory.split(",")
    if memory is not None and not isinstance(memory, list):
        memory = [memory]
    return checked(PlanConfig, mapping | {"memory_gib": memory}, "plan")


@dataclass(frozen=True)
class Terms:
    """Bytes on one device at one moment."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0  # kept for the backward pass
    casts: int = 0  # 16-bit copies that autocast makes of fp32 weights; gathered weights of sharded ones
    logits: int = 0  # of the head, and what the loss makes of them
    workspace: int = 0  # of the layer that computes: its gradients, a dequantized weight
    process: int = 0  # CUDA context, or Python and its libraries
    allocator: int = 0  # held by the allocator, used by nothing

    @property
    def total(self) -> int:
        """Bytes of all terms."""
        return sum(self.by_name().values())

    def by_name(self) -> dict[str, int]:
        """Term -> bytes, in the order of definition."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


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


Attention = Literal["sdpa", "flash_attention_2", "eager"]


@dataclass(frozen=True)
class Numerics:
    """Element sizes in bytes, and what is saved for the backward pass because of them."""

    device: Literal["cpu", "cuda"]
    weights: int  # of a base weight as it is kept, before quantization
    autocast: bool
    trains_all: bool
    quantized: bool
    adapted: frozenset[str]  # linear layers of a decoder layer with an adapter
    rank: int
    dropout: bool
    dora: bool
    adds_in_fp32: bool
    compiled: bool
    checkpointing: bool
    attention: Attention

    @property
    def compute(self) -> int:
        """Bytes of an element in a matrix product."""
        return 2 if self.autocast else 4


def numerics_of(
    architecture: ArchitectureConfig,
    method: MethodConfig,
    train: TrainConfig,
    hardware: HardwareConfig,
    *,
    device: Literal["cpu", "cuda"],
    compiled: bool,
) -> Numerics:
    """What the settings decide; what they leave to the machine is given.

    Args:
        device: what `hardware.device=auto` stands for.
        compiled: what `train.compile=auto` stands for.
    """
    autocast = hardware.compute_dtype != "float32"
    adapter = method.adapter
    return Numerics(
        device=device,
        weights=BYTES[method.weights_dtype] if autocast else 4,
        autocast=autocast,
        trains_all=method.trains == "all_weights",
        quantized=method.quantization is not None,
        adapted=frozenset(module.name for module in adapted(architecture, adapter)) if adapter else frozenset(),
        rank=adapter.rank if adapter else 0,
        dropout=bool(adapter and adapter.dropout),
        dora=bool(adapter and adapter.use_dora),
        adds_in_fp32=bool(adapter and adapter.add_in_fp32 and autocast and not compiled),
        compiled=compiled,
        checkpointing=train.gradient_checkpointing,
        attention="sdpa" if hardware.attention == "auto" else hardware.attention,
    )


BYTES = {"bfloat16": 2, "float32": 4}
_BLOCK, _NESTED_BLOCK = 64, 256
_CODE_4BIT, _CODE_8BIT = 16 * 4, 256 * 4  # bytes of the tables of values
_STATE_BLOCK, _SMALLEST_8BIT = 256, 4096


@dataclass(frozen=True)
class Static:
    """Bytes that are held through a whole training step, the gradients after its backward pass."""

    weights: int
    gradients: int
    optimizer: int
    parameters: int  # of base and adapter
    trainable: int  # parameters


def static_bytes(architecture: ArchitectureConfig, method: MethodConfig, compute_dtype: str) -> Static:
    """Static memory of training by a method on one device.

    Args:
        compute_dtype: "bfloat16", or "float32" where nothing runs under autocast and all weights are fp32.
    """
    element = 4 if compute_dtype == "float32" else BYTES[method.weights_dtype]
    base, adapter = base_tensors(architecture), []
    if method.adapter is not None:
        adapter = adapter_tensors(architecture, method.adapter)
    frequencies = 2 * 2 * architecture.head_dim  # bytes of the rotary embedding's two fp32 buffers
    weights = base_bytes(base, method.quantization, element) + 4 * sum(adapter) + frequencies
    everything = [size for sizes in base.values() for size in sizes]
    if method.trains == "nothing":
        return Static(weights, 0, 0, sum(everything), 0)
    trained, of_each = (adapter, 4) if method.trains == "adapter" else (everything, element)
    in_8_bit = method.optimizer.endswith("8bit")
    first = everything[0] if in_8_bit and method.trains == "all_weights" else 0  # the embedding: 32 bit all the same
    return Static(
        weights=weights,
        gradients=of_each * sum(trained),
        optimizer=8 * first + optimizer_bytes(trained[1:] if first else trained, of_each, method.optimizer),
        parameters=sum(everything) + sum(adapter),
        trainable=sum(trained),
    )


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


_GATHERED_LAYERS = 2  # the one that computes, and the one that is fetched meanwhile


@dataclass(frozen=True)
class Parallel:
    """How many devices share a step, and how."""

    devices: int
    strategy: Strategy


ALONE = Parallel(1, "ddp")


def shared(
    alone: Terms, architecture: ArchitectureConfig, method: MethodConfig, numerics: Numerics, parallel: Parallel
) -> Terms:
    """What each device holds of what one would hold alone; activations are of its own micro-batch."""
    n = parallel.devices
    if n == 1:
        return alone
    gradients = static_bytes(architecture, method, "bfloat16" if numerics.autocast else "float32").gradients
    if parallel.strategy == "ddp":
        return replace(alone, gradients=alone.gradients + gradients)
    cut = replace(alone, gradients=-(-alone.gradients // n), optimizer=-(-alone.optimizer // n))
    if parallel.strategy == "zero2":
        return cut
    of_a_layer = gradients // architecture.num_hidden_layers if numerics.trains_all else 0
    return replace(
        cut,
        weights=-(-alone.weights // n),
        casts=_gathered(architecture, method, numerics) + _copies(alone, architecture, numerics),
        workspace=alone.workspace + of_a_layer,  # a layer's gradient before it is cut
    )


def _gathered(architecture: ArchitectureConfig, method: MethodConfig, numerics: Numerics) -> int:
    """Bytes of what is whole on every device, in the dtype it is kept in, or quantized as it is stored."""
    counts = base_parameters(architecture)
    of_layers = base_bytes(base_tensors(architecture) | {"embeddings": []}, method.quantization, numerics.weights)
    return numerics.weights * counts["embeddings"] + _GATHERED_LAYERS * of_layers // architecture.num_hidden_layers


def _copies(alone: Terms, architecture: ArchitectureConfig, numerics: Numerics) -> int:
    """Of autocast, in 16 bit: of all layers, or of one where a layer is computed again."""
    if not numerics.checkpointing:
        return alone.casts
    of_layers = base_parameters(architecture)["linear"] if numerics.trains_all else 0
    return min(alone.casts, numerics.compute * of_layers // architecture.num_hidden_layers)


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


def saved_by_compiled_layer(architecture: ArchitectureConfig, numerics: Numerics, batch: Batch) -> Saved:
    """Tensor -> bytes, for a layer behind the first one."""
    a, n = architecture, numerics
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    repeated = n.attention == "eager" or (n.attention == "sdpa" and batch.padded)
    reads_first = n.trains_all or any(f"self_attn.{part}_proj" in n.adapted for part in "qkv")
    reads_second = n.trains_all or any(f"mlp.{part}_proj" in n.adapted for part in ("gate", "up"))
    per_position = {
        "residual": a.hidden_size * n.weights,
        "residual.middle": a.hidden_size * n.compute,  # with an fp32 stream: the attention's output, 16-bit, instead
        "rsqrt": 2 * 4,
        "normed": (reads_first + reads_second) * a.hidden_size * n.compute,  # one copy for all layers that read it
        "query": queries * n.compute,
        "key": (queries if repeated else keys) * n.compute,
        "value": (queries if repeated else keys) * n.compute,
        "attention": queries * n.compute,
        "gate": a.intermediate_size * n.compute,
        "up": a.intermediate_size * n.compute,
        "A": len(n.adapted) * n.rank * n.compute,
    }
    if n.trains_all or "mlp.down_proj" in n.adapted:
        per_position["product"] = a.intermediate_size * n.compute
    if "self_attn.o_proj" in n.adapted:
        per_position["self_attn.o_proj.input"] = queries * n.compute
    if a.model_type == "qwen3":
        per_position["head norms"] = (queries + keys) * n.compute + 4 * (a.num_attention_heads + a.num_key_value_heads)
    if n.attention == "eager":
        per_position["scores"] = a.num_attention_heads * batch.length * (4 + n.compute)
    else:
        per_position["logsumexp"] = a.num_attention_heads * 4
        if repeated:
            per_position["mask"] = batch.length * n.compute
    return {name: batch.positions * size for name, size in per_position.items()}


MIB = 2**20
# CUDA: assumed. The context with its kernels, and cuBLAS' workspace (32 MiB on Hopper, 8 MiB before: PyTorch's notes
# on CUBLAS_WORKSPACE_CONFIG).
CUDA_PROCESS_BYTES = 600 * MIB
# CUDA: assumed. What the caching allocator reserves beyond what is allocated, as a part of what comes and goes.
CUDA_ALLOCATOR_SHARE = 0.05
# CPU: measured, on Linux with glibc (docs/planner.md). The process: the peak of runs whose freed tensors go back to the
# system at once, less the terms with a formula. The compiler, and what malloc keeps of freed tensors as a part of those
# that come and go in the layers: the median of the compiled and of the eager runs of the 42M model, rounded.
CPU_PROCESS_BYTES = 545 * MIB
CPU_COMPILER_BYTES = 110 * MIB
CPU_MALLOC_SHARE_EAGER = 0.5
CPU_MALLOC_SHARE_COMPILED = 0.25


def process_bytes(numerics: Numerics) -> int:
    """Bytes that are taken before a model is loaded: the CUDA context, or Python with torch, transformers and PEFT."""
    if numerics.device == "cuda":
        return CUDA_PROCESS_BYTES
    return CPU_PROCESS_BYTES + (CPU_COMPILER_BYTES if numerics.compiled else 0)


def allocator_bytes(numerics: Numerics, live: Terms) -> int:
    """Bytes that the allocator holds and nothing uses."""
    if numerics.device == "cuda":
        moving = live.gradients + live.activations + live.casts + live.logits + live.workspace
        return round(moving * CUDA_ALLOCATOR_SHARE)
    share = CPU_MALLOC_SHARE_COMPILED if numerics.compiled else CPU_MALLOC_SHARE_EAGER
    return round((live.activations + live.workspace) * share)


def estimate(
    architecture: ArchitectureConfig,
    method: MethodConfig,
    numerics: Numerics,
    batch: Batch,
    *,
    accumulates: bool,
    parallel: Parallel = ALONE,
) -> Terms:
    """The highest moment of a training step, on one device.

    Args:
        batch: a micro-batch of this device.
        accumulates: a step has several micro-batches, so that gradients are there while the next is computed.
    """
    alone = moments(architecture, method, numerics, batch, accumulates=accumulates)
    live = max((shared(moment, architecture, method, numerics, parallel) for moment in alone), key=lambda t: t.total)
    return replace(live, process=process_bytes(numerics), allocator=allocator_bytes(numerics, live))


def moments(
    architecture: ArchitectureConfig, method: MethodConfig, numerics: Numerics, batch: Batch, *, accumulates: bool
) -> list[Terms]:
    """The moments of which one is the highest: backward begins, its last layer, its first layer, the update."""
    a, n = architecture, numerics
    static = static_bytes(a, method, "bfloat16" if n.autocast else "float32")
    held = Terms(weights=static.weights, optimizer=static.optimizer, gradients=static.gradients if accumulates else 0)
    casts = _casts(a, method, n)
    saved = _activations(a, n, batch)
    logits = batch.supervised * a.vocab_size
    loss = 2 * 4 * logits  # fp32: the logits and their log-softmax, then the latter and its gradient
    if method.trains == "nothing":
        return [replace(held, logits=loss)]
    head = a.vocab_size * a.hidden_size
    head_update = (n.compute + n.weights) * head if n.trains_all else 0  # its gradient, as computed and as kept
    embedding_update = n.weights * head if n.trains_all else 0  # dense, beside the sum of those before
    kept_head = embedding_update if a.tie_word_embeddings else 0  # the head's part of it waits for the embedding's
    ended = replace(held, gradients=static.gradients)
    # With checkpointing no layer's copies outlive its forward pass in the graph, but autocast's cache keeps them all.
    in_backward = casts // a.num_hidden_layers if n.checkpointing else casts
    return [
        replace(held, activations=saved, casts=casts, logits=loss),
        replace(held, activations=saved, casts=in_backward, logits=n.compute * logits, workspace=head_update),
        replace(held, activations=saved, casts=in_backward, workspace=kept_head + layer_workspace(a, n, batch)),
        replace(ended, workspace=kept_head + (embedding_update if accumulates else 0)),
    ]


def layer_workspace(a: ArchitectureConfig, n: Numerics, batch: Batch) -> int:
    """Temporary bytes of one layer's backward pass; a checkpointed layer is computed again first."""
    element = 4 if n.adds_in_fp32 or not n.autocast else 2
    # In the feed-forward part: gradients of the product, of both factors, and of the gate before its activation.
    backward = batch.positions * (4 * a.intermediate_size * element + 2 * a.hidden_size * 4)
    again = sum(_layer(a, n, batch).values()) if n.checkpointing else 0
    largest = max(module.weights for module in linears(a)) if n.quantized else 0
    return backward + again + n.compute * largest


def _layer(a: ArchitectureConfig, n: Numerics, batch: Batch) -> dict[str, int]:
    return saved_by_compiled_layer(a, n, batch) if n.compiled else saved_by_layer(a, n, batch)


def _activations(a: ArchitectureConfig, n: Numerics, batch: Batch) -> int:
    """Of all layers and the last norm; the first layer's norm of frozen embeddings keeps nothing."""
    stream = residual_bytes(a, n, batch)
    last_norm = batch.positions * (a.hidden_size * (4 + (stream if n.trains_all else 0)) + 4) if n.trains_all else 0
    if n.checkpointing:
        return a.num_hidden_layers * batch.positions * a.hidden_size * stream + last_norm
    return a.num_hidden_layers * sum(_layer(a, n, batch).values()) + last_norm


def _casts(a: ArchitectureConfig, method: MethodConfig, n: Numerics) -> int:
    """Copies in the compute dtype of the trained fp32 matrices: of base and head, or of the adapter."""
    if not n.autocast:
        return 0
    if not n.trains_all:
        return n.compute * sum(adapter_tensors(a, method.adapter)) if method.adapter else 0
    matrices = base_parameters(a)["linear"] + a.vocab_size * a.hidden_size
    return n.compute * matrices if n.weights != n.compute else 0
