"""What the child tells the parent while it works: one small file, rewritten.

The parent shows it, and keeps its last words when the child dies: the phase names where a run failed, and the peak
what memory it had taken. Within a phase, `part` names what is being done (forward, backward, optimizer) without
writing anything: only an error that the child itself reports tells it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_INTERVAL_SECONDS = 0.5


class Progress:
    """Writes `progress.json`: {stage, phase, done, total, peak_bytes, ...}.

    Attributes:
        peak_bytes: reads the highest memory of the stage so far; None until a memory instrument is opened.
        part: what of the phase is being done; None where the phase says enough.
        checkpoint_step: the last step that the same command would not repeat, 0 while there is no checkpoint yet; None:
            none are written, and SIGTERM ends the process at once.

    Args:
        silent: write nothing, as all but the first of several processes.
    """

    def __init__(self, folder: Path, stage: str, silent: bool = False):
        self._silent = silent
        self._path = folder / "progress.json"
        self._content: dict[str, Any] = {"stage": stage, "phase": "start", "done": 0, "total": None}
        self._written = 0.0
        self.peak_bytes: Callable[[], int | None] = lambda: None
        self.part: str | None = None
        self.checkpoint_step: int | None = None

    @property
    def current_phase(self) -> str:
        """The part of the phase where one is named, else the phase."""
        return self.part or str(self._content["phase"])

    def phase(self, name: str, total: int | None = None) -> None:
        """Announce what comes next; written at once."""
        self._content = {"stage": self._content["stage"], "phase": name, "done": 0, "total": total}
        self.part = None
        self._write()

    def advance(self, done: int, **details: float | None) -> None:
        """Say how far the phase is; written at most twice a second."""
        self._content |= {"done": done, **details}
        if time.monotonic() - self._written >= _INTERVAL_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._silent:
            return
        temporary = self._path.with_suffix(".tmp")
        with suppress(OSError):  # a full disk costs the news, not the run
            known = {"peak_bytes": self.peak_bytes(), "checkpoint_step": self.checkpoint_step}
            temporary.write_text(json.dumps(self._content | known))
            os.replace(temporary, self._path)
        self._written = time.monotonic()
