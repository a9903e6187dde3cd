"""What a training run left when it was stopped: the last checkpoint that is whole, and what had been measured by then.

`transformers.Trainer` writes the checkpoint: what is trained, optimizer, schedule and random numbers. The instruments'
readings are written beside them, last: they are the mark that the checkpoint is whole.

    artifacts/<run_id>/trainer/checkpoint-40/model.safetensors, optimizer.pt, scheduler.pt, rng_state.pth, ...
    artifacts/<run_id>/trainer/checkpoint-40/seen.json

    >>> found = last_whole(folder, made_by, say=print)
    >>> found.seen.step
    40
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from pathlib import Path

import transformers
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from transformers.trainer_utils import rotate_checkpoints

from bench.config import RunConfig
from bench.identity import flush_to_disk, write_atomic
from bench.record import HeldoutPoint, PhaseMemory, Step, from_json, to_json
from bench.worker.device import Device
from bench.worker.instruments.load import OtherLoad

FOLDER = "trainer"  # in the run's artifact folder
_MARK = "seen.json"
_MADE_BY = ("device", "device_count", "threads", "compute_dtype", "attention", "compiled", "torch")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", ser_json_inf_nan="null"))
class Seen:
    """What the instruments had read when a checkpoint was written."""

    step: int
    made_by: dict[str, str]
    files: dict[str, int]  # name -> bytes
    data_stream_sha256: str
    steps: list[Step]
    heldout: list[HeldoutPoint]
    memory: list[PhaseMemory]
    energy_wh: dict[str, float | None]
    resumed_at_steps: list[int]


@plain_dataclass(frozen=True)
class Checkpoint:
    """A whole one."""

    folder: Path
    seen: Seen


def made_by(config: RunConfig, device: Device) -> dict[str, str]:
    """What decides numbers and speed: only where it is the same does a run go on, as the run that it was."""
    environment = device.environment(OtherLoad())
    facts = {name: str(getattr(environment, name)) for name in _MADE_BY}
    return facts | {"micro_batch": str(config.train.micro_batch), "transformers": transformers.__version__}


def files_of(folder: Path) -> dict[str, int]:
    """Bytes of a checkpoint's files by name."""
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file() and p.name != _MARK}


def mark(folder: Path, seen: Seen) -> None:
    """Say that a checkpoint is whole and on the disk; only then are older ones deleted."""
    flush_to_disk(folder)
    write_atomic(folder / _MARK, to_json(seen))
    rotate_checkpoints(str(folder.parent), save_total_limit=1)


def last_whole(folder: Path, made_by: Mapping[str, str], say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that can be gone on from; None: start at the beginning.

    Args:
        say: takes a line for the log about each one that cannot be used.
    """
    steps = {int(p.name.partition("-")[2]): p for p in folder.glob("checkpoint-*") if p.name[11:].isdigit()}
    for _, path in sorted(steps.items(), reverse=True):
        found = _read(path)
        trouble = found if isinstance(found, str) else _difference(found.made_by, made_by)
        if trouble is None:
            assert isinstance(found, Seen)
            return Checkpoint(path, found)
        say(f"{path.name} is not used: {trouble}")
    return None


def delete_older_weights(folder: Path) -> None:
    """Delete all that a run's artifact folder holds but the checkpoints."""
    for path in folder.glob("*"):
        if path.is_file():
            path.unlink()
        elif path.name != FOLDER:
            shutil.rmtree(path)


def keep_only(folder: Path, kept: Path | None) -> None:
    """Delete the checkpoints that are not gone on from, so that none of them is ever taken for a later one."""
    for path in folder.glob("checkpoint-*"):
        if path != kept:
            shutil.rmtree(path)


def _read(path: Path) -> Seen | str:
    """What a checkpoint's mark says, or why it is not whole."""
    try:
        seen = from_json(Seen, (path / _MARK).read_bytes())
    except (FileNotFoundError, ValidationError):
        return "it was not written to its end"
    torn = [name for name, size in seen.files.items() if files_of(path).get(name) != size]
    return f"torn: {', '.join(torn)}" if torn else seen


def _difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str | None:
    told = [f"{k} {theirs.get(k)}, now {ours.get(k)}" for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
    return f"it was written with {'; '.join(told)}" if told else None
