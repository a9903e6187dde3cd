"""How long a run will take: by the arithmetic that it needs and the speed that others reached, or by a probe.

    seconds = FLOPs / (utilization x devices x hardware.bf16_tflops x 10^12)

Gradient checkpointing computes the layers' forward pass twice, which counts as done, not as needed: it lengthens the
time at one utilization. Energy is the time at the device's full power, so at most that. A run's time has seven parts
(`PARTS`); docs/numbers.md defines them.

>>> measured_seconds(record)
{'load': 24.1, 'train': 127.2, 'heldout': 43.3, 'generation': 35.2, 'suite': 52.6, 'frontier': 0.0, 'weights': 0.0}
>>> probed_seconds(config, counts, speed)["generation"]
35.0
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from bench.config import MethodConfig, PositiveInt, RunConfig
from bench.identity import data_folder, data_key, digest
from bench.outcome import Status
from bench.planner.tensors import Architecture, Shape, adapter_tensors, shape_of
from bench.record import DataSummary, Record, Speed, from_json

PARTS = {  # of a run's time -> its name for a person
    "load": "load", "train": "train", "heldout": "held-out", "generation": "generation", "suite": "suite",
    "frontier": "frontier", "weights": "weights",
}  # fmt: skip
WHEN_ASKED = ("frontier", "weights")  # parts that few runs have: stages, from the start to the end of their process
_SPANS = {
    "train_steps": "train", "heldout": "heldout", "generate": "generation", "score": "generation",
    "regression": "suite", "divergence": "suite",
}  # fmt: skip
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
    count = None if examples is None else config.task.with_general(examples) * train.epochs
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


# --- The parts of a run's time ---


@dataclass(frozen=True)
class Counts:
    """What a run works through; None: not known before the data are there."""

    train: int | None  # examples, all epochs
    heldout: int | None  # examples whose loss is computed: validation at every point, and the test split
    test: int | None  # answers
    tokens_per_example: float
    exact: bool  # from the prepared data; else from the settings, with the longest examples allowed
    supervised_share: float = 1.0  # of the tokens

    @property
    def tokens(self) -> float | None:
        """That are trained on."""
        return None if self.train is None else self.train * self.tokens_per_example


def prepared(config: RunConfig) -> DataSummary | None:
    """What the prepared data hold; None: not known yet."""
    with suppress(OSError, ValueError):
        return from_json(DataSummary, (data_folder(config) / "summary.json").read_bytes())
    return None


def not_asked(config: RunConfig, counts: Counts) -> dict[str, float | None]:
    """Parts that the run does not have: they take no time."""
    tuned = not config.untrained and not config.trial
    asked = {
        "train": not config.untrained, "heldout": counts.heldout != 0, "generation": counts.test != 0,
        "suite": config.suite.source != "none" and not config.trial,
        "frontier": tuned and config.evaluation.points, "weights": tuned and config.evaluation.weights,
    }  # fmt: skip
    return {part: 0.0 for part, wanted in asked.items() if not wanted}


def counts_of(config: RunConfig, data: DataSummary | None) -> Counts:
    """Of a run on these data; without them as its settings have it."""
    train, task, length = config.train, config.task, float(config.train.max_length)
    trained, validation, test = task.train_examples, task.validation_examples, task.test_examples
    trained = None if trained is None else task.with_general(trained)
    if data is not None:
        trained, validation, test = data.train_examples, data.validation_examples, data.test_examples
        length = data.tokens_per_example_mean
    if train.max_steps is not None:
        trained = train.max_steps * train.batch_size
    elif trained is not None:
        trained *= train.epochs
    points = 0 if config.untrained else train.heldout_points + 1  # and once before the first step
    known = [n for n in (validation, train.heldout_examples) if n is not None]
    heldout = None if test is None or (points and not known) else points * min(known, default=0) + test
    if config.trial:
        heldout, test = (points * min(known) if known else None), 0
    share = data.check.supervised_share if data is not None and data.check else 1.0
    return Counts(0 if config.untrained else trained, heldout, test, length, data is not None, share)


def measured_seconds(record: Record) -> dict[str, float]:
    """Seconds of a finished run by part; `load` is what is left of its stages: starting, loading, saving."""
    if record.status is not Status.OK:
        return {}
    found = dict.fromkeys(PARTS, 0.0) | {part: record.stage_wall_seconds.get(part, 0.0) for part in WHEN_ASKED}
    for stage in ("train", "evaluate", "regression"):
        if (result := getattr(record, stage)) is None:
            continue
        named = {span: seconds for span, seconds in result.spans_seconds.items() if span in _SPANS}
        for span, seconds in named.items():
            found[_SPANS[span]] += seconds
        found["load"] += max(0.0, record.stage_wall_seconds.get(stage, 0.0) - sum(named.values()))
    return found


def speed_path(config: RunConfig, device: str) -> Path:
    """Where a probe keeps a model's speed at a task and a suite, on a device named as `Environment.device` has it."""
    suite = None if config.trial else [asdict(config.suite), config.content.suite]
    name = digest([data_key(config), device, config.hardware.generate_batch, config.hardware.compute_dtype, suite])[:12]
    return Path(config.paths.cache) / "speed" / f"{config.model.name}-{name}.json"


def probed(config: RunConfig, device: str | None) -> Speed | None:
    """What a probe measured; None: there was none, or the device is not known."""
    with suppress(OSError, ValueError):
        return None if device is None else from_json(Speed, speed_path(config, device).read_bytes())
    return None


def probed_seconds(config: RunConfig, counts: Counts, speed: Speed) -> dict[str, float | None]:
    """By part, as far as a probe tells; a part of a batch of answers takes its part of the time."""
    losses = None if counts.heldout is None else counts.heldout * counts.tokens_per_example
    stages = 2 - config.untrained + (config.suite.source != "none")
    return {
        "load": stages * speed.load_seconds,
        "heldout": None if losses is None else losses * speed.forward_seconds_per_token,
        "generation": None if counts.test is None else counts.test / speed.answers * speed.answers_seconds,
        "suite": speed.suite_seconds,
    }
