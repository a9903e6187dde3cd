"""In which dtypes a method computes, as the worker runs it: what decides the size of every saved tensor.

full        fp32 master weights, copied to bf16 by autocast wherever they multiply; fp32 residual stream
full_bf16   bf16 throughout
lora        bf16 base, fp32 adapters under autocast; eager layers add the branch in fp32, which makes the
            residual stream fp32 (docs/numerics.md), compiled ones do not
float32     where the processor has no bf16: everything fp32, no autocast
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.planning.estimate.parameters import adapted
from bench.planning.estimate.static import BYTES
from bench.spec.architecture import ArchitectureConfig
from bench.spec.config import HardwareConfig, MethodConfig, TrainConfig

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
