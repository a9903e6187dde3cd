"""Many adapters on one base: what another one costs in seconds and bytes, and how fast requests for all are answered.

The run's adapter is loaded under many names; what an adapter costs does not depend on its values. A batch of requests
is shared out evenly among the first n adapters, in three ways, one after the other on the one device:

    mixed     one batch for all (PEFT's `adapter_names`)
    swapped   a batch an adapter, which is made the active one first
    copies    a batch a full, merged model; of n models that are alike, one is measured

For `swapped` and `copies` the share of one adapter is measured: the others' take the same time after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from bench.config import ServeConfig
from bench.record import AdapterGeneration, Adapters, Way
from bench.worker import heldout
from bench.worker.instruments.clock import Clock
from bench.worker.instruments.memory import Memory, total_bytes
from bench.worker.progress import Progress
from bench.worker.serving.form import Form
from bench.worker.serving.forms import Origin, load, weights_bytes
from bench.worker.serving.latency import WARM_UP_TOKENS, Prompts, answer

_LARGE_SHARE = 2  # a batch of requests for up to 64 adapters takes long: half of the repetitions


def measure(
    beside: Form, merged: Form, at: Origin, prompts: Prompts, serve: ServeConfig, *,
    clock: Clock, memory: Memory, progress: Progress,
) -> Adapters:  # fmt: skip
    """Load the largest number of adapters, then answer with the first n of them for every n asked for.

    Args:
        beside, merged: the form with its adapter beside it, and the full model that one would serve instead.
    """
    most, length = max(serve.adapters), min(serve.prompt_tokens)
    repetitions = -(-serve.repetitions // _LARGE_SHARE)
    progress.phase("adapters", repetitions * len(get_args(Way)) * len(serve.adapters))
    model = load(beside, at)
    names = [f"adapter{number}" for number in range(most)]
    load_seconds, held = _load_adapters(model, names, at, serve.adapters, clock, memory)
    activate_seconds = [_activate(model, name, clock) for name in names]
    bytes_of_one = _adapter_bytes(model, names[0])
    session = _Session(at, prompts, serve, length, clock)
    generations: list[AdapterGeneration] = []
    with heldout.inference(model, at.device):
        session.warm_up(model)
        for repetition in range(repetitions):
            for count in serve.adapters:
                generations.append(session.mixed(model, names[:count], repetition))
                generations.append(session.alone("swapped", model, count, repetition, activate=names[count - 1]))
                progress.advance(len(generations))
    del model
    memory.enter("copy")  # gives back what the adapters' model took
    copy = load(merged, at)
    copy_bytes = weights_bytes(copy)
    with heldout.inference(copy, at.device):
        session.warm_up(copy)
        for repetition in range(repetitions):
            for count in serve.adapters:
                generations.append(session.alone("copies", copy, count, repetition))
                progress.advance(len(generations))
    memory.stop()
    return Adapters(length, bytes_of_one, copy_bytes, load_seconds, activate_seconds, held, generations)


class _Session:
    """Answers one batch in each way."""

    def __init__(self, at: Origin, prompts: Prompts, serve: ServeConfig, length: int, clock: Clock):
        self._batch = prompts.batch(length, max(serve.adapters))
        self._new_tokens, self._pad_id, self._clock = serve.new_tokens, at.tokenizer.pad_token_id, clock

    def warm_up(self, model: Any) -> None:
        answer(model, self._batch, WARM_UP_TOKENS, self._pad_id)

    def mixed(self, model: Any, names: Sequence[str], repetition: int) -> AdapterGeneration:
        whose = [names[place % len(names)] for place in range(len(self._batch))]
        started = self._clock.mark()
        answer(model, self._batch, self._new_tokens, self._pad_id, adapter_names=whose)
        return self._generation("mixed", len(names), len(self._batch), repetition, started)

    def alone(
        self, way: Way, model: Any, count: int, repetition: int, activate: str | None = None
    ) -> AdapterGeneration:
        share = self._batch[: len(self._batch) // count]
        started = self._clock.mark()
        if activate is not None:
            model.set_adapter(activate)
        answer(model, share, self._new_tokens, self._pad_id)
        return self._generation(way, count, len(share), repetition, started)

    def _generation(self, way: Way, count: int, size: int, repetition: int, started: float) -> AdapterGeneration:
        return AdapterGeneration(way, count, size, repetition, self._clock.mark() - started)


def _load_adapters(
    model: Any, names: Sequence[str], at: Origin, counts: Sequence[int], clock: Clock, memory: Memory
) -> tuple[list[float], dict[str, int | None]]:
    """(seconds from disk to being active of each, memory held with each number of them)."""
    seconds: list[float] = []
    held: dict[str, int | None] = {}
    for count, name in enumerate(names, start=1):
        started = clock.mark()
        model.load_adapter(str(at.weights), adapter_name=name, autocast_adapter_dtype=False)
        model.set_adapter(name)
        seconds.append(clock.mark() - started)
        if count in counts:
            memory.enter(f"{count} adapters")  # gives back what loading took
            held[str(count)] = memory.now()[0]
    return seconds, held


def _activate(model: Any, name: str, clock: Clock) -> float:
    started = clock.mark()
    model.set_adapter(name)
    return clock.mark() - started


def _adapter_bytes(model: Any, name: str) -> int:
    return total_bytes([p for key, p in model.named_parameters() if f".{name}." in key or key.endswith(f".{name}")])
