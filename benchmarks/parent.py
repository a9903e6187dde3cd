"""How busy the parent is while a child measures: a real `python -m bench`, with a real training, watched from outside.

    python -m benchmarks.observer        prints this table under its own

CPU time is the kernel's own, in nanoseconds, summed over the parent's threads (/proc/PID/task/*/schedstat). Once with
its output to a file, and once on a (pseudo) terminal, where it draws a live line. Linux only.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from tabulate import tabulate

_LONG_ENOUGH = ["experiment=smoke", "method=lora", "train.max_steps=100000", "train.epochs=100000"]
_START_SECONDS = 120


def table(seconds: float) -> str:
    """Markdown: the share of one processor that the parent took, over so many seconds of its child's training."""
    rows = []
    for name, on_terminal in (("a file", False), ("a terminal", True)):
        parent, child = busy(seconds, on_terminal)
        rows.append([f"output to {name}", f"{seconds:.0f}", f"{100 * parent:.2f}%", f"{100 * child:.0f}%"])
    return tabulate(rows, ["parent", "seconds", "of a processor", "its child"], "github", disable_numparse=True)


def busy(seconds: float, on_terminal: bool) -> tuple[float, float]:
    """(processors that the parent used, and its child) on average while the child trained."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"paths.{name}={folder}/{name}" for name in ("results", "artifacts", "cache")]
        command = [sys.executable, "-m", "bench", *_LONG_ENOUGH, *paths]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit an ignored one
        ours, theirs = pty.openpty() if on_terminal else (None, os.open(f"{folder}/out", os.O_WRONLY | os.O_CREAT))
        parent = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        if ours is not None:
            threading.Thread(target=_drain, args=(ours,), daemon=True).start()
        try:
            child = _training_child(parent.pid, Path(folder, "results"))
            before, started = (_cpu_seconds(parent.pid), _cpu_seconds(child)), time.monotonic()
            time.sleep(seconds)
            after, wall = (_cpu_seconds(parent.pid), _cpu_seconds(child)), time.monotonic() - started
        finally:
            parent.send_signal(signal.SIGINT)  # it stops its child in order
            try:
                parent.wait(60)
            except subprocess.TimeoutExpired:
                parent.kill()  # its child dies with it
                raise
    return (after[0] - before[0]) / wall, (after[1] - before[1]) / wall


def _training_child(parent: int, results: Path) -> int:
    """The process that trains, once it does."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.5)
        for path in results.glob("*/*/progress.json"):
            with suppress(OSError, ValueError):
                progress = json.loads(path.read_text())
                if progress["stage"] == "train" and progress["phase"] == "train" and progress["done"] > 3:
                    return psutil.Process(parent).children()[0].pid
    raise SystemExit(f"no training within {_START_SECONDS} s; see python -m bench {' '.join(_LONG_ENOUGH)}")


def _cpu_seconds(process: int) -> float:
    total = 0
    for thread in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):  # ended since it was listed
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def _drain(terminal: int) -> None:
    """Read what is drawn, as a terminal does, so that it never blocks."""
    with suppress(OSError):
        while os.read(terminal, 65536):
            pass


if __name__ == "__main__":
    print(table(float(sys.argv[1]) if len(sys.argv) > 1 else 8))
