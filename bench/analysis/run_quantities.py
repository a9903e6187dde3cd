"""Quantities of public claims that are one number a run: memory, sizes, counts, cost.

Each is one small function of a record; what the record does not hold is a `NotMeasuredError` with the reason.

    >>> RUN_QUANTITIES["static_bytes_per_parameter"].of(full_run)
    16.0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.analysis.claim_arms import NotMeasuredError
from bench.analysis.frame import phase_memory
from bench.record import MemoryBreakdown, Record, TrainResult

GB, MB = 1e9, 1e6  # as the claims count, in powers of ten
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class RunQuantity:
    """How to read it off a record, and whether it is a count: the same whenever it is taken again."""

    of: Callable[[Record], float]
    exact: bool


def trained(record: Record) -> TrainResult:
    """The training stage.

    Raises:
        NotMeasuredError: the run was not trained, or its training did not finish.
    """
    if record.train is None:
        raise NotMeasuredError(f"{record.method} has no training result")
    return record.train


def peak_memory_gb(record: Record) -> float:
    """Peak of the training phase. CPU: less what the process held before the model was loaded. CUDA: allocated."""
    phase = phase_memory(trained(record).memory, "train")
    if phase is None or phase.peak_bytes is None:
        raise NotMeasuredError(f"{record.method} has no peak memory of the training phase")
    return (phase.peak_bytes if phase.above_start_bytes is None else phase.above_start_bytes) / GB


def static_bytes_per_parameter(record: Record) -> float:
    """(weights + gradients + optimizer state) / all parameters, adapters included."""
    parts = _breakdown(record)
    total = parts.weights_bytes + parts.gradients_bytes + parts.optimizer_bytes
    return total / trained(record).parameters_total


def base_weights_gb(record: Record) -> float:
    """Weights and quantization constants without the adapter."""
    return _base_weights_bytes(record) / GB


def bits_per_quantized_parameter(record: Record) -> float:
    """Bits of a quantized weight with its share of the constants; the other base weights are taken as 16 bit."""
    count = trained(record).parameters_quantized
    if not count:
        raise NotMeasuredError(f"the record of {record.method} does not tell how many parameters are quantized")
    others = base_parameters(record) - count
    return (_base_weights_bytes(record) - others * _ITEM_BYTES[_weights_dtype(record)]) * 8 / count


def trainable_share(record: Record) -> float:
    """Trained parameters / all parameters, adapters included."""
    return trained(record).parameters_trainable / trained(record).parameters_total


def trainable_parameters(record: Record) -> float:
    """How many parameters are trained."""
    return trained(record).parameters_trainable


def checkpoint_mb(record: Record) -> float:
    """The weights that training wrote: the adapter, or the whole model."""
    size_bytes = trained(record).checkpoint_bytes
    if size_bytes is None:
        raise NotMeasuredError("a trial of a learning rate keeps no weights")
    return size_bytes / MB


def cost_usd(record: Record) -> float:
    """Training seconds at the machine's price."""
    price = record.config.hardware.price_usd_per_hour
    if price is None:
        raise NotMeasuredError("the machine has no price; set hardware.price_usd_per_hour")
    return trained(record).train_seconds / 3600 * float(price)


def base_parameters(record: Record) -> int:
    """Parameters of the base model, without the adapter.

    Raises:
        NotMeasuredError: neither the record nor its settings tell.
    """
    if record.train is not None:
        return record.train.parameters_total - _adapter_parameters(record)
    told = record.config.model.parameters
    if told is None:
        raise NotMeasuredError(f"the record of {record.method} does not tell how many parameters the model has")
    return told


RUN_QUANTITIES = {
    "peak_memory_gb": RunQuantity(peak_memory_gb, exact=False),
    "static_bytes_per_parameter": RunQuantity(static_bytes_per_parameter, exact=True),
    "base_weights_gb": RunQuantity(base_weights_gb, exact=True),
    "bits_per_quantized_parameter": RunQuantity(bits_per_quantized_parameter, exact=True),
    "trainable_share": RunQuantity(trainable_share, exact=True),
    "trainable_parameters": RunQuantity(trainable_parameters, exact=True),
    "checkpoint_mb": RunQuantity(checkpoint_mb, exact=True),
    "cost_usd": RunQuantity(cost_usd, exact=False),
}


def _breakdown(record: Record) -> MemoryBreakdown:
    parts = trained(record).breakdown
    if parts is None:
        raise NotMeasuredError(f"{record.method} has no breakdown of its memory")
    return parts


def _base_weights_bytes(record: Record) -> int:
    adapter_bytes = _adapter_parameters(record) * _ITEM_BYTES[trained(record).trainable_dtype]
    return _breakdown(record).weights_bytes - adapter_bytes


def _adapter_parameters(record: Record) -> int:
    """All trained parameters are the adapter's, where there is one."""
    has_adapter = record.config.method.adapter is not None
    return trained(record).parameters_trainable if has_adapter else 0


def _weights_dtype(record: Record) -> str:
    return record.config.method.weights_dtype
