"""Runs at the same time on one machine, each with GPUs of its own.

A scheduler such as Slurm or Ray shows every job only its own GPUs. Where a job sees more than it needs (joblib), it
takes free ones: a GPU belongs to who holds the lock on its file. The lock goes with the process, even by `kill -9`.

>>> with own_gpus(1):  # waits while all are taken
...     os.environ["CUDA_VISIBLE_DEVICES"]
'3'
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 1.0


@contextlib.contextmanager
def own_gpus(count: int = 1, locks: Path | None = None) -> Iterator[None]:
    """Hold `count` of the GPUs that this process may see; until the end it and its children see those alone.

    Does nothing where no more than that are visible.

    Args:
        locks: the folder of the lock files, local to the machine; by default below the system's temporary folder.
    """
    visible = visible_gpus()
    if len(visible) <= count:
        yield
        return
    folder = locks or Path(tempfile.gettempdir()) / f"bench-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get(VISIBLE)
    with _taken(visible, count, folder) as own:
        os.environ[VISIBLE] = ",".join(own)
        try:
            yield
        finally:
            os.environ.pop(VISIBLE) if before is None else os.environ.update({VISIBLE: before})


def visible_gpus() -> list[str]:
    """The names (indices or UUIDs) of the GPUs that CUDA would show this process; empty where there are none."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() and name.strip() != "-1"]
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


@contextlib.contextmanager
def _taken(names: Sequence[str], count: int, folder: Path) -> Iterator[list[str]]:
    """`count` of the names, locked: all or, while too few are free, none."""
    while True:
        with contextlib.ExitStack() as locks:
            own: list[str] = []
            for name in names:
                if len(own) < count and _locked(folder / name, locks):
                    own.append(name)
            if len(own) == count:
                yield own
                return
        time.sleep(POLL_SECONDS)


def _locked(path: Path, locks: contextlib.ExitStack) -> bool:
    file = locks.enter_context(path.open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
