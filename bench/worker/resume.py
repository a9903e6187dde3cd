"""Training that survives being stopped: it leaves checkpoints, and goes on from the last one when it is run again.

A resumed run ends as one that was never stopped: weights, optimizer, schedule and random numbers are those of the
checkpoint, and the examples of the steps that are done are counted and hashed again, in the order of now; where the
hash is another than it was, the data changed, and training starts anew.

SIGTERM, by which schedulers announce that they take a machine back, is answered with a checkpoint at the end of the
present step.

    >>> keeper = Keeper(artifacts / "trainer", config, resolved, observer, memory, energy)
    >>> keeper.train(trainer)
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

import transformers
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from bench.config import RunConfig
from bench.identity import flush_to_disk, write_atomic
from bench.record import HeldoutPoint, PhaseMemory, Step, from_json, to_json
from bench.worker import data
from bench.worker.device import Device
from bench.worker.instruments.clock import OtherLoad
from bench.worker.instruments.energy import Energy
from bench.worker.instruments.memory import Memory
from bench.worker.instruments.tokens import TokenStream
from bench.worker.observe import Observer

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


class Keeper(TrainerCallback):
    """Marks checkpoints as whole, resumes from the last one, and stops behind one when the process is asked to end."""

    def __init__(
        self, folder: Path, config: RunConfig, device: Device, observer: Observer, memory: Memory, energy: Energy
    ):
        self._folder, self._made_by = folder, made_by(config, device)
        self._observer, self._memory, self._energy = observer, memory, energy
        self._asked_to_end = self._stops = False

    def train(self, trainer: Any) -> None:
        """Train from the last whole checkpoint, else from the start.

        Ends the process by SIGTERM, behind a checkpoint, when one came before the last step.
        """
        self._observer.progress.checkpoint_step = 0
        found = self._go_on(trainer)
        with self._listening():
            trainer.train(resume_from_checkpoint=str(found.folder) if found else None)
        if self._stops:
            self._observer.progress.phase("checkpoint")
            print(f"Asked to end: checkpoint written behind step {len(self._observer.steps)}.", flush=True)
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        state.save_steps = args.save_steps  # the checkpoint's own would count on

    def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """After each step, when the observer has taken what it takes."""
        if self._stops:
            return
        ends = control.should_training_stop  # what follows is the weights themselves
        self._stops = self._asked_to_end and not ends
        if ends:
            control.should_save = False
        if self._stops:
            control.should_save = control.should_training_stop = True

    def written(self, step: int) -> None:
        """Mark the checkpoint that the trainer has just written."""
        observer, folder = self._observer, self._folder / f"checkpoint-{step}"
        seen = Seen(
            step=step,
            made_by=self._made_by,
            files=files_of(folder),
            data_stream_sha256=observer.tokens.hexdigest(),
            steps=observer.steps,
            heldout=observer.heldout,
            memory=list(self._memory.read().values()),
            energy_wh=self._energy.read(),
            resumed_at_steps=observer.resumed_at_steps,
        )
        mark(folder, seen)
        observer.progress.checkpoint_step = step

    def _go_on(self, trainer: Any) -> Checkpoint | None:
        """Put the instruments where they were at the last whole checkpoint, if there is one."""
        found = last_whole(self._folder, self._made_by, print)
        stream = TokenStream()
        if found is not None:
            consume(stream, trainer, found.seen.step)
            if stream.hexdigest() != found.seen.data_stream_sha256:
                print(f"{found.folder.name} is not used: the training data are no longer those that it was trained on")
                found = None
        keep_only(self._folder, found.folder if found else None)
        if found is None:
            return None
        seen = found.seen
        print(f"Goes on from {found.folder.name}.")
        self._observer.progress.checkpoint_step = seen.step
        self._observer.go_on(stream, seen.steps, seen.heldout, seen.resumed_at_steps)
        self._memory.recall(seen.memory)
        self._energy.recall(seen.energy_wh)
        return found

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Let SIGTERM be a request, to be answered at the end of the step."""

        def ask(*_: Any) -> None:
            self._asked_to_end = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def consume(stream: TokenStream, trainer: Any, steps: int) -> None:
    """Hash and count the examples of the first steps as training did."""
    stream.enter("untimed")
    for batch in trainer.micro_batches(steps):
        for part in data.unpack(batch):
            stream.consume(part["input_ids"], part["labels"], part["attention_mask"])
