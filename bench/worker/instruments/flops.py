"""What the loaded model needs, and the share of the device's matmul speed that it reached (MFU).

The formula is `bench.planner.time`; here its numbers are read off a model.

    >>> costs = linear_costs(model)
    >>> needed_flops(costs, tokens=1000, supervised_tokens=90, attended_pairs=70_000)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.planner.time import LinearCosts, attention_flops, linear_flops, needed_flops

__all__ = ["LinearCosts", "linear_costs", "matmul_peak_flops_per_second", "needed_flops"]


def linear_costs(model: Any) -> LinearCosts:
    """Read off a model, quantized or not, with or without adapters."""
    head = model.get_output_embeddings()
    body = sum(_flops(module) for module in model.modules() if _is_linear(module) and module is not head)
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    channels = config.num_hidden_layers * config.num_attention_heads * head_dim
    return LinearCosts(body, _flops(head), attention_flops(channels))


def matmul_peak_flops_per_second(
    device: str, dtype: torch.dtype, synchronize: Callable[[], None], seconds: float = 0.3
) -> float:
    """The best of several large square products: what the device can really do, not its data sheet."""
    size = 4096 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    left @ right  # the first call chooses kernels
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        synchronize()
        started = time.perf_counter()
        left @ right
        synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)  # bitsandbytes' and PEFT's inner layers are linear layers too


def _flops(module: Any) -> int:
    """Per token, forward and backward, of one linear layer."""
    weight = module.weight
    quantized = getattr(weight, "quant_state", None)
    size: int = weight.numel() if quantized is None else quantized.shape.numel()
    return linear_flops(size, trained=weight.requires_grad)
