"""Wall time by name, and the timing of every optimizer step.

A span is timed where it happens and never computed by subtracting others: what is in no span is overhead, and
shows as such. The device is synchronized at both edges of everything timed.

    >>> clock = Clock()
    >>> with clock.span("load"):
    ...     load()
    >>> clock.read()
    {'load': 1.93}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Clock:
    """Accumulates wall seconds by phase; an `Instrument`.

    Attributes:
        synchronize: waits for the device's queued work; does nothing on a CPU.
        now: a monotonic clock in seconds, so that a changed system time cannot bend a measurement.
        spans_seconds: ended spans; may start with what was timed before the clock existed.
    """

    synchronize: Callable[[], None] = lambda: None
    now: Callable[[], float] = time.perf_counter
    spans_seconds: dict[str, float] = field(default_factory=dict)
    _phase: str | None = field(default=None, init=False)
    _since: float = field(default=0.0, init=False)

    def mark(self) -> float:
        """The time after all queued device work, seconds."""
        self.synchronize()
        return self.now()

    def enter(self, phase: str) -> None:
        self._update()
        self._phase = phase

    def stop(self) -> None:
        self._update()
        self._phase = None

    def read(self) -> dict[str, float]:
        self._update()
        return dict(self.spans_seconds)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Add the block's wall seconds to a name. It interrupts a span around it, so that spans add up."""
        outer = self._phase
        self.enter(name)
        try:
            yield
        finally:
            if outer is None:
                self.stop()
            else:
                self.enter(outer)

    def _update(self) -> None:
        at = self.mark()
        if self._phase is not None:
            self.spans_seconds[self._phase] = self.spans_seconds.get(self._phase, 0.0) + at - self._since
        self._since = at


@dataclass(frozen=True)
class StepTimes:
    """Percentiles over the timed steps, seconds; None when none was timed."""

    median: float | None
    p90: float | None
    p99: float | None
    compile: float | None


def step_times(seconds: list[float], untimed_steps: int, compiled: bool) -> StepTimes:
    """Summarize step times.

    `compile` is what the untimed steps took beyond the median of the timed ones: the price of `torch.compile`,
    paid once a run.
    """
    timed = seconds[untimed_steps:]
    if not timed:
        return StepTimes(None, None, None, None)
    median, p90, p99 = (float(q) for q in np.percentile(timed, [50, 90, 99]))
    excess = sum(seconds[:untimed_steps]) - median * min(untimed_steps, len(seconds))
    return StepTimes(median, p90, p99, max(0.0, excess) if compiled else None)
