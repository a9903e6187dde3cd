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

from bench.config import MethodConfig, RunConfig, Strategy
from bench.planner.tensors import (
    Architecture,
    Layers,
    Linear,
    Shape,
    adapted_linears,
    adapter_tensors,
    base_bytes,
    base_parameters,
    optimizer_bytes,
    shape_of,
)

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
    architecture: Architecture
    batch: Batch
    device: Device
    compiled: bool
    accumulates: bool = True
    devices: int = 1
    strategy: Strategy = "none"
    loss_in_chunks: bool = True

    @cached_property
    def shape(self) -> Shape:
        """The model's layers and tensors."""
        return shape_of(self.architecture)

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
        return self.config.hardware.attention == "eager" or self.shape.eager

    @property
    def repeats_keys(self) -> bool:
        """Whether attention keeps keys and values for every head: eager, and SDPA with a mask (padding, a window)."""
        fused = self.config.hardware.attention == "flash_attention_2"
        masked = self.batch.padded or any((w := ls.window) and w < self.batch.length for ls in self.shape.layers)
        return self.eager_attention or (masked and not fused)

    @cached_property
    def _adapted(self) -> frozenset[str]:
        """Whole names, in the first of the layers that are alike."""
        return frozenset(name for _, name, _ in adapted_linears(self.shape, self.method.adapter))

    def adapts(self, layers: Layers, module: Linear) -> bool:
        """Whether a linear layer of these decoder layers has an adapter."""
        return f"{layers.name}.{module.name}" in self._adapted

    @cached_property
    def static(self) -> Terms:
        """Weights, optimizer state, and the gradients at the end of the backward pass, on one device alone."""
        method, base, first = self.method, self.shape.tensors, self.shape.layers[0]
        adapter = adapter_tensors(self.shape, method.adapter)
        frequencies = 2 * 2 * first.queries // first.heads  # bytes of the rotary embedding's two fp32 buffers
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
    a, trains_all, accumulates = step.shape, step.trains_all, step.accumulates
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
    kept_head = embedding_update if a.tied else 0  # the head's part of it waits for the embedding's
    # With checkpointing no layer's copies outlive its forward pass in the graph, but autocast's cache keeps them all.
    in_backward = casts // a.depth if step.config.train.gradient_checkpointing else casts
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
    a = step.shape
    if not step.autocast:
        return 0
    if not step.trains_all:
        return step.compute_element * sum(adapter_tensors(a, step.method.adapter))
    base = base_parameters(a)
    matrices = base["linear"] + base["other"] + a.vocab_size * a.hidden_size
    return step.compute_element * matrices if step.weights_element != step.compute_element else 0


def _activations(step: PlannedStep) -> int:
    """Of all layers and the last norm; the first layer's norm of frozen embeddings keeps nothing."""
    a, positions, stream = step.shape, step.batch.positions, residual_element(step)
    last_norm = positions * (a.hidden_size * (4 + stream) + 4) if step.trains_all else 0
    if step.config.train.gradient_checkpointing:
        return a.depth * positions * a.hidden_size * stream + last_norm
    return sum(layers.count * sum(saved_by_layer(step, layers).values()) for layers in a.layers) + last_norm


def _layer_workspace(step: PlannedStep) -> int:
    """Temporary bytes of the largest layer's backward pass; a checkpointed layer is computed again first."""
    a, element = step.shape, 4 if step.adds_in_fp32 or not step.autocast else 2

    def of(layers: Layers) -> int:
        _, widening, narrowing = layers.parts
        # In the feed-forward part: gradients of the product, of both factors, and of the gate before its activation.
        widths = sum(m.outputs for m in widening) + 2 * sum(m.inputs for m in narrowing)
        again = sum(saved_by_layer(step, layers).values()) if step.config.train.gradient_checkpointing else 0
        largest = max(m.weights for m in layers.linears if m.is_layer) if step.method.quantization else 0
        backward = step.batch.positions * (widths * element + 2 * a.hidden_size * 4)
        return backward + again + step.compute_element * largest

    return max(map(of, a.layers))


def _shared(alone: Terms, step: PlannedStep) -> Terms:
    """What each device holds of what one would hold alone; activations are of its own micro-batch."""
    n, a, gradients = step.devices, step.shape, step.static.gradients
    if n == 1:
        return alone
    if step.strategy == "ddp":
        return replace(alone, gradients=alone.gradients + gradients)  # the buckets that they travel in
    cut = replace(alone, gradients=ceil(alone.gradients / n), optimizer=ceil(alone.optimizer / n))
    if step.strategy == "zero2":
        return cut
    layers = base_bytes(a.tensors | {"embeddings": []}, step.method.quantization, step.weights_element)
    whole = step.weights_element * base_parameters(a)["embeddings"] + _GATHERED_LAYERS * layers // a.depth
    copies = alone.casts
    if step.config.train.gradient_checkpointing:  # autocast's, of the one layer that is computed again
        matrices = base_parameters(a)["linear"] if step.trains_all else 0
        copies = min(copies, step.compute_element * matrices // a.depth)
    layer_gradient = gradients // a.depth if step.trains_all else 0  # before it is cut
    workspace = alone.workspace + layer_gradient
    return replace(cut, weights=ceil(alone.weights / n), casts=whole + copies, workspace=workspace)


# --- What a layer keeps for the backward pass: tensor -> bytes; a storage that two operations keep stands once ---


def saved_by_layer(step: PlannedStep, layers: Layers | None = None) -> dict[str, int]:
    """Of a decoder layer behind the first one, when nothing is checkpointed.

    To the byte for llama, mistral, qwen2 and qwen3; of counted kinds an approximation in the same terms, from the
    widths of their layers (docs/planner.md says which were measured).

    Args:
        layers: which of the model's; None: the first of them.
    """
    layer = _Layer(step, layers or step.shape.layers[0])
    if step.compiled:
        layer.saved = _saved_by_compiled_layer(step, layer.layers)
    else:
        layer.walk(residual_element(step))
    return {name: step.batch.positions * size for name, size in layer.saved.items()} | layer.whole


def residual_element(step: PlannedStep) -> int:
    """Bytes of an element of the residual stream between two layers."""
    return _Layer(step, step.shape.layers[0]).walk(step.weights_element)


class _Tensor(NamedTuple):
    """What flows between the operations; `bytes`: of an element."""

    name: str
    bytes: int


class _Layer:
    """Walks through a decoder layer, operation by operation, and notes what is kept."""

    def __init__(self, step: PlannedStep, layers: Layers):
        self._step, self._hidden, self.layers = step, step.shape.hidden_size, layers
        self.saved: dict[str, int] = {}  # bytes a position
        self.whole: dict[str, int] = {}  # bytes, whatever the number of positions

    def walk(self, residual: int) -> int:
        """Note everything; element bytes of the residual stream that comes in, and of the one that goes out."""
        layers, hidden, compute = self.layers, self._hidden, self._step.compute_element
        normed = self._norm("input_layernorm", _Tensor("residual", residual), hidden)
        (*reading, output), _, _ = layers.parts
        read = [self._linear(module, normed) for module in reading]
        if layers.head_norms:
            self._norm("q_norm", read[0], layers.queries, layers.heads)
            self._norm("k_norm", read[-1], layers.keys, layers.keys * layers.heads // layers.queries)
        self.saved |= _attention(self._step, layers)
        mixed = self._linear(output, _Tensor("attention", compute))
        middle = _Tensor("residual.middle", max(residual, mixed.bytes))
        if layers.norms > 1:  # with one, attention and feed-forward part read the same
            normed = self._norm("post_attention_layernorm", middle, hidden)
        down = self._feed_forward(normed)
        for further in range(2, layers.norms):  # of what attention and feed-forward part give
            self._norm(f"norm.{further}", _Tensor(f"norm.{further}.input", down), hidden)
        return max(middle.bytes, down)

    def _feed_forward(self, normed: _Tensor) -> int:
        """Bytes of an element of what it gives."""
        _, widening, narrowing = self.layers.parts
        wide = [self._linear(module, normed) for module in widening]
        for module, out in zip(widening, wide, strict=True):
            self._keep(out.name, module.outputs, out.bytes)
        inner = sum(module.inputs for module in narrowing)
        if sum(module.outputs for module in widening) >= 2 * inner:  # gated: the product's other factor
            self._keep("silu", inner, wide[0].bytes)
        product = _Tensor("product", max(out.bytes for out in wide))
        for module in narrowing:
            if module.share < 1:  # an expert's output, which the router's weight multiplies
                self._keep(f"{module.name}.output", module.outputs, self._step.compute_element)
        return max(self._linear(module, product).bytes for module in narrowing)

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

    def _linear(self, module: Linear, given: _Tensor) -> _Tensor:
        """A linear layer, trained, frozen, or frozen with an adapter."""
        step, compute = self._step, self._step.compute_element
        if step.trains_all:
            as_given = given.bytes == compute and module.share == 1
            self._keep(given.name if as_given else f"{module.name}.input", module.inputs, compute)
            return _Tensor(module.name, compute)
        # bitsandbytes gives back the dtype that it was given, a plain linear layer that of autocast
        out = given.bytes if step.method.quantization and module.is_layer else compute
        if not step.adapts(self.layers, module):
            return _Tensor(module.name, out)
        self._adapter(module, given)
        if not module.is_layer:  # PEFT adds the adapter's product to the weight itself
            self.whole[f"{module.name}.sum"] = module.weights * compute
            return _Tensor(module.name, out)
        return _Tensor(module.name, 4 if step.adds_in_fp32 else out)

    def _adapter(self, module: Linear, given: _Tensor) -> None:
        step, adapter, compute = self._step, self._step.method.adapter, self._step.compute_element
        assert adapter is not None
        if adapter.dropout:
            self._keep(f"{module.name}.dropout", module.columns, 1 if step.device == "cuda" else 4)
        # PEFT casts the branch's input to the adapter's fp32 and autocast casts it back: a copy of its own. For 4-bit
        # layers it leaves that out where it sees autocast, which it does on CUDA alone.
        as_given = not step.autocast or (step.method.quantization and step.device == "cuda" and given.bytes == compute)
        shared = as_given and not adapter.dropout
        self._keep(given.name if shared else f"{module.name}.input", module.inputs, compute)
        if module.is_layer:
            self._keep(f"{module.name}.A", adapter.rank, compute)
        if adapter.use_dora:  # the branch's output and the base's, and the identity that PEFT multiplies to get B A
            self._keep(f"{module.name}.B", module.rows, compute)
            self._keep(f"{module.name}.base", module.rows, 4 if step.adds_in_fp32 else compute)
            self.whole[f"{module.name}.identity"] = module.columns * (module.columns + adapter.rank) * compute


def _attention(step: PlannedStep, layers: Layers) -> dict[str, int]:
    """Scaled dot products: a fused kernel keeps its inputs, its output and one number a row; eager the scores."""
    compute, queries = step.compute_element, layers.queries
    kept_keys = queries if step.repeats_keys else layers.keys
    saved = {"query": queries * compute, "key": kept_keys * compute, "value": kept_keys * compute}
    if step.eager_attention:
        scores = layers.heads * step.batch.length
        return saved | {"scores": 4 * scores, "scores.cast": compute * scores if compute != 4 else 0}
    saved |= {"attention": queries * compute, "logsumexp": layers.heads * 4}
    return saved | ({"mask": step.batch.length * compute} if step.repeats_keys else {})


def _saved_by_compiled_layer(step: PlannedStep, layers: Layers) -> dict[str, int]:
    """Bytes a position."""
    hidden, adapter, compute = step.shape.hidden_size, step.method.adapter, step.compute_element
    (*reading, output), widening, narrowing = layers.parts

    def read(modules: list[Linear]) -> bool:
        return step.trains_all or any(step.adapts(layers, module) for module in modules)

    reads = [read(reading), read(widening)]
    adapted = [module for module in layers.linears if step.adapts(layers, module)]
    saved = {
        "residual": hidden * step.weights_element,
        # with an fp32 stream the attention's output, 16-bit, instead; other norms read as much
        "residual.middle": (layers.norms - 1) * hidden * compute,
        "rsqrt": layers.norms * 4,
        "normed": min(sum(reads), layers.norms) * hidden * compute,  # one copy for all linear layers that read it
        "attention": layers.queries * compute,
        "wide": sum(module.outputs for module in widening) * compute,  # gate and up
        "A": len(adapted) * (adapter.rank if adapter else 0) * compute,
    }
    if read(narrowing):
        saved["product"] = sum(module.inputs for module in narrowing) * compute
    if output in adapted:
        saved["self_attn.o_proj.input"] = layers.queries * compute
    if layers.head_norms:
        key_heads = layers.keys * layers.heads // layers.queries
        saved["head norms"] = (layers.queries + layers.keys) * compute + 4 * (layers.heads + key_heads)
    return saved | _attention(step, layers)
