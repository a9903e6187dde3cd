"""The peak memory of a training step on one device, term by term, from the settings alone.

A step's memory rises through the forward pass, is highest when the backward pass begins (everything is kept, the
logits are turned into a gradient) or while it goes through the last layer, and ends with all gradients and the
optimizer. Each of these moments is computed; the highest is the estimate. Its total is `peak_memory_bytes` as runs
measure it: the most that one device must have, the CUDA context and what the allocator reserves included; on a CPU
the resident set. docs/maintainers/planner.md gives the source of every term.

    >>> estimate(PlannedStep(config, architecture, Batch(4, 2048, 8192), device="cuda", compiled=True)).total
    39620000000
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import ceil
from typing import Literal, NamedTuple

from bench.config import ArchitectureConfig, MethodConfig, RunConfig
from bench.planner.tensors import (
    Linear,
    adapted_linears,
    adapter_tensors,
    base_bytes,
    base_parameters,
    base_tensors,
    linears,
    optimizer_bytes,
)

Strategy = Literal["ddp", "zero2", "zero3", "fsdp"]
Device = Literal["cpu", "cuda"]
BYTES = {"bfloat16": 2, "float32": 4}
MIB = 2**20
# CUDA: assumed. The context with its kernels, and cuBLAS' workspace (32 MiB on Hopper, 8 MiB before: PyTorch's notes
# on CUBLAS_WORKSPACE_CONFIG).
CUDA_PROCESS_BYTES = 600 * MIB
# CUDA: what the caching allocator reserves beyond what is allocated, as a part of what comes and goes: the median of
# published runs with both numbers and a loss in chunks (python -m benchmarks.planner calibrate).
CUDA_ALLOCATOR_SHARE = 0.1
# CPU: measured, on Linux with glibc (docs/planner.md). The process: the peak of runs whose freed tensors go back to the
# system at once, less the terms with a formula. The compiler, and what malloc keeps of freed tensors as a part of those
# that come and go in the layers: the median of the compiled and of the eager runs of the 42M model, rounded.
CPU_PROCESS_BYTES = 545 * MIB
CPU_COMPILER_BYTES = 110 * MIB
CPU_MALLOC_SHARE_EAGER = 0.5
CPU_MALLOC_SHARE_COMPILED = 0.25
CHUNK_ELEMENTS = 2**25  # logits that exist at one time: 128 MiB in fp32 (worker/loss.py)
_GATHERED_LAYERS = 2  # of cut weights: the layer that computes, and the one that is fetched meanwhile


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
        return asdict(self)


# --- The step ---


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
class PlannedStep:
    """All that decides what a training step holds on one device.

    Attributes:
        batch: a micro-batch of this device.
        device: what `hardware.device=auto` stands for.
        compiled: what `train.compile=auto` stands for.
        accumulates: a step has several micro-batches, so that gradients are there while the next is computed.
        devices, strategy: how many share the step, and how.
        loss_in_chunks: as the harness computes it; False: all logits at once, as others do.
    """

    config: RunConfig
    architecture: ArchitectureConfig
    batch: Batch
    device: Device
    compiled: bool
    accumulates: bool = True
    devices: int = 1
    strategy: Strategy = "ddp"
    loss_in_chunks: bool = True

    @property
    def method(self) -> MethodConfig:
        """What is trained, and how the base is kept."""
        return self.config.method

    @property
    def trains_all(self) -> bool:
        """Whether all weights are trained, not an adapter."""
        return self.method.trains == "all_weights"

    @property
    def autocast(self) -> bool:
        """Whether matrix products are in 16 bit; without it all weights are fp32."""
        return self.config.hardware.compute_dtype != "float32"

    @property
    def weights_element(self) -> int:
        """Bytes of a base weight as it is kept, before quantization."""
        return BYTES[self.method.weights_dtype] if self.autocast else 4

    @property
    def compute_element(self) -> int:
        """Bytes of an element in a matrix product."""
        return 2 if self.autocast else 4

    @property
    def adds_in_fp32(self) -> bool:
        """Whether the adapter's branch is added to the base's output in fp32."""
        return bool((a := self.method.adapter) and a.add_in_fp32 and self.autocast and not self.compiled)

    @property
    def eager_attention(self) -> bool:
        """Whether attention keeps its scores."""
        return self.config.hardware.attention == "eager"

    @property
    def repeats_keys(self) -> bool:
        """Whether attention keeps keys and values for every head: eager, and SDPA with a mask for padding."""
        fused = self.config.hardware.attention == "flash_attention_2"
        return self.eager_attention or (self.batch.padded and not fused)

    @cached_property
    def adapted(self) -> frozenset[str]:
        """Names of the linear layers of a decoder layer that have an adapter."""
        return frozenset(module.name for module in adapted_linears(self.architecture, self.method.adapter))

    @cached_property
    def static(self) -> Terms:
        """Weights, optimizer state, and the gradients at the end of the backward pass, on one device alone."""
        method, base = self.method, base_tensors(self.architecture)
        adapter = adapter_tensors(self.architecture, method.adapter)
        frequencies = 2 * 2 * self.architecture.head_dim  # bytes of the rotary embedding's two fp32 buffers
        weights = base_bytes(base, method.quantization, self.weights_element) + 4 * sum(adapter) + frequencies
        if method.trains == "nothing":
            return Terms(weights=weights)
        tensors, element = adapter, 4
        if self.trains_all:
            tensors, element = [size for sizes in base.values() for size in sizes], self.weights_element
        in_fp32 = 1 if method.optimizer.endswith("8bit") and self.trains_all else 0  # the embedding
        optimizer = 8 * sum(tensors[:in_fp32]) + optimizer_bytes(tensors[in_fp32:], element, method.optimizer)
        return Terms(weights=weights, gradients=element * sum(tensors), optimizer=optimizer)


def estimate(step: PlannedStep) -> Terms:
    """The highest moment of a training step, on one device."""
    live = max((_shared(moment, step) for moment in moments(step)), key=lambda terms: terms.total)
    if step.device == "cuda":
        moving = live.gradients + live.activations + live.casts + live.logits + live.workspace
        return replace(live, process=CUDA_PROCESS_BYTES, allocator=round(moving * CUDA_ALLOCATOR_SHARE))
    share = CPU_MALLOC_SHARE_COMPILED if step.compiled else CPU_MALLOC_SHARE_EAGER
    process = CPU_PROCESS_BYTES + (CPU_COMPILER_BYTES if step.compiled else 0)
    return replace(live, process=process, allocator=round((live.activations + live.workspace) * share))


def moments(step: PlannedStep) -> list[Terms]:
    """The moments of which one is the highest: backward begins, its last layer, its first layer, the update."""
    a, trains_all, accumulates = step.architecture, step.trains_all, step.accumulates
    held = replace(step.static, gradients=step.static.gradients if accumulates else 0)
    # A head that is cut takes no chunks.
    whole = not step.loss_in_chunks or (step.devices > 1 and step.strategy in ("fsdp", "zero3"))
    supervised, element = step.batch.supervised, residual_element(step)
    logits = min(supervised * a.vocab_size, supervised * a.vocab_size if whole else CHUNK_ELEMENTS)
    loss = 2 * 4 * logits  # fp32: the logits and their log-softmax or exponentials, then a gradient in place of one
    if step.method.trains == "nothing":
        return [replace(held, logits=loss)]
    casts, saved = _casts(step), _activations(step)
    head = a.vocab_size * a.hidden_size
    # Of the head: its gradient as computed and as kept; of chunks their sum in fp32, made in the forward pass.
    sum_of_chunks = 4 * head if trains_all and not whole else 0
    as_kept = 0 if sum_of_chunks and step.weights_element == 4 else step.weights_element * head
    head_update = (sum_of_chunks or step.compute_element * head) + as_kept if trains_all else 0
    embedding_update = step.weights_element * head if trains_all else 0  # dense, beside the sum of those before
    kept_head = embedding_update if a.tie_word_embeddings else 0  # the head's part of it waits for the embedding's
    # With checkpointing no layer's copies outlive its forward pass in the graph, but autocast's cache keeps them all.
    in_backward = casts // a.num_hidden_layers if step.config.train.gradient_checkpointing else casts
    # What waits for the backward pass: the logits, or in chunks the gradient of the head's input alone.
    head_logits = step.compute_element * logits if whole else element * supervised * a.hidden_size
    beside = 0 if whole else head_logits
    return [
        replace(held, activations=saved, casts=casts, logits=loss + beside, workspace=sum_of_chunks),
        replace(held, activations=saved, casts=in_backward, logits=head_logits, workspace=head_update),
        replace(held, activations=saved, casts=in_backward, workspace=kept_head + _layer_workspace(step)),
        replace(step.static, workspace=kept_head + (embedding_update if accumulates else 0)),
    ]


def _casts(step: PlannedStep) -> int:
    """Copies in the compute dtype of the trained fp32 matrices: of base and head, or of the adapter."""
    a = step.architecture
    if not step.autocast:
        return 0
    if not step.trains_all:
        return step.compute_element * sum(adapter_tensors(a, step.method.adapter))
    matrices = base_parameters(a)["linear"] + a.vocab_size * a.hidden_size
    return step.compute_element * matrices if step.weights_element != step.compute_element else 0


def _activations(step: PlannedStep) -> int:
    """Of all layers and the last norm; the first layer's norm of frozen embeddings keeps nothing."""
    a, positions, stream = step.architecture, step.batch.positions, residual_element(step)
    last_norm = positions * (a.hidden_size * (4 + stream) + 4) if step.trains_all else 0
    if step.config.train.gradient_checkpointing:
        return a.num_hidden_layers * positions * a.hidden_size * stream + last_norm
    return a.num_hidden_layers * sum(saved_by_layer(step).values()) + last_norm


def _layer_workspace(step: PlannedStep) -> int:
    """Temporary bytes of one layer's backward pass; a checkpointed layer is computed again first."""
    a, element = step.architecture, 4 if step.adds_in_fp32 or not step.autocast else 2
    # In the feed-forward part: gradients of the product, of both factors, and of the gate before its activation.
    backward = step.batch.positions * (4 * a.intermediate_size * element + 2 * a.hidden_size * 4)
    again = sum(saved_by_layer(step).values()) if step.config.train.gradient_checkpointing else 0
    largest = max(module.weights for module in linears(a)) if step.method.quantization else 0
    return backward + again + step.compute_element * largest


def _shared(alone: Terms, step: PlannedStep) -> Terms:
    """What each device holds of what one would hold alone; activations are of its own micro-batch."""
    n, a, gradients = step.devices, step.architecture, step.static.gradients
    if n == 1:
        return alone
    if step.strategy == "ddp":
        return replace(alone, gradients=alone.gradients + gradients)  # the buckets that they travel in
    cut = replace(alone, gradients=ceil(alone.gradients / n), optimizer=ceil(alone.optimizer / n))
    if step.strategy == "zero2":
        return cut
    layers = base_bytes(base_tensors(a) | {"embeddings": []}, step.method.quantization, step.weights_element)
    whole = step.weights_element * base_parameters(a)["embeddings"] + _GATHERED_LAYERS * layers // a.num_hidden_layers
    copies = alone.casts
    if step.config.train.gradient_checkpointing:  # autocast's, of the one layer that is computed again
        matrices = base_parameters(a)["linear"] if step.trains_all else 0
        copies = min(copies, step.compute_element * matrices // a.num_hidden_layers)
    layer_gradient = gradients // a.num_hidden_layers if step.trains_all else 0  # before it is cut
    workspace = alone.workspace + layer_gradient
    return replace(cut, weights=ceil(alone.weights / n), casts=whole + copies, workspace=workspace)


# --- What a layer keeps for the backward pass: tensor -> bytes; a storage that two operations keep stands once ---


def saved_by_layer(step: PlannedStep) -> dict[str, int]:
    """Of a decoder layer behind the first one, when nothing is checkpointed."""
    layer = _Layer(step)
    if step.compiled:
        layer.saved = _saved_by_compiled_layer(step)
    else:
        layer.walk(residual_element(step))
    return {name: step.batch.positions * size for name, size in layer.saved.items()} | layer.whole


def residual_element(step: PlannedStep) -> int:
    """Bytes of an element of the residual stream between two layers."""
    return _Layer(step).walk(step.weights_element)


class _Tensor(NamedTuple):
    """What flows between the operations; `bytes`: of an element."""

    name: str
    bytes: int


class _Layer:
    """Walks through a decoder layer, operation by operation, and notes what is kept."""

    def __init__(self, step: PlannedStep):
        self._step, self._a = step, step.architecture
        self._modules = {module.name: module for module in linears(step.architecture)}
        self.saved: dict[str, int] = {}  # bytes a position
        self.whole: dict[str, int] = {}  # bytes, whatever the number of positions

    def walk(self, residual: int) -> int:
        """Note everything; element bytes of the residual stream that comes in, and of the one that goes out."""
        a = self._a
        normed = self._norm("input_layernorm", _Tensor("residual", residual), a.hidden_size)
        query, key, _ = (self._linear(f"self_attn.{part}_proj", normed) for part in "qkv")
        if a.model_type == "qwen3":
            query = self._norm("q_norm", query, a.num_attention_heads * a.head_dim, a.num_attention_heads)
            key = self._norm("k_norm", key, a.num_key_value_heads * a.head_dim, a.num_key_value_heads)
        self.saved |= _attention(self._step)
        mixed = self._linear("self_attn.o_proj", _Tensor("attention", self._step.compute_element))
        middle = _Tensor("residual.middle", max(residual, mixed.bytes))
        normed = self._norm("post_attention_layernorm", middle, a.hidden_size)
        gate, up = (self._linear(f"mlp.{part}_proj", normed) for part in ("gate", "up"))
        for name, element in ((gate.name, gate.bytes), ("silu", gate.bytes), (up.name, up.bytes)):
            self._keep(name, a.intermediate_size, element)
        down = self._linear("mlp.down_proj", _Tensor("product", max(gate.bytes, up.bytes)))
        return max(middle.bytes, down.bytes)

    def _keep(self, name: str, channels: int, element: int) -> None:
        """A tensor of so many channels a position; a name that is there already is the same storage."""
        self.saved[name] = channels * element

    def _norm(self, name: str, given: _Tensor, channels: int, groups: int = 1) -> _Tensor:
        """RMS norm: computes in fp32, of each of `groups` parts of the channels."""
        self._keep(given.name if given.bytes == 4 else f"{name}.fp32", channels, 4)
        self._keep(f"{name}.rsqrt", groups, 4)
        if self._step.trains_all:
            self._keep(f"{name}.normalized", channels, given.bytes)
        return _Tensor(name, max(given.bytes, self._step.weights_element))

    def _linear(self, name: str, given: _Tensor) -> _Tensor:
        """A linear layer, trained, frozen, or frozen with an adapter."""
        step, module, compute = self._step, self._modules[name], self._step.compute_element
        if step.trains_all:
            as_given = given.bytes == compute
            self._keep(given.name if as_given else f"{name}.input", module.columns, compute)
            return _Tensor(name, compute)
        # bitsandbytes gives back the dtype that it was given, a plain linear layer that of autocast
        out = given.bytes if step.method.quantization else compute
        if name not in step.adapted:
            return _Tensor(name, out)
        self._adapter(module, given)
        return _Tensor(name, 4 if step.adds_in_fp32 else out)

    def _adapter(self, module: Linear, given: _Tensor) -> None:
        step, adapter, compute = self._step, self._step.method.adapter, self._step.compute_element
        assert adapter is not None
        if adapter.dropout:
            self._keep(f"{module.name}.dropout", module.columns, 1 if step.device == "cuda" else 4)
        # PEFT casts the branch's input to the adapter's fp32 and autocast casts it back: a copy of its own. For 4-bit
        # layers it leaves that out where it sees autocast, which it does on CUDA alone.
        as_given = not step.autocast or (step.method.quantization and step.device == "cuda" and given.bytes == compute)
        shared = as_given and not adapter.dropout
        self._keep(given.name if shared else f"{module.name}.input", module.columns, compute)
        self._keep(f"{module.name}.A", adapter.rank, compute)
        if adapter.use_dora:  # the branch's output and the base's, and the identity that PEFT multiplies to get B A
            self._keep(f"{module.name}.B", module.rows, compute)
            self._keep(f"{module.name}.base", module.rows, 4 if step.adds_in_fp32 else compute)
            self.whole[f"{module.name}.identity"] = module.columns * (module.columns + adapter.rank) * compute


def _attention(step: PlannedStep) -> dict[str, int]:
    """Scaled dot products: a fused kernel keeps its inputs, its output and one number a row; eager the scores."""
    a, compute = step.architecture, step.compute_element
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    kept_keys = queries if step.repeats_keys else keys
    saved = {"query": queries * compute, "key": kept_keys * compute, "value": kept_keys * compute}
    if step.eager_attention:
        scores = a.num_attention_heads * step.batch.length
        return saved | {"scores": 4 * scores, "scores.cast": compute * scores if compute != 4 else 0}
    saved |= {"attention": queries * compute, "logsumexp": a.num_attention_heads * 4}
    return saved | ({"mask": step.batch.length * compute} if step.repeats_keys else {})


def _saved_by_compiled_layer(step: PlannedStep) -> dict[str, int]:
    """Bytes a position."""
    a, adapter, compute = step.architecture, step.method.adapter, step.compute_element
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    reads_first = step.trains_all or any(f"self_attn.{part}_proj" in step.adapted for part in "qkv")
    reads_second = step.trains_all or any(f"mlp.{part}_proj" in step.adapted for part in ("gate", "up"))
    saved = {
        "residual": a.hidden_size * step.weights_element,
        "residual.middle": a.hidden_size * compute,  # with an fp32 stream: the attention's output, 16-bit, instead
        "rsqrt": 2 * 4,
        "normed": (reads_first + reads_second) * a.hidden_size * compute,  # one copy for all layers that read it
        "attention": queries * compute,
        "gate": a.intermediate_size * compute,
        "up": a.intermediate_size * compute,
        "A": len(step.adapted) * (adapter.rank if adapter else 0) * compute,
    }
    if step.trains_all or "mlp.down_proj" in step.adapted:
        saved["product"] = a.intermediate_size * compute
    if "self_attn.o_proj" in step.adapted:
        saved["self_attn.o_proj.input"] = queries * compute
    if a.model_type == "qwen3":
        saved["head norms"] = (queries + keys) * compute + 4 * (a.num_attention_heads + a.num_key_value_heads)
    return saved | _attention(step)
