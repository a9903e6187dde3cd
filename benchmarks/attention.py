"""Attention of one layer, forward and backward, on this processor: PyTorch's kernel and products with a softmax.

    python -m benchmarks.attention

Shapes of the embedded model (9 heads of 64 channels), 4 rows, bf16, one mask for causality and padding.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch.nn.functional import scaled_dot_product_attention

ROWS, HEADS, CHANNELS = 4, 9, 64
REPETITIONS = 10


def main() -> None:
    """Time both and print a table."""
    torch.manual_seed(0)
    rows = [_compare(length) for length in (128, 256, 512)]
    print(tabulate(rows, ["tokens a row", "sdpa, masked, ms", "sdpa, causal, ms", "written out, ms"], "github"))


def _compare(length: int) -> list[float]:
    shape = (ROWS, HEADS, length, CHANNELS)
    query, key, value = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    gradient = torch.randn(shape, dtype=torch.bfloat16)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    masked = causal.expand(ROWS, 1, length, length).contiguous()

    def written_out() -> torch.Tensor:
        scores = (query @ key.transpose(-1, -2)) / CHANNELS**0.5
        return torch.softmax(scores.masked_fill(~masked, -torch.inf), -1) @ value

    ways: list[Callable[[], torch.Tensor]] = [
        lambda: scaled_dot_product_attention(query, key, value, attn_mask=masked),
        lambda: scaled_dot_product_attention(query, key, value, is_causal=True),
        written_out,
    ]
    return [length, *(round(_milliseconds(lambda way=way: way().backward(gradient)), 1) for way in ways)]


def _milliseconds(run: Callable[[], None]) -> float:
    run()
    started = time.perf_counter()
    for _ in range(REPETITIONS):
        run()
    return (time.perf_counter() - started) * 1000 / REPETITIONS


if __name__ == "__main__":
    main()
