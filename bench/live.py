"""The live lines of a terminal while a run is at work: the sweep, the run's phase, and what comes next.

    3 of 10 runs ended, 13 min so far, about 21 min left
    lora-s0  train: train ━━━━━━━━━━━╺━━━━ 12/20 0:00:41 0:00:27 loss 2.913, 583 tokens/s, peak 2.71 GiB
    then evaluate, regression; next qlora-s0, full-s1, lora-s1 and 3 more

A sweep's time left is told from what its runs took so far, once runs of two methods have ended (or of all that are to
come): one of a method not yet seen is taken to last as long as the slowest so far.

    >>> agenda = Agenda(["full-s0", "lora-s0"], {"full-s0": "full", "lora-s0": "lora"})
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from bench.running.launch import Watch

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
def live(out: Console, name: str, stages: Sequence[str] = (), agenda: Agenda | None = None) -> Iterator[Watch]:
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
        return Group(*lines)

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
