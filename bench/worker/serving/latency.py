"""How long each form takes to be ready and to answer, every form in turn, over several repetitions.

A form is loaded anew in every repetition and alone in memory: its peak is its own, and what slows the machine for a
while falls on all forms. The order rotates, so that none always follows the same other. Every answer has the same
number of tokens (the end token is kept from coming), since a form that ends early is not faster.

    first token    the call, the whole prompt, one token for every request of the batch
    total          until the last token; (total - first token) is decoding
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from bench.config import ServeConfig
from bench.record import Generation, ServedForm
from bench.worker import heldout
from bench.worker.instruments.clock import Clock
from bench.worker.instruments.memory import Memory
from bench.worker.progress import Progress
from bench.worker.serving.form import Form
from bench.worker.serving.forms import Origin, disk_bytes, load, weights_bytes

WARM_UP_TOKENS = 2  # of one untimed answer to each kind of batch: buffers are allocated, kernels chosen


class FirstToken(BaseStreamer):
    """Notes when the first token of a batch is there; `generate` puts the prompt before it."""

    def __init__(self, mark: Callable[[], float]):
        self._mark, self._puts = mark, 0
        self.at_seconds: float | None = None

    def put(self, value: torch.Tensor) -> None:
        self._puts += 1
        if self._puts == 2:
            self.at_seconds = self._mark()

    def end(self) -> None: ...


class Prompts:
    """Batches of prompts of any length, cut from the test prompts' own tokens; the same for every form."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self._tokens = [token for row in rows for token in row["prompt_ids"]]

    def batch(self, prompt_tokens: int, size: int) -> torch.Tensor:
        """(size, prompt_tokens); the tokens are used again from the start when they run out."""
        tokens = itertools.islice(itertools.cycle(self._tokens), prompt_tokens * size)
        return torch.tensor(list(tokens)).reshape(size, prompt_tokens)


def answer(model: Any, prompts: torch.Tensor, new_tokens: int, pad_id: int, **more: Any) -> torch.Tensor:
    """Greedy answers of exactly `new_tokens` tokens; `more` goes to `generate` (streamer, adapter_names)."""
    generation = GenerationConfig(
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=pad_id
    )
    prompts = prompts.to(model.device)
    output: torch.Tensor = model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=generation, **more
    )
    return output[:, prompts.shape[1] :]


def measure(
    forms: Sequence[Form],
    at: Origin,
    prompts: Prompts,
    serve: ServeConfig,
    *,
    clock: Clock,
    memory: Memory,
    progress: Progress,
) -> tuple[list[ServedForm], list[Generation]]:
    """(what each form takes to be ready, every timed answer). Peaks go to the phases "load FORM" and "serve FORM"."""
    timed = [form for form in forms if form.timed_as is None]
    ready: dict[str, ServedForm] = {}
    generations: list[Generation] = []
    progress.phase("serve", serve.repetitions * len(timed))
    for repetition in range(serve.repetitions):
        for form in [*timed[repetition % len(timed) :], *timed[: repetition % len(timed)]]:
            memory.enter(f"load {form.name}")
            model, seconds = _ready(form, at, prompts, clock)
            before = ready.get(form.name)
            loads = [*((before and before.load_seconds) or []), seconds]
            ready[form.name] = _described(form, disk_bytes(form, model, at), weights_bytes(model), loads)
            memory.enter(f"serve {form.name}")
            generations += _answers(model, form.name, repetition, at, prompts, serve, clock)
            del model
            progress.advance(sum(len(served.load_seconds or ()) for served in ready.values()))
    memory.stop()
    return [ready.get(form.name) or _described(form, None, None, None) for form in forms], generations


def _described(
    form: Form, on_disk_bytes: int | None, in_memory_bytes: int | None, loads: list[float] | None
) -> ServedForm:
    timed_as = form.timed_as or form.name
    return ServedForm(form.name, form.is_what, timed_as, form.base, on_disk_bytes, in_memory_bytes, loads)


def _ready(form: Form, at: Origin, prompts: Prompts, clock: Clock) -> tuple[Any, float]:
    """The loaded form, and the seconds until it had read one token: weights that are mapped are read by then."""
    started = clock.mark()
    model = load(form, at)
    with heldout.inference(model, at.device):
        answer(model, prompts.batch(1, 1), 1, at.tokenizer.pad_token_id)
    return model, clock.mark() - started


def _answers(
    model: Any, name: str, repetition: int, at: Origin, prompts: Prompts, serve: ServeConfig, clock: Clock
) -> Iterator[Generation]:
    pad_id = at.tokenizer.pad_token_id
    settings = list(itertools.product(serve.prompt_tokens, serve.batch_sizes))
    with heldout.inference(model, at.device):
        for length, size in settings:
            answer(model, prompts.batch(length, size), WARM_UP_TOKENS, pad_id)
        for length, size in settings:
            batch, first = prompts.batch(length, size), FirstToken(clock.mark)
            started = clock.mark()
            answer(model, batch, serve.new_tokens, pad_id, streamer=first)
            ended = clock.mark()
            assert first.at_seconds is not None  # generate has put the prompt and at least one token
            yield Generation(name, length, size, repetition, first.at_seconds - started, ended - started)
