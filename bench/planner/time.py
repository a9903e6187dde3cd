"""How long a run will take, from the arithmetic that it needs and the share of the device's speed that others reached.

    seconds = FLOPs / (utilization x devices x hardware.bf16_tflops x 10^12)

Gradient checkpointing computes the layers' forward pass twice, which counts as done, not as needed: it lengthens the
time at one utilization. Energy is the time at the device's full power, so at most that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from bench.config import MethodConfig, PositiveInt, RunConfig
from bench.planner.past import Counts
from bench.planner.tensors import Architecture, Shape, adapter_tensors, shape_of

COMPILE_REPAYS_FROM_STEPS = 20  # train.compile=auto; measured: docs/maintainers/performance.md
Range = tuple[float, float]  # (at the high utilization, at the low one) for costs; (low, high) for speeds
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]


def _listed(given: Any) -> Any:
    """One memory, or several with commas, as a list."""
    given = given.split(",") if isinstance(given, str) else given
    return given if given is None or isinstance(given, list) else [given]


# --- How far estimates are from what is measured: taken from runs that others published ---

CALIBRATION = Path(__file__).with_name("calibration.yaml")  # written by `python -m benchmarks.planner calibrate`
Quantity = Literal["peak_memory", "utilization"]


@dataclass(frozen=True)
class Interval:
    """The middle 90% of what was measured."""

    low: float  # of a peak: measured / estimated; of utilization: of the data sheet's FLOPs, recomputation counted
    high: float
    runs: int  # that it was taken from
    sources: int


@cache
def interval(device: str, quantity: Quantity) -> Interval | None:
    """Of a kind of device; None: nobody measured enough."""
    content = yaml.safe_load(CALIBRATION.read_text(encoding="utf-8"))
    found = content.get(device, {}).get(quantity)
    return None if found is None else Interval(**found)


def peak_interval_bytes(peak_memory_bytes: int, device: str) -> tuple[int, int] | None:
    """Where the measured peak is expected to lie, nine times of ten; None: not known for this kind of device."""
    found = interval(device, "peak_memory")
    return None if found is None else (round(peak_memory_bytes * found.low), round(peak_memory_bytes * found.high))


# --- How long a run will take ---


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PlanConfig:
    """What the planner assumes beside the run's own settings; each is explained in `conf/plan.yaml`."""

    memory_gib: Annotated[list[_Positive] | None, BeforeValidator(_listed)] = None
    supervised_share: _Share = 1.0
    padded: bool = True
    tokens_per_example: PositiveInt | None = None
    examples: PositiveInt | None = None
    utilization: tuple[_Share, _Share] | None = None

    @property
    def utilization_range(self) -> tuple[float, float]:
        """(low, high): as given, else between which nine of ten published runs lie."""
        found = interval("cuda", "utilization")
        assert found is not None
        return self.utilization or (found.low, found.high)


@dataclass(frozen=True)
class LinearCosts:
    """FLOPs of forward and backward together."""

    per_token: int  # all linear layers but the head
    per_supervised_token: int  # the head
    per_attended_pair: int  # attention scores and their use, over all layers


def linear_flops(weights: int, *, trained: bool) -> int:
    """Per token, forward and backward, of linear layers with so many weights."""
    return weights * (6 if trained else 4)  # 2 each: forward, gradient of the input, gradient of the weights


def attention_flops(channels: int) -> int:
    """Per attended pair, forward and backward; channels: of all heads of all layers."""
    return 3 * 4 * channels


def planned_costs(architecture: Architecture, method: MethodConfig, length: float = 0) -> LinearCosts:
    """What training by a method will need.

    Args:
        length: tokens of an example, where layers may see a window alone; 0: they see all.
    """
    a, trained = shape_of(architecture), method.trains == "all_weights"
    adapter = sum(adapter_tensors(a, method.adapter))
    return LinearCosts(
        linear_flops(a.multiplied(), trained=trained) + linear_flops(adapter, trained=True),
        linear_flops(a.vocab_size * a.hidden_size, trained=trained),
        attention_flops(_attending(a, length)),
    )


def _attending(a: Shape, length: float) -> int:
    """Channels of all heads of all layers, those with a window by the part of an example's pairs that it holds."""
    channels = 0.0
    for layers in a.layers:
        w = min(layers.window or length, length)
        part = w * (2 * length - w + 1) / (length * (length + 1)) if length else 1
        channels += layers.count * layers.queries * part
    return round(channels)


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


@dataclass(frozen=True)
class Duration:
    """Of the whole run on all devices; None where a number is not known."""

    tokens: int | None
    tokens_per_second: Range | None
    hours: Range | None
    kwh: Range | None
    usd: Range | None


def duration(config: RunConfig, architecture: Architecture, options: PlanConfig) -> Duration:
    """Time, energy and money of training."""
    hardware, train, length = config.hardware, config.train, options.tokens_per_example or config.train.max_length
    examples = options.examples or config.task.train_examples
    count = None if examples is None else examples * train.epochs
    count = count if train.max_steps is None else train.max_steps * train.batch_size
    tokens = None if count is None else count * length
    if hardware.bf16_tflops is None or config.method.trains == "nothing":
        return Duration(tokens, None, None, None, None)
    of_one = Counts(1, None, None, length, exact=True, supervised_share=options.supervised_share)
    done = example_flops(done_costs(config, architecture, length), of_one)
    low, high = (
        share * hardware.devices * hardware.bf16_tflops * 1e12 * length / done for share in options.utilization_range
    )
    hours = None if tokens is None else (tokens / high / 3600, tokens / low / 3600)

    def times(rate: float | None) -> Range | None:
        factor = None if rate is None else rate * hardware.devices
        return None if hours is None or factor is None else (hours[0] * factor, hours[1] * factor)

    kilowatts = None if hardware.watts is None else hardware.watts / 1000
    return Duration(tokens, (low, high), hours, times(kilowatts), times(hardware.price_usd_per_hour))


def planned_seconds(
    config: RunConfig, architecture: Architecture, counts: Counts, flops_per_second: float
) -> tuple[float | None, float | None]:
    """(training, held-out losses), a device computing so many FLOPs a second; None: the counts are not known."""
    done = done_costs(config, architecture, counts.tokens_per_example)
    forward = forward_costs(architecture, counts.tokens_per_example)
    train = None if counts.train is None else counts.train * example_flops(done, counts)
    losses = None if counts.heldout is None else counts.heldout * example_flops(forward, counts)
    devices = config.hardware.devices
    return train and train / flops_per_second / devices, losses and losses / flops_per_second


def example_flops(costs: LinearCosts, counts: Counts) -> float:
    """Of an example of the mean length."""
    length = counts.tokens_per_example
    supervised, pairs = length * counts.supervised_share, length * (length + 1) / 2
    return costs.per_token * length + costs.per_supervised_token * supervised + costs.per_attended_pair * pairs


def forward_costs(architecture: Architecture, length: float = 0) -> LinearCosts:
    """Of a loss alone: two a weight. `length` as in `planned_costs`."""
    a = shape_of(architecture)
    attention = attention_flops(_attending(a, length)) // 3
    return LinearCosts(2 * a.multiplied(), 2 * a.vocab_size * a.hidden_size, attention)


def done_costs(config: RunConfig, architecture: Architecture, length: float = 0) -> LinearCosts:
    """FLOPs that are computed: those needed, and with checkpointing the layers' forward pass once more."""
    costs = planned_costs(architecture, config.method, length)
    if not config.train.gradient_checkpointing:
        return costs
    return replace(
        costs,
        per_token=costs.per_token + 2 * shape_of(architecture).multiplied(),
        per_attended_pair=costs.per_attended_pair + costs.per_attended_pair // 3,
    )
