"""The records in run folders: what is finished, who is at work on what, and whether there is room for more.

`record.json` is written last, by temp file and rename; a run whose record says `ok` is finished. Two sweeps on
one folder share the work: `claim` lets one process at a time run a run.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from bench.spec.config import RunConfig
from bench.spec.failure import Status
from bench.spec.layout import run_folder, sweep_folder, write_atomic
from bench.spec.record import Record, from_json, to_json

SPARE_BYTES = 1 << 20  # for the small files of a run; weights and models are checked by `worker.checks`


def read_record(folder: Path) -> Record | None:
    """The record of a run; None while there is none or it cannot be read (it will be made again)."""
    try:
        return from_json(Record, (folder / "record.json").read_bytes())
    except (OSError, ValidationError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Mark a run as ended."""
    write_atomic(folder / "record.json", to_json(record))


def is_finished(config: RunConfig) -> bool:
    """Whether the run ended well, so that the same command has nothing left to do for it."""
    record = read_record(run_folder(config))
    return record is not None and record.status is Status.OK and is_served(config, record)


def is_served(config: RunConfig, record: Record) -> bool:
    """Whether a finished run has been served as the config asks, if it asks for it at all."""
    if not config.serve.prompt_tokens or config.trial is not None:
        return True
    asked = asdict(config.serve)
    return record.serve is not None and all(record.serve.settings.get(k) == v for k, v in asked.items() if k != "name")


def weights_are_whole(folder: Path, expected_bytes: int | None) -> bool:
    """Whether a run's weights are where training wrote them, all of them."""
    if expected_bytes is None:  # a trial of a learning rate keeps none
        return True
    there = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return (folder / "complete").exists() and there == expected_bytes


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold a run for this process; waits while another process holds it. Freed even by `kill -9`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unwritable_folders(config: RunConfig) -> list[str]:
    """Folders that a run could not write its files to, found by writing: one line each, with what to do."""
    folders = {
        "results": sweep_folder(config),
        "artifacts": Path(config.paths.artifacts),
        "cache": Path(config.paths.cache),
    }
    problems = []
    for name, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(SPARE_BYTES))
        except OSError as error:
            problems.append(
                f"paths.{name}: cannot write {SPARE_BYTES // 2**20} MiB to {str(folder)!r} ({error.strerror}); free "
                f"some space, mend the access rights, or name another folder by paths.{name}=..."
            )
    return problems
