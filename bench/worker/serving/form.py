"""One way to serve a run's result, as a description: `methods.served_forms` lists those of a method.

>>> merged = Form("merged", start="original", adapter="merged")
>>> Form("merged_nf4", start="original", adapter="merged", before=merged, scheme=QuantizationConfig()).is_what
'the original base with the adapter merged, quantized to nf4'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.config import QuantizationConfig

Start = Literal["original", "quantized", "dequantized", "trained"]
_STARTS: dict[Start, str] = {
    "original": "the original base",
    "quantized": "the quantized base",
    "dequantized": "the quantized base, dequantized,",
    "trained": "all weights as trained",
}
_ADAPTER = {"none": "", "beside": " with the adapter beside it", "merged": " with the adapter merged"}


@dataclass(frozen=True)
class Form:
    """Weights to start from, what is done with the adapter, and whether the result is quantized.

    Attributes:
        start: the base in 16 bit, the base in few bits, that dequantized, or weights that were all trained.
        adapter: left out, computed beside its layers, or merged into their weights.
        scheme: how the result is stored in few bits, made from the 16-bit form `before`; None: as it is.
        base: the form without the adapter, for ratios of latency; None: this is one.
        timed_as: the form with the same layers, whose latency it has; None: timed itself.
    """

    name: str
    start: Start
    adapter: Literal["none", "beside", "merged"] = "none"
    scheme: QuantizationConfig | None = None
    before: Form | None = None
    base: str | None = None
    timed_as: str | None = None

    @property
    def is_built(self) -> bool:
        """Whether it must be written to disk before it can be loaded."""
        return self.adapter == "merged" or self.scheme is not None

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are stored in few bits."""
        return self.scheme is not None or self.start == "quantized"

    @property
    def is_what(self) -> str:
        """In words."""
        bits = f", quantized to {self.scheme.scheme}" if self.scheme else "" if self.is_quantized else ", 16-bit"
        return f"{_STARTS[self.start]}{_ADAPTER[self.adapter]}".rstrip(",") + bits
