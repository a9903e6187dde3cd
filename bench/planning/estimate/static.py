"""Bytes of weights, gradients and optimizer state: what `record.train.breakdown` measures.

Sources: bitsandbytes' `functional.quantize_4bit` and `quantize_blockwise` (blocks of 64 weights with one scale; with
double quantization the scales in 8 bit, in blocks of 256), `optim.optimizer.Optimizer2State` (8-bit states in blocks
of 256, tensors under 4,096 elements in 32 bit), transformers' `Trainer.create_optimizer` (embeddings in 32 bit under
8-bit optimizers), `torch.optim.AdamW` (two moments in the parameter's dtype and one fp32 step a tensor).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from bench.planning.estimate.parameters import adapter_tensors, base_tensors
from bench.spec.architecture import ArchitectureConfig
from bench.spec.config import MethodConfig, QuantizationConfig

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
