"""Measures training step by step: time, tokens, memory, and held-out losses in between.

Inside the timed step nothing happens but reading the clock at its edges and keeping references to the batches. All
else (hashing, counting, memory, files) waits until the step has been timed. Of several processes that train together,
each times its own step from a common start; the first writes what all did together (`multi.whole_step`).

    >>> observer = Observer(context, config, steps, memory, energy, measure_heldout)
    >>> SftTrainer(observer=observer, callbacks=[observer], ...).train()
    >>> observer.steps[0].seconds
    5.8
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from bench.config import DEEPSPEED, RunConfig
from bench.record import HeldoutPoint, MemoryBreakdown, Step
from bench.worker import data
from bench.worker.device import graphs_compiled
from bench.worker.instruments.energy import Energy
from bench.worker.instruments.memory import Memory, breakdown
from bench.worker.instruments.tokens import TokenCounts, TokenStream
from bench.worker.loss import Batch, finite
from bench.worker.main import Context, DivergedError
from bench.worker.multi import is_idle, whole_step


class Observer(TrainerCallback):
    """Times, counts and writes down every optimizer step; takes held-out losses between steps."""

    def __init__(
        self,
        context: Context,
        config: RunConfig,
        total_steps: int,
        memory: Memory,
        energy: Energy,
        measure_heldout: Callable[[], float],
    ):
        self.heldout: list[HeldoutPoint] = []
        self.steps: list[Step] = []
        self.tokens = TokenStream()  # phases: untimed, timed
        self.breakdown: MemoryBreakdown | None = None
        self.resumed_at_steps: list[int] = []
        self.memory, self.energy, self.progress = memory, energy, context.progress
        self._clock, self._team, self._measure_heldout = context.clock, context.team, measure_heldout
        self._untimed, self._total = config.train.untimed_steps, total_steps
        self._heldout_steps = heldout_steps(total_steps, config.train.heldout_points)
        self._patience = config.train.early_stopping_points
        self.timed_tokens = [0] * context.team.size  # by rank
        self._has_tensors = config.hardware.strategy not in DEEPSPEED  # which keeps gradients in buffers of its own
        self._consumed: list[tuple[Batch, float | torch.Tensor]] = []
        self._started = self._seconds = self._elapsed = self._loss = 0.0
        self._step_counts, self._done_before = TokenCounts(), 0
        self._graphs, self._timed = 0, False  # graphs compiled before the step; whether the step counts for speed
        self._memory_bytes: tuple[int | None, int | None] = (None, None)
        self._steps_file = context.folder / "steps.jsonl"

    @property
    def counts(self) -> TokenCounts:
        """Tokens of all steps so far."""
        return sum(self.tokens.read().values(), TokenCounts())

    @property
    def own_steps(self) -> list[Step]:
        """The steps of this process, without those before the checkpoint that it started from."""
        return self.steps[self._done_before :]

    @property
    def timed_counts(self) -> TokenCounts:
        """Tokens of the timed steps so far."""
        return self.tokens.read().get("timed", TokenCounts())

    def step_starts(self) -> None:
        self._team.wait()  # else one would be timed while it waits for what the first writes down
        self._graphs = graphs_compiled()
        self._started = self._clock.mark()

    def forward_starts(self) -> None:
        self.progress.part = "forward"

    def consumed(self, batch: Batch, loss: torch.Tensor) -> None:
        """Keep a micro-batch; it is hashed and counted after the step, outside the timed region."""
        self.progress.part = "backward"
        self._consumed.append((batch, loss))

    def go_on(
        self, tokens: TokenStream, steps: list[Step], heldout: list[HeldoutPoint], resumed_at_steps: list[int]
    ) -> None:
        """Go on behind the steps of an earlier process: they count as trained, but only this process's are timed."""
        self.tokens, self.heldout = tokens, list(heldout)
        self.steps = [replace(step, timed=False) for step in steps]
        self._done_before = len(steps)
        self.resumed_at_steps = [*resumed_at_steps, self._done_before]
        self._elapsed = steps[-1].elapsed_seconds

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        if self._team.is_first:
            self._steps_file.write_text("".join(map(_line, self.steps)))
        if not self.steps:
            self._take_heldout(step=0)
        self._enter_training()

    @contextmanager
    def aside(self, phase: str) -> Iterator[None]:
        """Measure what interrupts training (a checkpoint) as a phase of its own."""
        self._enter(phase)
        with self._clock.span(phase):
            yield
        self._enter_training()

    def on_pre_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        self.progress.part = "optimizer"

    def on_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        # In the first warm-up step: gradients and optimizer state both exist.
        if self.breakdown is None and self._has_tensors:
            optimizer = options["optimizer"]
            self.breakdown = breakdown(options["model"], getattr(optimizer, "optimizer", optimizer))

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        own_seconds = self._clock.mark() - self._started
        self.progress.part = None
        own = (own_seconds, self.memory.now(), self._consumed)
        self._seconds, self._memory_bytes, consumed = whole_step(own, self._team)
        self._elapsed += self._seconds
        self.energy.sample()
        # A step in which the compiler worked (a new shape) is not timed: on an H200 one took 9.2 s instead of 0.17.
        warm = state.global_step > self._done_before + self._untimed
        self._timed = timed = warm and graphs_compiled() == self._graphs
        self.tokens.enter("timed" if timed else "untimed")
        self._loss = float(sum(loss for _, loss in consumed))
        self._step_counts = TokenCounts()
        for i, (batch, _) in enumerate(consumed):
            rows = [] if self._team.size > 1 and is_idle(batch) else data.unpack(batch)
            counts = [self.tokens.consume(b["input_ids"], b["labels"], b["attention_mask"]) for b in rows]
            total = sum(counts, TokenCounts())
            self._step_counts += total
            self.timed_tokens[i % self._team.size] += total.tokens if timed else 0
        self._consumed = []

    def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Called by the trainer right after every step, with the gradient norm and the rate that were used."""
        logs = options["logs"]
        if "grad_norm" not in logs:
            return
        step = Step(
            step=state.global_step,
            loss=finite(self._loss),
            gradient_norm=finite(logs["grad_norm"]),
            learning_rate=logs["learning_rate"],
            seconds=self._seconds,
            tokens=self._step_counts.tokens,
            supervised_tokens=self._step_counts.supervised_tokens,
            positions=self._step_counts.positions,
            elapsed_seconds=self._elapsed,
            timed=self._timed,
            memory_bytes=self._memory_bytes[0],
            peak_so_far_bytes=self._memory_bytes[1],
        )
        self.steps.append(step)
        if self._team.is_first:
            with self._steps_file.open("a", encoding="utf-8") as file:  # closed each time: a killed run keeps its steps
                file.write(_line(step))
        self.progress.advance(step.step, loss=step.loss, tokens_per_second=step.tokens / step.seconds)
        read = {
            "the loss": self._loss,
            "the gradient norm": logs["grad_norm"],
            "a weight": weight_norm(options["model"]),
        }
        if wrong := [name for name, value in read.items() if not math.isfinite(value)]:
            raise DivergedError(f"not finite: {', '.join(wrong)}", step.step)
        if step.step in self._heldout_steps:
            self._take_heldout(step.step)
            losses = [point.loss for point in self.heldout if point.loss is not None]
            if self._patience and len(losses) - 1 - losses.index(min(losses)) >= self._patience:
                control.should_training_stop = True
            if step.step < self._total:
                self._enter_training()

    def _enter_training(self) -> None:
        self._enter("train", self._total, len(self.steps))

    def _take_heldout(self, step: int) -> None:
        self._enter("heldout")
        with self._clock.span("heldout"):
            loss = self._measure_heldout()
        if not math.isfinite(loss):
            raise DivergedError("the held-out loss is not finite", step)
        energy_wh = self.energy.used_wh("train")
        self.heldout.append(HeldoutPoint(step, self.counts.tokens, self._elapsed, loss, energy_wh))

    def _enter(self, phase: str, total: int | None = None, done: int = 0) -> None:
        self.memory.enter(phase)
        self.energy.enter(phase)
        self.progress.phase(phase, total, done)


@torch.no_grad()
def weight_norm(model: torch.nn.Module) -> float:
    """The 2-norm of the weights that are trained, of this process's part; not finite where one of them is not.

    Their largest magnitude would tell the same, and takes seven times as long on a CPU.
    """
    trained = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters() if p.requires_grad]
    return float(get_total_norm([p for p in trained if p.numel()]))


def heldout_steps(total_steps: int, points: int) -> set[int]:
    """The steps after which the held-out loss is taken, evenly spread, the last one included.

    >>> heldout_steps(32, 4)
    {8, 16, 24, 32}
    """
    points = min(points, total_steps)
    return {round(total_steps * (i + 1) / points) for i in range(points)}


def _line(step: Step) -> str:
    return json.dumps(asdict(step)) + "\n"
