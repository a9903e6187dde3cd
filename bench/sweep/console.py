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
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from rich import console as rich_console
from rich.box import MARKDOWN, SIMPLE_HEAD
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
from bench.planner.forecast import Forecast, forecast_table, forecast_warnings, time_notes, time_table
from bench.planner.table import WORDS
from bench.record import Record
from bench.sweep.child import Watch
from bench.trust import printable

if TYPE_CHECKING:
    from bench.stats.decide import Decision

PLAIN_INTERVAL_SECONDS = 30
PLAIN_WIDTH = 250  # of tables in a file or a pipe, characters
PAIRS_SHOWN, ARMS_SHOWN = 3, 6
METHODS_NEEDED = 2  # that have ended, for an estimate: an untrained model alone says little of how long training takes
REFRESH_HZ = 1  # at rich's ten, drawing would take 2% of a core beside the measured child
UNKNOWN, GIB = "-", 2**30


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

    def table(
        self, headers: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[str], *, as_text: bool = True
    ) -> None:
        """A table of ready text; columns of `words` are set flush left, the others, which hold numbers, flush right.

        Args:
            as_text: also in a file or a pipe, which else get Markdown.
        """
        markdown = not (as_text or self._out.is_terminal)
        shown = Table(box=MARKDOWN if markdown else SIMPLE_HEAD, pad_edge=markdown, show_edge=markdown)
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
                self.table(*fairness_table(group))
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

    def answer(self, name: str, decision: Decision) -> None:
        """What to use, how sure that is, what the methods cost, and what would make it surer."""
        sure = "" if decision.sureness is None else f" {decision.sureness:.0%} sure."
        self.say(f"\n{name}\n{decision.sentence}{sure} {decision.reason}")
        if len(decision.arms):
            self.table(*answer_table(decision))
        if decision.cost_if_wrong is not None:
            self.say(f"If that is wrong, it falls short of the best by {decision.cost_if_wrong:.3f} on average.")
        if decision.surer:
            self.say(decision.surer)
        for caveat in decision.caveats:
            self.say(f"- {caveat}")


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


def answer_table(decision: Decision) -> tuple[list[str], list[list[str]], list[str]]:
    """(headers, a row a method with its score, its costs and why it was not chosen, the columns of words)."""
    costs = {"peak_memory_bytes": (GIB, 2), "train_seconds": (60, 1), "checkpoint_bytes": (2**20, 1)}
    rows = []
    for row in decision.arms.to_dict("records"):
        unknown = {name for name in ("low", *costs) if row[name] is None or row[name] != row[name]}
        interval = UNKNOWN if "low" in unknown else f"{row['low']:.3f} to {row['high']:.3f}"
        cost = [UNKNOWN if name in unknown else f"{row[name] / unit:.{n}f}" for name, (unit, n) in costs.items()]
        score = f"{row['score']:.3f}"
        rows.append(["->" if row["chosen"] else "", row["arm"], score, interval, *cost, row["why_not"] or ""])
    score = decision.measure.name if decision.measure else "score"
    headers = ["", "method", score, "95%", "memory, GiB", "time, min", "to keep, MiB", "why not"]
    return headers, rows, ["", "method", "why not"]


def heading(group: Group) -> str:
    """How many settings are the same for all arms of a planned comparison."""
    same = f"Identical for all {len(group.seeds)} arms: {len(group.identical)} settings."
    return f"{same} Different:" if group.different else f"{same} None differs."


def fairness_table(group: Group) -> tuple[list[str], list[list[str]], list[str]]:
    """(headers, a row a setting that differs, the columns of words); a column an arm.

    With many arms one column: each value and the number of arms that have it.
    """
    headers, rows = ["setting", *group.seeds], []
    for setting, values in folded(group).items():
        cells = [values.get(arm, UNKNOWN) for arm in group.seeds]
        if len(cells) > ARMS_SHOWN:
            headers = ["setting", "values"]
            cells = [", ".join(f"{value} ({count} arms)" for value, count in Counter(cells).items())]
        rows.append([setting, *cells])
    return headers, rows, headers


def folded(group: Group) -> dict[str, dict[str, str]]:
    """Setting -> arm -> value as text; settings of one part that differ only in being there make one row.

    The eight equal settings of an adapter that LoRA and QLoRA have and others lack are no news in eight rows.
    """
    parts: dict[str, dict[str, dict[str, str]]] = {}
    rows: dict[str, dict[str, str]] = {}
    for setting, values in group.different.items():
        part = setting.rpartition(".")[0]
        texts = {arm: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for arm, v in values.items()}
        if part.count(".") and len({repr(value) for value in values.values()}) == 1:
            parts.setdefault(f"{part}.*", {})[setting] = texts
            rows.setdefault(f"{part}.*", {})
        else:
            rows[setting] = texts
    for name, members in parts.items():
        for arm in dict.fromkeys(arm for texts in members.values() for arm in texts):
            held = [texts[arm] for texts in members.values() if arm in texts]
            rows[name][arm] = f"{len(held)} alike" if len(held) > 1 else held[0]
    return rows


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
