"""What serving measured: each form of a run's result, its timed answers, its fidelity, many adapters on one base.

A `ServeResult` of `bench.record` holds them all; `served_answers.jsonl.gz` has one `ServedAnswer` a line.

    >>> ServedForm("merged", "the original base with the adapter merged, 16-bit", "merged", "base", 269_060_552)
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", ser_json_inf_nan="null")

Way = Literal["mixed", "swapped", "copies"]  # how requests for several adapters are answered on one device


@dataclass(frozen=True, config=_STRICT)
class ServedForm:
    """One form, and what it takes to have it ready."""

    form: str
    is_what: str  # in words, for a person
    timed_as: str  # the form whose latency it has: its own name, or one with the same layers
    base: str | None  # the form that it answers beside or was merged into, for ratios of latency; None: it is one
    disk_bytes: int | None  # the .safetensors needed to load it, base and adapter together
    weights_bytes: int | None = None  # of its tensors in memory, quantization constants included; None: not timed
    load_seconds: list[float] | None = None  # one a repetition: from disk until it has read one token; None: not timed


@dataclass(frozen=True, config=_STRICT)
class Generation:
    """One timed answer to a batch of prompts of equal length; every answer has `ServeConfig.new_tokens` tokens."""

    form: str
    prompt_tokens: int
    batch_size: int
    repetition: int  # from 0
    first_token_seconds: float  # from the call to the first token of the whole batch
    total_seconds: float  # from the call to the last


@dataclass(frozen=True, config=_STRICT)
class LogitDifference:
    """How far two forms' logits are apart at the positions that predict a reference answer's tokens."""

    positions: int
    largest: float | None  # over positions and vocabulary; None: not finite
    mean: float | None
    same_token_share: float  # of positions: both hold the same token for the likeliest


@dataclass(frozen=True, config=_STRICT)
class Fidelity:
    """A form set against the one that was evaluated, on the same test examples."""

    form: str
    examples: int
    scores: dict[str, float]  # metric -> mean over these examples
    test_loss: float | None  # of the reference answers, nats a token
    logits: LogitDifference | None = None  # None: it is the reference itself
    equal_answers: int | None = None  # of `examples`, token by token


@dataclass(frozen=True, config=_STRICT)
class ServedAnswer:
    """One line of `served_answers.jsonl.gz`: what a form wrote for a test example."""

    form: str
    example_id: str
    prediction: str
    scores: dict[str, float]
    loss: float | None  # of the reference answer, nats summed over `loss_tokens`
    loss_tokens: int


@dataclass(frozen=True, config=_STRICT)
class AdapterGeneration:
    """One timed batch while several adapters share a base.

    mixed: one batch holds requests for all of them. swapped: the share of one adapter, its activation included.
    copies: the share of one of as many full models; no longer measured.
    """

    way: Way
    adapters: int
    batch_size: int  # requests in this batch
    repetition: int
    seconds: float


@dataclass(frozen=True, config=_STRICT)
class Adapters:
    """Many adapters on one base."""

    prompt_tokens: int
    adapter_bytes: int  # of one adapter's tensors in memory
    copy_bytes: int  # of a full model's tensors in memory
    load_seconds: list[float]  # one an adapter: from disk until it is the active one
    activate_seconds: list[float]  # of one that is in memory already
    held_bytes: dict[str, int | None]  # number of adapters -> memory held; CUDA: allocated, CPU: resident
    generations: list[AdapterGeneration]
