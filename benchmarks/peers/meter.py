"""One clock, one memory reading and one hash of the data for every trainer.

A step ends when the optimizer has stepped, which PyTorch tells by a hook on every optimizer, whatever the trainer. So
the seconds between two steps hold everything: fetching and padding, forward, backward, clipping, the step, the
trainer's own logging. Needs torch alone, because it also runs in the environments of other trainers.

    >>> meter = Meter()
    >>> meter.start()             # right before the trainer's loop
    >>> meter.consumed(ids, labels)   # every example, as it is put into a batch
    >>> meter.result()
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import itertools
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

IGNORED = -100
_PROC = Path("/proc/self")


class Meter:
    """Times optimizer steps; counts and hashes examples; reads the peak resident set (Linux)."""

    def __init__(self) -> None:
        self.started: float | None = None
        self._step_ends: list[float] = []
        self._others: list[float] = []  # CPU seconds that were not this process's, since boot
        self._tokens: list[int] = []  # of every example consumed
        self._sha256 = hashlib.sha256()
        self._peak_bytes = self._start_bytes = 0
        register_optimizer_step_post_hook(lambda *_: self._step_ended())

    def start(self) -> None:
        """Reset the peak and start the clock."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what loading has freed is not the training's
        (_PROC / "clear_refs").write_text("5")
        self._start_bytes = _status("VmRSS")
        self._others = [_others_cpu_seconds()]
        self.started = time.perf_counter()

    def consumed(self, input_ids: Sequence[int], labels: Sequence[int]) -> None:
        """Add an example without its padding, in the form that our own records hash."""
        for row in (input_ids, labels):
            self._sha256.update(struct.pack(f"<{len(row)}q", *row))
        self._sha256.update(b"|")
        self._tokens.append(len(input_ids))

    def watching(self, collate: Any) -> Any:
        """A collator that tells the meter of the rows it is given."""

        def watched(rows: list[dict[str, Any]]) -> Any:
            for row in rows:
                self.consumed(row["input_ids"], row["labels"])
            return collate(rows)

        return watched

    def result(self, batch_size: int) -> dict[str, Any]:
        """Seconds by step (the first from `start`), tokens by step, peak bytes, hash of what was consumed.

        `step_others_cpu_seconds` is what other processes, and the host by stealing, took of the cores meanwhile.
        """
        assert self.started is not None, "the trainer never started the meter"
        edges = [self.started, *self._step_ends]
        starts = range(0, len(self._tokens), batch_size)
        return {
            "step_seconds": [after - before for before, after in itertools.pairwise(edges)],
            "step_tokens": [sum(self._tokens[at : at + batch_size]) for at in starts],
            "step_others_cpu_seconds": [after - before for before, after in itertools.pairwise(self._others)],
            "peak_bytes": self._peak_bytes,
            "start_bytes": self._start_bytes,
            "data_stream_sha256": self._sha256.hexdigest(),
        }

    def _step_ended(self) -> None:
        self._step_ends.append(time.perf_counter())
        self._others.append(_others_cpu_seconds())
        self._peak_bytes = max(self._peak_bytes, _status("VmHWM"))


def _status(field: str) -> int:
    line = next(s for s in (_PROC / "status").read_text().splitlines() if s.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _others_cpu_seconds() -> float:
    """CPU seconds since boot of everything but this process (its finished children, which compile, are its own)."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    own = sum(os.times()[:4])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own
