"""What is measured of training, step by step: time, tokens, memory, and held-out losses in between.

Inside the timed step nothing happens but reading the clock at its edges and keeping references to the batches. All
else (hashing, counting, memory, files) waits until the step has been timed.

Of several processes that train together, each times its own step, from a common start; the first collects what all did
after every step, in the order of one process, and alone writes. A step took as long as the slowest of them.

    >>> observer = Observer(folder=folder, ...)
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
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from bench.analysis.rates import hopeless
from bench.config import DEEPSPEED, RunConfig
from bench.record import HeldoutPoint, MemoryBreakdown, Step
from bench.worker import data
from bench.worker.device import graphs_compiled
from bench.worker.instruments.clock import Clock
from bench.worker.instruments.energy import Energy
from bench.worker.instruments.memory import Memory, breakdown
from bench.worker.instruments.tokens import TokenCounts, TokenStream
from bench.worker.loss import Batch
from bench.worker.main import Progress
from bench.worker.multi import ALONE, StepShare, Team, is_idle, together


class Observer(TrainerCallback):
    """Times, counts and writes down every optimizer step; takes held-out losses between steps."""

    def __init__(
        self,
        *,
        folder: Path,
        config: RunConfig,
        total_steps: int,
        clock: Clock,
        memory: Memory,
        energy: Energy,
        progress: Progress,
        measure_heldout: Callable[[], float],
        team: Team = ALONE,
    ):
        self.heldout: list[HeldoutPoint] = []
        self.steps: list[Step] = []
        self.tokens = TokenStream()  # phases: untimed, timed
        self.breakdown: MemoryBreakdown | None = None
        self.stopped_early: str | None = None
        self.resumed_at_steps: list[int] = []
        self.progress = progress
        self._trial = config.trial
        self._untimed, self._total = config.train.untimed_steps, total_steps
        self._heldout_steps = heldout_steps(total_steps, config.train.heldout_points)
        self._clock, self._memory, self._energy = clock, memory, energy
        self._measure_heldout, self._team = measure_heldout, team
        self.timed_tokens = [0] * team.size  # by rank
        # The step whose memory is taken by part: a warm-up step, with one behind it to settle in; not the first, which
        # compiles and makes the optimizer's state, unless there is no other.
        self._parted_step = max(1, self._untimed - 1) if self._untimed else None
        self._has_tensors = config.hardware.strategy not in DEEPSPEED  # which keeps gradients in buffers of its own
        self._consumed: list[tuple[Batch, float | torch.Tensor]] = []
        self._started = self._seconds = self._elapsed = 0.0
        self._losses: list[float | torch.Tensor] = []
        self._step_counts, self._done_before = TokenCounts(), 0
        self._graphs, self._timed = 0, False  # graphs compiled before the step; whether the step counts for speed
        self._memory_bytes: tuple[int | None, int | None] = (None, None)
        self._steps_file = folder / "steps.jsonl"

    @property
    def counts(self) -> TokenCounts:
        """Of all steps so far."""
        return sum(self.tokens.read().values(), TokenCounts())

    @property
    def own_steps(self) -> list[Step]:
        """Those of this process: all but what was done before the checkpoint that it started from."""
        return self.steps[self._done_before :]

    @property
    def timed_counts(self) -> TokenCounts:
        """Of the timed steps so far."""
        return self.tokens.read().get("timed", TokenCounts())

    def step_starts(self) -> None:
        self._team.wait()  # else one would be timed while it waits for what the first writes down
        self._graphs = graphs_compiled()
        self._started = self._clock.mark()

    def forward_starts(self) -> None:
        self._mark("forward")

    def consumed(self, batch: Batch, loss: torch.Tensor) -> None:
        """Keep a micro-batch; it is hashed and counted after the step, outside the timed region."""
        self._mark("backward")
        self._consumed.append((batch, loss))

    def go_on(
        self, tokens: TokenStream, steps: list[Step], heldout: list[HeldoutPoint], resumed_at_steps: list[int]
    ) -> None:
        """Start behind the steps of an earlier process: all of it counts, but speed is told of this process alone."""
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
        """What interrupts training: its time, memory and energy are its own."""
        self._enter(phase)
        with self._clock.span(phase):
            yield
        self._enter_training()

    def on_pre_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        self._mark("optimizer")

    def on_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        # In the first warm-up step: gradients and optimizer state both exist.
        if self.breakdown is None and self._has_tensors:
            self.breakdown = breakdown(options["model"], _unwrapped(options["optimizer"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        seconds = self._clock.mark() - self._started
        self._mark(None)
        whole = together(StepShare(seconds, self._memory.now(), self._consumed), self._team)
        self._seconds, self._memory_bytes = whole.seconds, whole.memory_bytes
        self._elapsed += whole.seconds
        self._energy.sample()
        # A step in which the compiler worked (a new shape) is not timed: on an H200 one took 9.2 s instead of 0.17.
        warm = state.global_step > self._done_before + self._untimed
        self._timed = timed = warm and graphs_compiled() == self._graphs
        self.tokens.enter("timed" if timed else "untimed")
        self._losses = [loss for _, loss in whole.consumed]
        self._step_counts = TokenCounts()
        for i, (batch, _) in enumerate(whole.consumed):
            counts = self._count(batch)
            self._step_counts += counts
            self.timed_tokens[i % self._team.size] += counts.tokens if timed else 0
        self._consumed = []

    def _count(self, batch: Batch) -> TokenCounts:
        """Hash and count a micro-batch, unless it is an idle one."""
        rows = [] if self._team.size > 1 and is_idle(batch) else data.unpack(batch)
        counts = [self.tokens.consume(b["input_ids"], b["labels"], b["attention_mask"]) for b in rows]
        return sum(counts, TokenCounts())

    def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Called by the trainer right after every step, with the gradient norm and the rate that were used."""
        logs = options["logs"]
        if "grad_norm" not in logs:
            return
        done = state.global_step
        loss = float(sum(self._losses))
        step = Step(
            step=done,
            loss=loss if math.isfinite(loss) else None,
            gradient_norm=_finite(logs["grad_norm"]),
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
        self.progress.advance(done, loss=step.loss, tokens_per_second=step.tokens / step.seconds)
        if done in self._heldout_steps:
            self._take_heldout(done)
            if done < self._total:
                self._continue(control)

    def _continue(self, control: Any) -> None:
        """Go on training, unless this is a trial of a learning rate that proves hopeless."""
        self.stopped_early = hopeless(self._trial, self.heldout) if self._trial else None
        if self.stopped_early:
            control.should_training_stop = True
        else:
            self._enter_training()

    def _enter_training(self) -> None:
        self._enter("train", self._total)
        self.progress.advance(len(self.steps))

    def _take_heldout(self, step: int) -> None:
        self._enter("heldout")
        with self._clock.span("heldout"):
            loss = self._measure_heldout()
        energy_wh = self._energy.used_wh("train")
        self.heldout.append(HeldoutPoint(step, self.counts.tokens, self._elapsed, _finite(loss), energy_wh))

    def _enter(self, phase: str, total: int | None = None) -> None:
        self._memory.enter(phase)
        self._energy.enter(phase)
        self.progress.phase(phase, total)

    def _mark(self, part: str | None) -> None:
        """Name the part of the step that begins, for an error's message; None: the step is over."""
        self.progress.part = part
        if len(self.steps) - self._done_before + 1 == self._parted_step:
            self._memory.enter_part(part)


def heldout_steps(total_steps: int, points: int) -> set[int]:
    """The steps after which the held-out loss is taken, evenly spread, the last one included.

    >>> heldout_steps(32, 4)
    {8, 16, 24, 32}
    """
    points = min(points, total_steps)
    return {round(total_steps * (i + 1) / points) for i in range(points)}


def _line(step: Step) -> str:
    return json.dumps(asdict(step)) + "\n"


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
