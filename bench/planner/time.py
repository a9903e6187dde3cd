"""How long a run will take, from the arithmetic that it needs and an assumed share of the device's speed.

    seconds = FLOPs / (utilization x devices x hardware.bf16_tflops x 10^12)

Gradient checkpointing computes the layers' forward pass twice, which counts as done, not as needed: it lengthens the
time at one utilization. Energy is the time at the device's full power, so at most that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.config import ArchitectureConfig, MethodConfig, RunConfig
from bench.planner.memory import PlanConfig, adapter_tensors, base_tensors

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


Range = tuple[float, float]  # (at the high utilization, at the low one) for costs; (low, high) for speeds


@dataclass(frozen=True)
class Duration:
    """Of the whole run on all devices; None where a number is not known."""

    tokens: int | None
    tokens_per_second: Range | None
    hours: Range | None
    kwh: Range | None
    usd: Range | None


def duration(config: RunConfig, architecture: ArchitectureConfig, options: PlanConfig) -> Duration:
    """Time, energy and money of training."""
    hardware, length = config.hardware, options.tokens_per_example or config.train.max_length
    tokens = _tokens(config, options, length)
    if hardware.bf16_tflops is None or config.method.trains == "nothing":
        return Duration(tokens, None, None, None, None)
    done = needed_flops(
        done_costs(config, architecture),
        tokens=length,
        supervised_tokens=round(length * options.supervised_share),
        attended_pairs=length * (length + 1) // 2,
    )
    low, high = (share * options.devices * hardware.bf16_tflops * 1e12 * length / done for share in options.utilization)
    hours = None if tokens is None else (tokens / high / 3600, tokens / low / 3600)

    def times(rate: float | None) -> Range | None:
        factor = None if rate is None else rate * options.devices
        return None if hours is None or factor is None else (hours[0] * factor, hours[1] * factor)

    watts = hardware.watts
    return Duration(
        tokens, (low, high), hours, times(None if watts is None else watts / 1000), times(hardware.price_usd_per_hour)
    )


def done_costs(config: RunConfig, architecture: ArchitectureConfig) -> LinearCosts:
    """FLOPs that are computed: those needed, and with checkpointing the layers' forward pass once more."""
    costs = planned_costs(architecture, config.method)
    if not config.train.gradient_checkpointing:
        return costs
    weights = planned_costs(architecture, replace(config.method, trains="nothing", adapter=None)).per_token // 4
    return replace(
        costs,
        per_token=costs.per_token + 2 * weights,
        per_attended_pair=costs.per_attended_pair + costs.per_attended_pair // 3,
    )


def _tokens(config: RunConfig, options: PlanConfig, length: int) -> int | None:
    """Of all epochs, or of the steps that are allowed."""
    train, examples = config.train, options.examples or config.task.train_examples
    of_epochs = None if examples is None else examples * train.epochs
    of_steps = None if train.max_steps is None else train.max_steps * train.batch_size
    limits = [count for count in (of_epochs, of_steps) if count is not None]
    return min(limits) * length if limits else None
