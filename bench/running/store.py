"""The records in run folders: what is finished, and who is at work on what.

`record.json` is written last, by temp file and rename; a run whose record says `ok` is finished. Two sweeps on
one folder share the work: `claim` lets one process at a time run a run.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from bench.spec.config import RunConfig
from bench.spec.failure import Status
from bench.spec.layout import run_folder, write_atomic
from bench.spec.record import Record, from_json, to_json


def read_record(folder: Path) -> Record | None:
    """The record of a run; None while there is none or it cannot be read (it will be made again)."""
    try:
        return from_json(Record, (folder / "record.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Mark a run as ended."""
    write_atomic(folder / "record.json", to_json(record))


def is_finished(config: RunConfig) -> bool:
    """Whether the run ended well, so that the same command has nothing left to do for it."""
    record = read_record(run_folder(config))
    return record is not None and record.status is Status.OK


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold a run for this process; waits while another process holds it. Freed even by `kill -9`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
