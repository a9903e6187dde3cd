"""The terms that the memory of a training step is made of."""

from __future__ import annotations

from dataclasses import dataclass, fields


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
