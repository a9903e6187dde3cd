"""What a person sees while a sweep runs: what runs, how far it is, how long it may still take.

Live lines on a terminal (`live.py`); plain lines, one a phase, elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape

from bench import plan_view
from bench.live import Agenda, details, live
from bench.planning.pairs import groups_of
from bench.running.execute import stages
from bench.running.launch import Watch
from bench.spec.config import RunConfig
from bench.spec.failure import Status
from bench.spec.identity import run_id
from bench.spec.record import Record

PLAIN_INTERVAL_SECONDS = 30
PLAIN_WIDTH = 160  # of tables in a file or a pipe, characters


class Console:
    """Prints for people; never part of a result."""

    def __init__(self) -> None:
        self._out = RichConsole(highlight=False, soft_wrap=True)
        self._error = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._agenda = Agenda()

    def say(self, text: str) -> None:
        self._out.print(escape(text))

    def problem(self, text: str) -> None:
        self._error.print(escape(text), style="red" if self._error.is_terminal else None)

    def plan(self, configs: list[RunConfig], pending: list[RunConfig], allowed: frozenset[str] = frozenset()) -> None:
        """Say what will run, and what the methods have in common, before it does."""
        done = len(configs) - len(pending)
        self._agenda = Agenda(list(map(run_id, pending)), {run_id(c): c.method.name for c in pending})
        if not pending:
            self.say(f"All {done} runs are finished; nothing to do.")
            return
        self.say(f"{len(configs)} runs: {done} finished, {len(pending)} to do: {', '.join(map(run_id, pending))}")
        for group in groups_of(configs):
            if group.pairs:
                self.say(plan_view.heading(group))
                self._out.print(plan_view.table(group), width=None if self._out.is_terminal else PLAIN_WIDTH)
                for line in plan_view.verdicts(group, allowed):
                    self.say(line)

    @contextmanager
    def run(self, config: RunConfig) -> Iterator[Watch]:
        name = run_id(config)
        self._agenda.begins(name)
        with self._watched(name, stages(config), self._agenda) as watch:
            yield watch

    @contextmanager
    def stage(self, name: str) -> Iterator[Watch]:
        """Something that is no run: preparing, exporting."""
        with self._watched(name) as watch:
            yield watch

    @contextmanager
    def _watched(self, name: str, steps: Sequence[str] = (), agenda: Agenda | None = None) -> Iterator[Watch]:
        """Live lines on a terminal, plain ones elsewhere; yields what takes the child's progress."""
        if not self._out.is_terminal:
            yield _PlainWatch(self, name)
            return
        with live(self._out, name, steps, agenda) as watch:
            yield watch

    def ended(self, record: Record) -> None:
        """One line a run: how it ended and its main numbers."""
        self._agenda.ended(record.run_id, record.wall_seconds)
        if record.status is not Status.OK:
            assert record.failure is not None
            self.say(f"{record.status.upper():8} {record.run_id}: {record.failure.message} ({record.failure.stage})")
            self.say(f"         {record.failure.next_step}")
            return
        parts = [f"{record.wall_seconds:.0f} s"]
        if record.train and record.train.train_tokens_per_second:
            parts.append(f"{record.train.train_tokens_per_second:.0f} tokens/s")
        if record.evaluate:
            parts += [f"{name} {value:.3f}" for name, value in list(record.evaluate.scores.items())[:1]]
        self.say(f"OK       {record.run_id}: {', '.join(parts)}")
        if record.serve_failure is not None:
            self.say(f"         serving: {record.serve_failure.message}")
            self.say(f"         {record.serve_failure.next_step}")


class _PlainWatch:
    """Prints a line when the phase changes, and now and then in between."""

    def __init__(self, console: Console, name: str):
        self._console, self._name = console, name
        self._shown, self._at = "", 0.0

    def __call__(self, content: dict[str, Any]) -> None:
        phase = f"{content['stage']}: {content['phase']}"
        if phase == self._shown and time.monotonic() - self._at < PLAIN_INTERVAL_SECONDS:
            return
        self._shown, self._at = phase, time.monotonic()
        how_far = f" {content['done']}/{content['total']}" if content["total"] else ""
        self._console.say(f"  {self._name}  {phase}{how_far}  {details(content)}".rstrip())
