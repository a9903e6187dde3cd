"""One model, trained again and again with all instruments or with none: the two arms of `benchmarks.observer`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from bench.config import RunConfig
from bench.identity import data_folder
from bench.worker import data, device, methods, models, train
from bench.worker import data as prepare
from bench.worker.instruments import tokens as flops
from bench.worker.instruments.clock import Clock, open_load
from bench.worker.instruments.energy import open_energy
from bench.worker.instruments.memory import open_memory
from bench.worker.loss import SupervisedHead
from bench.worker.main import Context
from bench.worker.observe import Observer

Seconds = dict[str, list[float]]  # by function of the observer, one a call

INSIDE = ("step_starts", "forward_starts", "consumed", "on_pre_optimizer_step", "on_optimizer_step")
OUTSIDE = ("on_step_end", "on_log", "_enter")  # on_log calls _enter, whose time is taken off again


class Arms:
    """One loaded model, trained again and again from the same weights on the same batches."""

    def __init__(self, context: Context):
        config = context.config
        rows = prepare.load_prepared(data_folder(config)).train
        lengths = [data.row_length(row) for row in rows]
        budget = {"epochs": config.train.epochs, "max_steps": config.train.max_steps}
        order = data.training_order(lengths, seed=0, batch_size=config.train.batch_size, **budget)
        self._rows = [rows[i] for i in order]
        self._steps = data.steps_of(order, config.train.batch_size)
        self._context, self._config = context, config
        self._device = device.resolve(config, self._steps)
        self._model, self._pad_id = _load(context, config, self._device)
        self._head = SupervisedHead(self._model)
        self._start = {n: p.detach().clone() for n, p in self._model.named_parameters() if p.requires_grad}

    def needed_flops(self) -> dict[str, int]:
        """Of all steps: of the linear layers and of attention, padding left out."""
        lengths = [data.row_length(row) for row in self._rows]
        supervised = sum(len(row["answer_ids"]) for row in self._rows)
        pairs = sum(n * (n + 1) // 2 for n in lengths)
        costs = flops.linear_costs(self._model)
        return {
            "matrix products": costs.per_token * sum(lengths) + costs.per_supervised_token * supervised,
            "attention": costs.per_attended_pair * pairs,
        }

    def train(self, instruments: bool, own: Seconds) -> tuple[list[float], list[float]]:
        """One run of all steps: (seconds inside, seconds of wall) by step. `own` takes what the observer used."""
        for name, parameter in self._model.named_parameters():
            if name in self._start:
                parameter.data.copy_(self._start[name])
        stopwatch = Stopwatch(self._device.synchronize)
        observer: Any = self._observer(own) if instruments else Nothing()
        load = open_load(self._device.type) if instruments else None
        arguments = train.training_arguments(self._config, self._device, self._steps, self._context.folder / "trainer")
        trainer = Timed(
            stopwatch=stopwatch,
            model=self._model,
            args=arguments,
            callbacks=[stopwatch, *([observer] if instruments else [])],
            train_dataset=self._rows,
            data_collator=functools.partial(data.collate, pad_id=self._pad_id),
            head=self._head,
            observer=observer,
        )
        trainer.remove_callback(PrinterCallback)
        stopwatch.called = time.perf_counter()
        if load:
            load.start()
        trainer.train()
        if load:
            load.read()
        return stopwatch.inside(), stopwatch.wall()

    def _observer(self, own: Seconds) -> Observer:
        memory, energy = open_memory(self._device.type), open_energy(self._device.type)
        context = replace(self._context, clock=Clock(self._device.synchronize))
        observer = Observer(context, self._config, self._steps, memory, energy, measure_heldout=lambda: 3.0)
        for name in (*INSIDE, *OUTSIDE):
            setattr(observer, name, _timed(getattr(observer, name), own, name))
        return observer


class Stopwatch(TrainerCallback):
    """The times that both arms are judged by."""

    def __init__(self, synchronize: Callable[[], None]):
        self._synchronize = synchronize
        self.called = 0.0
        self._starts: list[float] = []
        self._ends: list[float] = []

    def step_starts(self) -> None:
        self._synchronize()
        self._starts.append(time.perf_counter())

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self._synchronize()
        self._ends.append(time.perf_counter())

    def inside(self) -> list[float]:
        return [end - start for start, end in zip(self._starts, self._ends, strict=True)]

    def wall(self) -> list[float]:
        """From step to step; the first from the call of `train()`, the last to its return."""
        edges = [self.called, *self._starts[1:], time.perf_counter()]
        return [float(seconds) for seconds in np.diff(edges)]


class Timed(train.SftTrainer):
    """Tells the stopwatch when a step begins, before the observer hears of it."""

    def __init__(self, *, stopwatch: Stopwatch, **options: Any):
        super().__init__(**options)
        self._stopwatch = stopwatch

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        self._stopwatch.step_starts()
        return super().get_batch_samples(*arguments, **options)


class Nothing:
    """No observer."""

    def step_starts(self) -> None: ...

    def forward_starts(self) -> None: ...

    def consumed(self, *arguments: Any) -> None: ...


def _timed(function: Callable[..., Any], own: Seconds, name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        nested = sum(own["_enter"]) if name != "_enter" else 0.0
        started = time.perf_counter()
        result = function(*arguments, **options)
        seconds = time.perf_counter() - started
        own[name].append(seconds - (sum(own["_enter"]) - nested if name != "_enter" else 0.0))
        return result

    return call


def _load(context: Context, config: RunConfig, resolved: device.Device) -> tuple[Any, int]:
    source = models.locate(config.model, context.cache)
    pad_id = models.load_tokenizer(config.model, source).pad_token_id
    base = methods.load_base(
        config, source, resolved.type, resolved.compute_dtype, attn_implementation=resolved.attention
    )
    model = methods.make_trainable(base, config.method, config.seed)
    if resolved.compiled == "regional":
        from bench.worker.device import compile_layers

        compile_layers(model)
    else:
        methods.add_adapters_in_fp32(model, config.method)
    return model, pad_id
