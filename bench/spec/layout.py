"""Where a run's files are, and how a file is written so that a reader never sees half of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from bench.spec.config import RunConfig
from bench.spec.identity import data_key, run_id


def sweep_folder(config: RunConfig) -> Path:
    """The runs that are reported together."""
    return Path(config.paths.results) / config.sweep


def run_folder(config: RunConfig) -> Path:
    """A run's folder: everything needed to read the run."""
    return sweep_folder(config) / run_id(config)


def artifact_folder(config: RunConfig) -> Path:
    """A run's weights: disposable, never needed to read the run."""
    return Path(config.paths.artifacts) / run_id(config)


def data_folder(config: RunConfig) -> Path:
    """The tokenized data, shared by all runs with the same `data_key`."""
    return Path(config.paths.cache) / "data" / data_key(config)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the machine stops. Text is written as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def flush_to_disk(folder: Path) -> None:
    """Wait until the folder's files are on the disk, so that a marker written next does not outlive them."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
