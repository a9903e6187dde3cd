"""What a person sees: the plan before a sweep, what runs and how long it will still take, how each run ended.

Live lines on a terminal; elsewhere (a file, a pipe) plain lines, one a phase. Nothing here is part of a result.

>>> with console.run(config) as watch:
...     record = execute(config, watch)
>>> console.ended(record)
OK       lora-smollm2-135m-docstrings-s0-1f2e3d4c: 181 s, 612 tokens/s, rougeL 0.312
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich import console as rich_console
from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bench.config import RunConfig
from bench.fairness import FILE, Group, Pair, Reason, groups_of
from bench.identity import run_id
from bench.machine import Finding
from bench.outcome import Status
from bench.planner.forecast import WORDS, Forecast, forecast_table, forecast_warnings, time_notes, time_table
from bench.record import Record
from bench.sweep.child import Watch
from bench.trust import printable

PLAIN_INTERVAL_SECONDS = 30
PLAIN_WIDTH = 250  # of tables in a file or a pipe, characters
PAIRS_SHOWN = 3
METHODS_NEEDED = 2  # that have ended, for an estimate: an untrained model alone says little of how long training takes
REFRESH_HZ = 1  # at rich's ten, drawing would take 2% of a core beside the measured child
GIB = 2**30


class Console:
    """Prints for people."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else PLAIN_WIDTH
        self._out = RichConsole(highlight=False, soft_wrap=True, width=width)
        self._error = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._agenda = Agenda()

    def say(self, text: str) -> None:
        """A line on standard output."""
        self._out.print(_plain(text))

    def problem(self, text: str) -> None:
        """A line on standard error."""
        self._error.print(_plain(text), style="red" if self._error.is_terminal else None)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[str]) -> None:
        """A table of ready text; columns of `words` are set flush left, the others, which hold numbers, flush right."""
        shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for header in headers:
            shown.add_column(_plain(header), justify="left" if header in words else "right", overflow="fold")
        for row in rows:
            shown.add_row(*map(_plain, row))
        self._out.print(shown)

    def findings(self, findings: Sequence[Finding]) -> None:
        """What the doctor found: a line each, and below it what mends it."""
        for finding in findings:
            self.say(f"{finding.state:8}{finding.name:12}{finding.found}")
            if finding.mend:
                self.say(f"{'':20}-> {finding.mend}")

    def plan(self, configs: list[RunConfig], pending: list[RunConfig], allowed: frozenset[str] = frozenset()) -> None:
        """Say what will run and what the methods have in common, before anything does."""
        done = len(configs) - len(pending)
        self._agenda = Agenda({run_id(config): config.method.name for config in pending})
        if not pending:
            self.say(f"All {done} runs are finished; nothing to do.")
            return
        self.say(f"{len(configs)} runs: {done} finished, {len(pending)} to do: {', '.join(map(run_id, pending))}")
        for group in groups_of(configs):
            if group.pairs:
                self.say(heading(group))
                for line in verdicts(group, allowed):
                    self.say(line)

    def forecast(self, found: Sequence[Forecast]) -> None:
        """Before anything is downloaded: whether each method fits the device, and how long its runs take."""
        if found:
            self.table(*forecast_table(found), WORDS)
            for line in forecast_warnings(found):
                self.say(line)
            self._times(found)

    def expects(self, found: Sequence[Forecast], *, show: bool) -> None:
        """Count on these times in the live view."""
        self._agenda.expected_seconds = {run_id(f.config): f.total_seconds for f in found}
        if show:
            self._times(found)

    def _times(self, found: Sequence[Forecast]) -> None:
        if any(seconds for f in found for seconds in f.seconds.values()):
            self.table(*time_table(found), WORDS)
            for line in time_notes(found):
                self.say(line)

    def run(self, config: RunConfig) -> AbstractContextManager[Watch]:
        """Show a run of the plan while a block executes it; yields what takes the child's progress."""
        name = run_id(config)
        self._agenda.begins(name)
        return live(self._out, name, self._agenda) if self._out.is_terminal else nullcontext(self._lines(name))

    def stage(self, name: str) -> AbstractContextManager[Watch]:
        """Show something that is no run: preparing, exporting."""
        return live(self._out, name) if self._out.is_terminal else nullcontext(self._lines(name))

    def _lines(self, name: str) -> Watch:
        """Says a line when the phase changes, and now and then in between."""
        shown, at = "", 0.0

        def watch(progress: dict[str, Any]) -> None:
            nonlocal shown, at
            phase = f"{progress['stage']}: {progress['phase']}"
            if phase == shown and time.monotonic() - at < PLAIN_INTERVAL_SECONDS:
                return
            shown, at = phase, time.monotonic()
            how_far = f" {progress['done']}/{progress['total']}" if progress["total"] else ""
            self.say(f"  {name}  {phase}{how_far}  {details(progress)}".rstrip())

        return watch

    def ended(self, record: Record) -> None:
        """One line a run: how it ended and its main numbers."""
        self._agenda.ended(record.run_id, record.wall_seconds)
        if record.failure is not None:
            self.say(f"{record.status.upper():8} {record.run_id}: {record.failure.message} ({record.failure.stage})")
            self.say(f"         {record.failure.next_step}")
            return
        parts = [f"{record.wall_seconds:.0f} s"]
        if record.train and record.train.train_tokens_per_second:
            parts.append(f"{record.train.train_tokens_per_second:.0f} tokens/s")
        if record.evaluate:
            parts += [f"{name} {value:.3f}" for name, value in list(record.evaluate.scores.items())[:1]]
        self.say(f"{Status.OK.upper():8} {record.run_id}: {', '.join(parts)}")
        for name, text in record.evaluate.unscored.items() if record.evaluate else ():
            self.say(f"         {name} failed on {text}")
        if record.serve_failure is not None:
            self.say(f"         serving: {record.serve_failure.message}")
            self.say(f"         {record.serve_failure.next_step}")


class Agenda:
    """The runs that this command has to do (run id -> method), in order, and how long those of each method took."""

    def __init__(self, method_of: Mapping[str, str] | None = None):
        self._method_of = dict(method_of or {})
        self._waiting = list(self._method_of)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self.expected_seconds: dict[str, float | None] = {}  # of a run before it starts
        self.total, self.done, self.started = len(self._waiting), 0, time.monotonic()

    def begins(self, run: str) -> None:
        """The run no longer waits."""
        if run in self._waiting:
            self._waiting.remove(run)

    def ended(self, run: str, seconds: float) -> None:
        """The run has ended, well or not."""
        if run in self._method_of:
            self.done += 1
            self._seconds[self._method_of[run]].append(seconds)

    def left_seconds(self, run: str, elapsed_seconds: float) -> float | None:
        """Until the last run has ended; None while too little is known.

        A method counts as its ended runs took, else as it was expected, else as the slowest of the others.
        """
        known = {method: sum(took) / len(took) for method, took in self._seconds.items()}
        runs = [(self._method_of.get(name, ""), self.expected_seconds.get(name)) for name in (run, *self._waiting)]
        told = [known.get(method, seconds) for method, seconds in runs]
        if None in told and len(known) < METHODS_NEEDED:
            return None
        expected = [max(known.values()) if seconds is None else seconds for seconds in told]
        return max(0.0, expected[0] - elapsed_seconds) + sum(expected[1:])

    def progress(self, run: str, elapsed_seconds: float) -> str:
        """How far the sweep is, while a run is at work."""
        left = self.left_seconds(run, elapsed_seconds)
        so_far = (time.monotonic() - self.started) / 60
        about = "" if left is None else f", about {left / 60:.0f} min left"
        return f"{self.done} of {self.total} runs ended, {so_far:.0f} min so far{about}"


def _plain(text: str) -> str:
    """Text that neither steers the terminal nor is read as rich's markup."""
    return escape(printable(text))


def details(progress: Mapping[str, Any]) -> str:
    """The numbers of a child's progress: loss, speed, the highest memory of the stage so far."""
    gib = (progress.get("peak_bytes") or 0) / GIB
    shown = {"loss {:.3f}": progress.get("loss"), "{:.0f} tokens/s": progress.get("tokens_per_second") or None}
    return ", ".join(
        words.format(value) for words, value in (shown | {"peak {:.2f} GiB": gib or None}).items() if value is not None
    )


@contextmanager
def live(out: RichConsole, name: str, agenda: Agenda | None = None) -> Iterator[Watch]:
    """Lines that are redrawn while the block runs; yields what takes the child's progress."""
    phases = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[details]}"), console=out,
    )  # fmt: skip
    task, started, shown = phases.add_task(_plain(name), total=None, details=""), time.monotonic(), ""

    def drawn() -> RenderableType:
        if agenda is None or agenda.total < 2:
            return phases
        sweep = agenda.progress(name, time.monotonic() - started)
        return rich_console.Group(Text(sweep, overflow="ellipsis", no_wrap=True), phases)

    def watch(progress: dict[str, Any]) -> None:
        nonlocal shown, task
        phase = f"{progress['stage']}: {progress['phase']}"
        if phase != shown:  # a new phase starts its own estimate of the time left
            shown = phase
            phases.remove_task(task)
            task = phases.add_task(_plain(f"{name}  {phase}"), details="")
        phases.update(task, completed=progress["done"], total=progress["total"], details=details(progress))

    with Live(get_renderable=drawn, console=out, transient=True, refresh_per_second=REFRESH_HZ):
        yield watch


def heading(group: Group) -> str:
    """How many settings are the same for all arms of a planned comparison, and in what the arms differ."""
    same = f"Identical for all {len(group.seeds)} arms: {len(group.identical)} settings."
    parts = dict.fromkeys(".".join(setting.split(".")[:2]) for setting in group.different)
    return f"{same} Different: {', '.join(parts)} (values: {FILE})." if parts else f"{same} None differs."


def verdicts(group: Group, allowed: Collection[str]) -> list[str]:
    """How many pairs may be compared; by reason, those that the report will refuse, wholly or for some seeds."""
    refused: dict[str, list[tuple[Pair, Reason]]] = {}
    for pair in group.pairs:
        for reason in pair.reasons:
            if reason.name not in allowed:
                refused.setdefault(reason.name, []).append((pair, reason))
    spoilt = {(pair.left, pair.right) for found in refused.values() for pair, _ in found}
    lines = [
        f"{len(group.pairs) - len(spoilt)} of {len(group.pairs)} pairs may be compared as planned; their data, device "
        "and software are checked when they have run."
    ]
    for name, found in refused.items():
        named = [f"{pair.left} and {pair.right}, {reason.text}" for pair, reason in found[:PAIRS_SHOWN]]
        more = f"; {len(found) - PAIRS_SHOWN} more in {FILE}" if len(found) > PAIRS_SHOWN else ""
        remedy = f"; allow_different={name} would" if found[0][1].may_be_allowed else ""
        lines.append(f"  {len(found)} will not be compared for {name}: {'; '.join(named)}{more}{remedy}")
    return lines
