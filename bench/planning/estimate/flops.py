"""The arithmetic that a method needs: one formula for what is planned and what is measured.

Needed, not done: padding, recomputed activations and dequantization are overhead, and lower the MFU. Per token a
weight of a linear layer takes 2 FLOPs forward, 2 for the gradient of its input, and 2 for its own gradient, which
frozen weights do not need: full fine-tuning takes 6, the frozen base of LoRA and QLoRA 4 (Kaplan et al. 2020,
"Scaling Laws for Neural Language Models", section 2.1; the head is counted on supervised tokens only). Attention
takes 4 FLOPs per pair of positions, layer and channel forward, and twice that backward.

    >>> costs = planned_costs(architecture, method)
    >>> needed_flops(costs, tokens=1000, supervised_tokens=90, attended_pairs=70_000)
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.planning.estimate.parameters import adapter_tensors, base_tensors
from bench.spec.architecture import ArchitectureConfig
from bench.spec.config import MethodConfig

_FORWARD, _INPUT_GRADIENT, _WEIGHT_GRADIENT = 2, 2, 2


@dataclass(frozen=True)
class LinearCosts:
    """FLOPs of forward and backward together."""

    per_token: int  # all linear layers but the head
    per_supervised_token: int  # the head
    per_attended_pair: int  # attention scores and their use, over all layers


def linear_flops(weights: int, *, trained: bool) -> int:
    """Per token, forward and backward, of linear layers with so many weights."""
    return weights * (_FORWARD + _INPUT_GRADIENT + (_WEIGHT_GRADIENT if trained else 0))


def attention_flops(channels: int) -> int:
    """Per attended pair, forward and backward; channels: of all heads of all layers."""
    return 3 * 4 * channels


def planned_costs(architecture: ArchitectureConfig, method: MethodConfig) -> LinearCosts:
    """What training by a method will need."""
    a, trained = architecture, method.trains == "all_weights"
    adapter = sum(adapter_tensors(a, method.adapter)) if method.adapter else 0
    return LinearCosts(
        linear_flops(sum(base_tensors(a)["linear"]), trained=trained) + linear_flops(adapter, trained=True),
        linear_flops(a.vocab_size * a.hidden_size, trained=trained),
        attention_flops(a.num_hidden_layers * a.num_attention_heads * a.head_dim),
    )


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
