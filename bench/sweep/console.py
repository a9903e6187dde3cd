"""What a person sees while a sweep runs: what runs, how far it is, how long it may still take.

Live lines on a terminal (`live.py`); plain lines, one a phase, elsewhere.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from bench.record import Record, Status
from bench.sweep.child import Watch
from bench.sweep.execute import stages

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
                self.say(heading(group))
                self._out.print(table(group), width=None if self._out.is_terminal else PLAIN_WIDTH)
                for line in verdicts(group, allowed):
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


_SHOWN = 3  # of the runs that wait
_FEWEST = 2  # methods that have ended: an untrained model alone says little of how long training takes
_REFRESH_HZ = 1  # at rich's ten, drawing would take 2% of a core beside the measured child


class Agenda:
    """The runs that this command has to do, in order, and how long each method's took.

    Args:
        runs: run ids.
        method_of: run id -> its method.
    """

    def __init__(self, runs: Sequence[str] = (), method_of: Mapping[str, str] | None = None):
        self._waiting, self._method_of = list(runs), dict(method_of or {})
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self.total, self.done, self.started = len(self._waiting), 0, time.monotonic()

    def begins(self, run: str) -> None:
        """The run is no longer one of those that wait."""
        if run in self._waiting:
            self._waiting.remove(run)

    def ended(self, run: str, seconds: float) -> None:
        """However it ended."""
        if run in self._method_of:
            self.done += 1
            self._seconds[self._method_of[run]].append(seconds)

    def left_seconds(self, run: str, elapsed_seconds: float) -> float | None:
        """Until the last run has ended; None while too little is known."""
        known = {method: sum(took) / len(took) for method, took in self._seconds.items()}
        methods = [self._method_of.get(name, "") for name in (run, *self._waiting)]
        if not set(methods) <= set(known) and len(known) < _FEWEST:
            return None
        expected = [known.get(method, max(known.values())) for method in methods]
        return max(0.0, expected[0] - elapsed_seconds) + sum(expected[1:])

    def upcoming(self) -> str:
        """The next runs by name, and how many there are behind them."""
        more = len(self._waiting) - _SHOWN
        return ", ".join(self._waiting[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def details(content: Mapping[str, Any]) -> str:
    """The numbers of a child's progress: loss, speed, the highest memory of the stage so far."""
    parts = []
    if content.get("loss") is not None:
        parts.append(f"loss {content['loss']:.3f}")
    if content.get("tokens_per_second"):
        parts.append(f"{content['tokens_per_second']:.0f} tokens/s")
    if content.get("peak_bytes"):
        parts.append(f"peak {content['peak_bytes'] / 2**30:.2f} GiB")
    return ", ".join(parts)


@contextmanager
def live(out: RichConsole, name: str, stages: Sequence[str] = (), agenda: Agenda | None = None) -> Iterator[Watch]:
    """Lines that are redrawn while the block runs; yields what takes the child's progress.

    Args:
        stages: of the run, in order; what comes after the present one is told.
    """
    phases = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[details]}"), console=out,
    )  # fmt: skip
    task = phases.add_task(escape(name), total=None, details="")
    started, shown, stage = time.monotonic(), "", ""

    def drawn() -> RenderableType:
        lines: list[RenderableType] = [phases]
        if agenda is not None and agenda.total > 1:
            lines.insert(0, Text(_sweep(agenda, name, time.monotonic() - started), overflow="ellipsis", no_wrap=True))
        if coming := _coming(stages, stage, agenda):
            lines.append(Text(coming, style="dim", overflow="ellipsis", no_wrap=True))
        return rich_console.Group(*lines)

    with Live(get_renderable=drawn, console=out, transient=True, refresh_per_second=_REFRESH_HZ):

        def watch(content: dict[str, Any]) -> None:
            nonlocal shown, stage, task
            stage = content["stage"]
            phase = f"{stage}: {content['phase']}"
            if phase != shown:  # a new phase starts its own estimate of the time left
                shown = phase
                phases.remove_task(task)
                task = phases.add_task(escape(f"{name}  {phase}"), total=content["total"], details="")
            phases.update(task, completed=content["done"], details=details(content))

        yield watch


def _sweep(agenda: Agenda, run: str, elapsed_seconds: float) -> str:
    left = agenda.left_seconds(run, elapsed_seconds)
    so_far = (time.monotonic() - agenda.started) / 60
    told = "" if left is None else f", about {left / 60:.0f} min left"
    return f"{agenda.done} of {agenda.total} runs ended, {so_far:.0f} min so far{told}"


def _coming(stages: Sequence[str], stage: str, agenda: Agenda | None) -> str:
    after = list(stages[stages.index(stage) + 1 :]) if stage in stages else []
    then = [f"then {', '.join(after)}"] if after else []
    upcoming = agenda.upcoming() if agenda else ""
    return "; ".join([*then, *([f"next {upcoming}"] if upcoming else [])])


_COLUMNS, _PAIRS_SHOWN = 6, 3
_MISSING = "-"


def heading(group: Group) -> str:
    """What is the same."""
    same = f"Identical for all {len(group.seeds)} arms: {len(group.identical)} settings."
    return f"{same} Different:" if group.different else f"{same} None differs."


def table(group: Group) -> Table:
    """One row a setting that differs, one column an arm; of many arms each value with the number that have it."""
    wide = len(group.seeds) > _COLUMNS
    headers = ["setting", "values"] if wide else ["setting", *group.seeds]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in headers:
        shown.add_column(escape(header), no_wrap=header == "setting", overflow="fold")
    for setting, values in folded(group).items():
        cells = [_counted(values, group)] if wide else [values.get(arm, _MISSING) for arm in group.seeds]
        shown.add_row(*map(escape, [setting, *cells]))
    return shown


def folded(group: Group) -> dict[str, dict[str, str]]:
    """The differing settings as text; those of one part that differ only in being there make one row.

    An adapter of eight equal settings that LoRA and QLoRA have and others lack says nothing in eight rows.
    """
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    rows: dict[str, dict[str, str]] = {}
    for setting, values in group.different.items():
        part = setting.rpartition(".")[0]
        if part.count(".") and len({repr(value) for value in values.values()}) == 1:
            parts.setdefault(f"{part}.*", {})[setting.removeprefix(f"{part}.")] = values
            rows.setdefault(f"{part}.*", {})
        else:
            rows[setting] = {arm: _text(value) for arm, value in values.items()}
    for name, members in parts.items():
        arms = dict.fromkeys(arm for values in members.values() for arm in values)
        rows[name] = {arm: _together({s: v[arm] for s, v in members.items() if arm in v}) for arm in arms}
    return rows


def _together(settings: Mapping[str, Any]) -> str:
    return f"{len(settings)} alike" if len(settings) > 1 else ", ".join(map(_text, settings.values()))


def _counted(values: Mapping[str, str], group: Group) -> str:
    counts = Counter(values.get(arm, _MISSING) for arm in group.seeds)
    return ", ".join(f"{value} ({count} arms)" for value, count in counts.items())


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


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
    return lines + [_refusal(found) for found in refused.values()]


def _refusal(found: Sequence[tuple[Pair, Reason]]) -> str:
    named = [f"{pair.left} and {pair.right}, {reason.text}" for pair, reason in found[:_PAIRS_SHOWN]]
    more = f"; {len(found) - _PAIRS_SHOWN} more in {FILE}" if len(found) > _PAIRS_SHOWN else ""
    reason = found[0][1]
    remedy = f"; --allow-different={reason.name} would" if reason.may_be_allowed else ""
    return f"  {len(found)} will not be compared for {reason.name}: {'; '.join(named)}{more}{remedy}"
