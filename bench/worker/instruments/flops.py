"""The arithmetic that a method needs, and the share of the device's matmul speed that it reached (MFU).

Needed, not done: padding, recomputed activations and dequantization are overhead, and lower the MFU. Per token a
weight of a linear layer takes 2 FLOPs forward, 2 for the gradient of its input, and 2 for its own gradient, which
frozen weights do not need: full fine-tuning takes 6, the frozen base of LoRA and QLoRA 4 (Kaplan et al. 2020,
"Scaling Laws for Neural Language Models", section 2.1; the head is counted on supervised tokens only). Attention
takes 4 FLOPs per pair of positions, layer and channel forward, and twice that backward.

    >>> costs = linear_costs(model)
    >>> needed_flops(costs, tokens=1000, supervised_tokens=90, attended_pairs=70_000)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_FORWARD, _INPUT_GRADIENT, _WEIGHT_GRADIENT = 2, 2, 2


@dataclass(frozen=True)
class LinearCosts:
    """FLOPs of forward and backward together."""

    per_token: int  # all linear layers but the head
    per_supervised_token: int  # the head
    per_attended_pair: int  # attention scores and their use, over all layers


def linear_costs(model: Any) -> LinearCosts:
    """Read off a model, quantized or not, with or without adapters."""
    head = model.get_output_embeddings()
    body = sum(_flops(module) for module in model.modules() if _is_linear(module) and module is not head)
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    channels = config.num_hidden_layers * config.num_attention_heads * head_dim
    return LinearCosts(body, _flops(head), 3 * 4 * channels)


def needed_flops(costs: LinearCosts, *, tokens: int, supervised_tokens: int, attended_pairs: int) -> int:
    """FLOPs of training on so many tokens.

    Args:
        tokens: non-padding tokens.
        attended_pairs: pairs of a token and one it attends to; n (n + 1) / 2 for a causal sequence of n.
    """
    return (
        costs.per_token * tokens
        + costs.per_supervised_token * supervised_tokens
        + costs.per_attended_pair * attended_pairs
    )


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
    return size * (_FORWARD + _INPUT_GRADIENT + (_WEIGHT_GRADIENT if weight.requires_grad else 0))
