"""How long a run will take, from the arithmetic that it needs and an assumed share of the device's speed.

    seconds = FLOPs / (utilization x devices x hardware.bf16_tflops x 10^12)

Gradient checkpointing computes the layers' forward pass twice, which counts as done, not as needed: it lengthens the
time at one utilization. Energy is the time at the device's full power, so at most that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.planning.estimate.flops import LinearCosts, needed_flops, planned_costs
from bench.spec.architecture import ArchitectureConfig
from bench.spec.config import RunConfig
from bench.spec.plan import PlanConfig

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
